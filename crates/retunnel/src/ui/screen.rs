//! The terminal's alternate screen, restored in every case.

use std::{io::Write, mem::ManuallyDrop};

use anyhow::Result;
use crossterm::{
    cursor, execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};

type Backend = CrosstermBackend<std::io::Stdout>;

/// Owns the terminal and restores it when dropped, also on a panic.
pub(crate) struct Screen {
    /// Never dropped: its own drop writes to stderr, and panics, if the terminal is gone.
    terminal: ManuallyDrop<Terminal<Backend>>,
}

impl Screen {
    pub(crate) fn enter() -> Result<Self> {
        // A panic message belongs on the normal screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        enable_raw_mode()?;
        let terminal = Terminal::new(CrosstermBackend::new(std::io::stdout()))?;
        // From here on, dropping restores the terminal.
        let screen = Self { terminal: ManuallyDrop::new(terminal) };
        execute!(std::io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Draws a frame.
    pub(crate) fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> std::io::Result<()> {
        self.terminal.draw(render).map(drop)
    }

    /// Asks the terminal to copy text to the clipboard (OSC 52). Works through SSH.
    pub(crate) fn copy(text: &str) -> std::io::Result<()> {
        let mut stdout = std::io::stdout();
        write!(stdout, "\x1b]52;c;{}\x07", data_encoding::BASE64.encode(text.as_bytes()))?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let _ = disable_raw_mode();
    let _ = execute!(std::io::stdout(), LeaveAlternateScreen, cursor::Show);
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::ErrorKind;

    use rustix::termios::{LocalModes, tcgetattr};
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Set for the test when it runs itself again on a terminal.
    const ON_A_TERMINAL: &str = "RETUNNEL_TEST_ON_A_TERMINAL";

    #[tokio::test]
    async fn a_panic_restores_the_terminal() {
        if std::env::var_os(ON_A_TERMINAL).is_some() {
            let _screen = Screen::enter().expect("a terminal");
            panic!("shown on the normal screen");
        }
        let (mut pty, pts) = pty_process::open().expect("a terminal");
        let program = std::env::current_exe().expect("this test");
        let name = "ui::screen::tests::a_panic_restores_the_terminal";
        let command = pty_process::Command::new(program).args(["--exact", name, "--nocapture"]).env(ON_A_TERMINAL, "1");
        let mut child = command.spawn(pts).expect("started");
        let mut written = Vec::new();
        loop {
            match pty.read_buf(&mut written).await {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The other end is closed.
                _ => break,
            }
        }
        assert!(!child.wait().await.expect("an end").success());
        let written = String::from_utf8_lossy(&written);
        let position = |part: &str| written.find(part).unwrap_or_else(|| panic!("no {part:?} in {written:?}"));
        assert!(position("\x1b[?1049h") < position("\x1b[?1049l"), "{written:?}");
        assert!(position("\x1b[?25l") < position("\x1b[?25h"), "{written:?}");
        assert!(position("\x1b[?1049l") < position("shown on the normal screen"), "{written:?}");
        let modes = tcgetattr(&pty).expect("a terminal").local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON), "{modes:?}");
    }
}
