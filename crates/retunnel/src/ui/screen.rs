//! The terminal as a screen of our own, given back whatever happens.

use std::io::Write;

use anyhow::Result;
use crossterm::{
    cursor, execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{Terminal, backend::CrosstermBackend};

type Backend = CrosstermBackend<std::io::Stdout>;

/// Owns the terminal; gives it back when dropped, also by a panic.
pub(crate) struct Screen(pub(crate) Terminal<Backend>);

impl Screen {
    pub(crate) fn take() -> Result<Self> {
        // A panic's message is for the ordinary screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            hook(info);
        }));
        enable_raw_mode()?;
        // From here on dropping gives back what was taken.
        let screen = Self(Terminal::new(CrosstermBackend::new(std::io::stdout()))?);
        execute!(std::io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Asks the terminal to put text on the clipboard (OSC 52); also works through SSH.
    pub(crate) fn copy(text: &str) -> std::io::Result<()> {
        let mut stdout = std::io::stdout();
        write!(stdout, "\x1b]52;c;{}\x07", data_encoding::BASE64.encode(text.as_bytes()))?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(std::io::stdout(), LeaveAlternateScreen, cursor::Show);
}
