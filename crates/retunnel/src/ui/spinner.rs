//! The line with a spinner while the program waits for its server, on a terminal.

use std::{io::Write, time::Duration};

use crossterm::terminal;
use tokio::time::Instant;

use super::theme::Theme;

/// Time between two frames.
pub(crate) const REDRAW: Duration = Duration::from_millis(100);

/// One line at the bottom. The cursor stays at its start, so that the `^C` of the terminal is drawn over.
pub(crate) struct Spinner {
    theme: Theme,
    /// What the program is doing.
    text: String,
    started: Instant,
    frames: usize,
    /// Why the last attempt failed, and when the next one is.
    failed: Option<(String, Instant)>,
}

impl Spinner {
    pub(crate) fn new(theme: Theme, text: String) -> Self {
        Self { theme, text, started: Instant::now(), frames: 0, failed: None }
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, cause: String, retry_in: Duration) {
        self.failed = Some((cause, Instant::now() + retry_in));
    }

    /// Draws the next frame.
    pub(crate) fn draw(&mut self) {
        let columns = terminal::size().map_or(80, |(columns, _)| columns);
        self.frames += 1;
        let line = self.line(columns.into());
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{line}\r").and_then(|()| stderr.flush());
    }

    /// Clears the line; the next frame draws it again.
    pub(crate) fn clear(&self) {
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
    }

    fn line(&self, columns: usize) -> String {
        let text = match &self.failed {
            None => format!("{} {}s", self.text, self.started.elapsed().as_secs()),
            Some((cause, next)) => {
                let left = next.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
                let when = if left > 0.0 { format!("Retrying in {left:.0} s") } else { "Retrying now".into() };
                format!("{when}: {cause}")
            }
        };
        let spinner = self.theme.spinner(self.frames);
        let text = self.theme.fitted(&self.theme.safe(&text), columns.saturating_sub(3));
        if self.theme.color { format!("\x1b[36m{spinner}\x1b[0m {text}") } else { format!("{spinner} {text}") }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_line_shows_the_cause_and_counts() {
        let theme = Theme { color: false, unicode: false };
        let mut spinner = Spinner::new(theme, "Connecting to ReTunnel server... (a.test:6400)".into());
        advance(Duration::from_secs(3)).await;
        assert_eq!(spinner.line(80), "| Connecting to ReTunnel server... (a.test:6400) 3s");
        spinner.failed("cannot reach a.test:6400: Connection refused (os error 111)".into(), Duration::from_secs(4));
        advance(Duration::from_millis(1_500)).await;
        assert_eq!(spinner.line(80), "| Retrying in 3 s: cannot reach a.test:6400: Connection refused (os error 111)");
        assert_eq!(spinner.line(40).len(), 39, "never wraps");
        advance(Duration::from_secs(3)).await;
        assert!(spinner.line(80).starts_with("| Retrying now: cannot reach"));
    }
}
