//! Which lost sessions and failed attempts get a line.

use std::time::Duration;

use tokio::time::Instant;

/// Lines about lost sessions and failed attempts: one for each, unless they come faster than anyone can read.
#[derive(Debug, Default)]
pub(super) struct ReconnectLog {
    pub(super) attempt: u32,
    /// The last cause that was reported, and when.
    reported: Option<(String, Instant)>,
}

impl ReconnectLog {
    /// Attempts with the same cause that follow each other within a second are reported once per this interval.
    const INTERVAL: Duration = Duration::from_secs(10);

    /// The line for a failure, if it gets one.
    pub(super) fn line(&mut self, cause: &str, retry_in: Duration) -> Option<String> {
        let now = Instant::now();
        let is_news = match &self.reported {
            None => true,
            Some((before, at)) => {
                before != cause || retry_in >= Duration::from_secs(1) || now.duration_since(*at) >= Self::INTERVAL
            }
        };
        if !is_news {
            return None;
        }
        let is_first = self.reported.replace((cause.to_owned(), now)).is_none();
        let when = match retry_in.as_secs_f64() {
            seconds if seconds < 0.05 => "now".to_owned(),
            seconds if seconds < 0.95 => format!("in {seconds:.1} s"),
            seconds => format!("in {seconds:.0} s"),
        };
        let more = match (is_first, self.attempt) {
            (true, _) => " (Ctrl+C to stop)".to_owned(),
            (false, attempt) => format!(" (attempt {attempt} failed)"),
        };
        Some(format!("{cause}; retrying {when}{more}"))
    }

    /// Whether anything was reported.
    pub(super) const fn has_reported(&self) -> bool {
        self.reported.is_some()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_attempt_has_a_line_unless_they_come_too_fast() {
        let mut log = ReconnectLog::default();
        let mut lines = Vec::new();
        let (lost, refused) = ("connection lost", "connection refused");
        let seconds = [(lost, 0.0), (refused, 0.4), (refused, 0.7), (refused, 0.6), (refused, 1.5), (refused, 16.0)];
        for (number, (cause, seconds)) in seconds.into_iter().enumerate() {
            log.attempt = number as u32;
            let retry_in = Duration::from_secs_f64(seconds);
            lines.extend(log.line(cause, retry_in));
            advance(retry_in).await;
        }
        assert_eq!(
            lines,
            [
                "connection lost; retrying now (Ctrl+C to stop)",
                "connection refused; retrying in 0.4 s (attempt 1 failed)",
                "connection refused; retrying in 2 s (attempt 4 failed)",
                "connection refused; retrying in 16 s (attempt 5 failed)",
            ]
        );
        let quick = Duration::from_millis(500);
        let count = (0..60).filter(|_| log.line(refused, quick).is_some()).count();
        assert!(count <= 1, "{count}");
    }
}
