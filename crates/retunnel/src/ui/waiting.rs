//! The line that moves while the program waits for its server, on a terminal.

use std::{io::Write, time::Duration};

use crossterm::terminal;
use tokio::time::Instant;

use super::look::Look;

/// Time between two pictures.
pub(crate) const REDRAW: Duration = Duration::from_millis(100);

/// One line at the bottom. The cursor stays at its beginning, so that a `^C` that the terminal shows is drawn over.
pub(crate) struct Waiting {
    look: Look,
    /// What is being done.
    what: String,
    began: Instant,
    pictures: usize,
    /// Why the last try failed, and when the next one is.
    failed: Option<(String, Instant)>,
}

impl Waiting {
    pub(crate) fn new(look: Look, what: String) -> Self {
        Self { look, what, began: Instant::now(), pictures: 0, failed: None }
    }

    /// A try failed.
    pub(crate) fn failed(&mut self, cause: String, retry_in: Duration) {
        self.failed = Some((cause, Instant::now() + retry_in));
    }

    /// Draws the next picture.
    pub(crate) fn draw(&mut self) {
        let columns = terminal::size().map_or(80, |(columns, _)| columns);
        self.pictures += 1;
        let line = self.line(columns.into());
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{line}\r").and_then(|()| stderr.flush());
    }

    /// Takes the line away; the next picture brings it back.
    pub(crate) fn clear(&self) {
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
    }

    fn line(&self, columns: usize) -> String {
        let text = match &self.failed {
            None => format!("{} {}s", self.what, self.began.elapsed().as_secs()),
            Some((cause, next)) => {
                let left = next.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
                let when = if left > 0.0 { format!("Next try in {left:.0} s") } else { "Trying again".into() };
                format!("{when}: {cause}")
            }
        };
        let wheel = self.look.wheel(self.pictures);
        let text = self.look.fitted(&self.look.safe(&text), columns.saturating_sub(3));
        if self.look.color { format!("\x1b[36m{wheel}\x1b[0m {text}") } else { format!("{wheel} {text}") }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_line_tells_what_happened_and_counts() {
        let look = Look { color: false, unicode: false };
        let mut waiting = Waiting::new(look, "Connecting to ReTunnel server... (a.test:6400)".into());
        advance(Duration::from_secs(3)).await;
        assert_eq!(waiting.line(80), "| Connecting to ReTunnel server... (a.test:6400) 3s");
        waiting.failed("cannot reach a.test:6400: Connection refused (os error 111)".into(), Duration::from_secs(4));
        advance(Duration::from_millis(1_500)).await;
        assert_eq!(waiting.line(80), "| Next try in 3 s: cannot reach a.test:6400: Connection refused (os error 111)");
        assert_eq!(waiting.line(40).len(), 39, "never wraps");
        advance(Duration::from_secs(3)).await;
        assert!(waiting.line(80).starts_with("| Trying again: cannot reach"));
    }
}
