//! The program on a terminal: a real pseudo-terminal, and a terminal emulator that reads its output.

use std::{ffi::OsStr, num::NonZeroU16, path::Path};

use pty_process::{Pts, Pty, Size};
use rustix::termios::{LocalModes, tcgetattr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::{Duration, Instant, timeout},
};
use vt100::{Parser, Screen};

use crate::{
    TIMEOUT,
    process::{User, program},
};

/// How long the output must pause for a screen to count as complete.
const QUIET: Duration = Duration::from_millis(50);

/// A terminal with a program running on it.
pub struct Terminal {
    pty: Pty,
    /// Kept, so that the terminal can be inspected after the program has ended.
    _pts: Pts,
    child: Child,
    parser: Parser,
    /// Everything that was written to it, with the time of each part.
    pub written: Vec<(Duration, Vec<u8>)>,
    began: Instant,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("screen", &self.text()).finish_non_exhaustive()
    }
}

fn cells(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("a terminal has cells")
}

impl Terminal {
    /// Starts the program in a home directory, on a terminal with this size in columns and rows, Unicode and colours.
    /// Variables without a value are removed.
    pub fn start(
        user: &User,
        args: &[&str],
        variables: &[(&str, Option<&OsStr>)],
        (columns, rows): (u16, u16),
    ) -> Self {
        Self::start_as(&program(), user.home(), args, variables, (columns, rows))
    }

    /// The same with any program.
    pub fn start_as(
        program: &Path,
        home: &Path,
        args: &[&str],
        variables: &[(&str, Option<&OsStr>)],
        (columns, rows): (u16, u16),
    ) -> Self {
        let (pty, pts) = pty_process::open().unwrap();
        pty.resize(Size::new(rows, columns)).unwrap();
        let mut command = pty_process::Command::new(program).args(args).current_dir(home).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RETUNNEL_") {
                command = command.env_remove(name);
            }
        }
        command = command.env("HOME", home).env("RETUNNEL_INSPECT_ADDR", "127.0.0.1:0");
        command = command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        for (name, value) in variables {
            command = match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command.spawn_borrowed(&pts).unwrap();
        let parser = Parser::new(cells(rows), cells(columns), 1000);
        Self { pty, _pts: pts, child, parser, written: Vec::new(), began: Instant::now() }
    }

    /// Reads what is there, up to a pause.
    async fn read(&mut self, pause: Duration) -> bool {
        let mut bytes = vec![0; 64 * 1024];
        match timeout(pause, self.pty.read(&mut bytes)).await {
            Ok(Ok(count)) if count > 0 => {
                bytes.truncate(count);
                self.parser.process(&bytes);
                self.written.push((self.began.elapsed(), bytes));
                true
            }
            _ => false,
        }
    }

    /// Waits until the screen meets a condition and is complete.
    ///
    /// # Panics
    /// If it does not happen in time.
    pub async fn until(&mut self, what: &str, check: impl Fn(&Screen) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            while self.read(QUIET).await {}
            if check(self.parser.screen()) {
                return;
            }
            assert!(Instant::now() < deadline, "waited for {what}:\n{}", self.text());
        }
    }

    /// Waits for a text anywhere on the screen.
    pub async fn sees(&mut self, text: &str) {
        self.until(text, |screen| screen.contents().contains(text)).await;
    }

    /// Waits until a text is nowhere on the screen.
    pub async fn misses(&mut self, text: &str) {
        self.until(&format!("no {text}"), |screen| !screen.contents().contains(text)).await;
    }

    /// Presses keys.
    pub async fn press(&mut self, keys: &str) {
        self.pty.write_all(keys.as_bytes()).await.unwrap();
    }

    /// Gives the terminal another size in columns and rows.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.parser.set_size(cells(rows), cells(columns));
        self.pty.resize(Size::new(rows, columns)).unwrap();
    }

    /// What the screen shows.
    #[must_use]
    pub fn text(&self) -> String {
        self.parser.screen().contents()
    }

    /// The screen.
    #[must_use]
    pub fn screen(&self) -> &Screen {
        self.parser.screen()
    }

    /// Everything that was written, escapes and all.
    #[must_use]
    pub fn raw(&self) -> String {
        let bytes: Vec<u8> = self.written.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal by its name, for example `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().expect("running").to_string();
        let status = std::process::Command::new("kill").arg(format!("-{name}")).arg(id).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end and gives the exit code.
    pub async fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            self.read(QUIET).await;
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "waited for the end:\n{}", self.text());
        };
        while self.read(QUIET).await {}
        status.code()
    }

    /// Closes the terminal, as closing its window does, and waits for the program's end.
    pub async fn close(self) -> Option<i32> {
        let Self { pty, mut child, .. } = self;
        drop(pty);
        timeout(TIMEOUT, child.wait()).await.expect("an end in time").unwrap().code()
    }

    /// Whether the terminal is in its normal mode: main screen, visible cursor, echo and line input.
    #[must_use]
    pub fn is_given_back(&self) -> bool {
        let modes = tcgetattr(&self.pty).unwrap().local_modes;
        let screen = self.parser.screen();
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
            && !screen.alternate_screen()
            && !screen.hide_cursor()
    }
}
