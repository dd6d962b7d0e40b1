//! The terminal as a screen of our own, given back whatever happens.

use std::{io::Write, mem::ManuallyDrop};

use anyhow::Result;
use crossterm::{
    cursor, execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};

type Backend = CrosstermBackend<std::io::Stdout>;

/// Owns the terminal; gives it back when dropped, also by a panic.
pub(crate) struct Screen {
    /// Never dropped: its own end complains on stderr, and panics, when the terminal is gone.
    terminal: ManuallyDrop<Terminal<Backend>>,
}

impl Screen {
    pub(crate) fn take() -> Result<Self> {
        // A panic's message is for the ordinary screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            hook(info);
        }));
        enable_raw_mode()?;
        let terminal = Terminal::new(CrosstermBackend::new(std::io::stdout()))?;
        // From here on dropping gives back what was taken.
        let screen = Self { terminal: ManuallyDrop::new(terminal) };
        execute!(std::io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Draws a picture.
    pub(crate) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> std::io::Result<()> {
        self.terminal.draw(picture).map(drop)
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

#[cfg(all(test, unix))]
mod tests {
    use std::io::ErrorKind;

    use rustix::termios::{LocalModes, tcgetattr};
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Set for the test when it runs once more, on a terminal.
    const ON_A_TERMINAL: &str = "RETUNNEL_TEST_ON_A_TERMINAL";

    #[tokio::test]
    async fn a_panic_gives_the_terminal_back() {
        if std::env::var_os(ON_A_TERMINAL).is_some() {
            let _screen = Screen::take().expect("a terminal");
            panic!("told on the ordinary screen");
        }
        let (mut pty, pts) = pty_process::open().expect("a terminal");
        let program = std::env::current_exe().expect("this test");
        let name = "ui::screen::tests::a_panic_gives_the_terminal_back";
        let command = pty_process::Command::new(program).args(["--exact", name, "--nocapture"]).env(ON_A_TERMINAL, "1");
        let mut child = command.spawn(pts).expect("started");
        let mut written = Vec::new();
        loop {
            match pty.read_buf(&mut written).await {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody has the other end any more.
                _ => break,
            }
        }
        assert!(!child.wait().await.expect("an end").success());
        let written = String::from_utf8_lossy(&written);
        let place = |part: &str| written.find(part).unwrap_or_else(|| panic!("no {part:?} in {written:?}"));
        assert!(place("\x1b[?1049h") < place("\x1b[?1049l"), "{written:?}");
        assert!(place("\x1b[?25l") < place("\x1b[?25h"), "{written:?}");
        assert!(place("\x1b[?1049l") < place("told on the ordinary screen"), "{written:?}");
        let modes = tcgetattr(&pty).expect("a terminal").local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON), "{modes:?}");
    }
}
