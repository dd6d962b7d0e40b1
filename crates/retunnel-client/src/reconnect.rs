//! When to try again.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_secs(1);
const CEILING: Duration = Duration::from_secs(16);
/// While nothing answers at its address, the server is probably restarting: attempts are more frequent at first.
const RESTART_CEILING: Duration = Duration::from_millis(700);
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// A session that lasted this long was stable.
const STEADY: Duration = Duration::from_secs(1);
/// Longest pause before the first attempt when sessions end as soon as they are established: something on the network
/// path cuts them, and without a pause both ends would do nothing but handshakes.
const BRIEF_CEILING: Duration = Duration::from_millis(100);
/// After so many brief sessions in a row the cause is probably not the network: another client of the same account takes the
/// name away, which servers of the published dialects do not report. From here on the pause doubles up to [`CEILING`].
const CONTENDED: u32 = 10;
/// A session that lasted this long ends such a contest. Shorter ones may be the other client's pause.
const UNCONTENDED: Duration = Duration::from_secs(60);

/// Delays between attempts: none before the first, then 1 s doubling up to 16 s, each multiplied by a random factor from
/// one half to one, so that a thousand clients do not return at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Sessions in a row that did not last.
    brief: u32,
    attempts: u32,
    waited: Duration,
}

impl Backoff {
    /// Attempts that failed in a row.
    pub(crate) const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The delay before the next attempt. `absent`: the server may be restarting. `at_least`: the time it asked for.
    pub(crate) fn next(&mut self, absent: bool, at_least: Option<Duration>) -> Duration {
        self.next_with(absent, at_least, rand::rng().random_range(0.5..=1.0))
    }

    fn next_with(&mut self, absent: bool, at_least: Option<Duration>, factor: f64) -> Duration {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        if attempt == 0 && at_least.is_none() {
            return self.pause_after_brief_sessions().mul_f64(factor);
        }
        let doubled = FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        let ceiling = if absent && self.waited < RESTART_WINDOW { RESTART_CEILING } else { CEILING };
        let delay = doubled.min(ceiling).mul_f64(factor).max(at_least.unwrap_or_default());
        self.waited += delay;
        delay
    }

    fn pause_after_brief_sessions(&self) -> Duration {
        match self.brief {
            0 => Duration::ZERO,
            brief if brief < CONTENDED => Duration::from_millis(5 << brief).min(BRIEF_CEILING),
            brief => (BRIEF_CEILING * 2).saturating_mul(1 << (brief - CONTENDED).min(10)).min(CEILING),
        }
    }

    /// A session lasted this long. `reported`: the server says why it ends a session.
    pub(crate) fn session_ended(&mut self, lasted: Duration, reported: bool) {
        let steady = if self.brief < CONTENDED { STEADY } else { UNCONTENDED };
        let most = if reported { CONTENDED - 1 } else { u32::MAX };
        let brief = if lasted < steady { self.brief.saturating_add(1).min(most) } else { 0 };
        *self = Self { brief, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(absent: bool, count: usize) -> Vec<f64> {
        let mut backoff = Backoff::default();
        (0..count).map(|_| backoff.next_with(absent, None, 1.0).as_secs_f64()).collect()
    }

    #[test]
    fn delays_double_up_to_their_ceiling() {
        assert_eq!(seconds(false, 8), [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]);
    }

    #[test]
    fn a_server_that_restarts_is_tried_often_for_a_minute() {
        let delays = seconds(true, 100);
        assert_eq!(delays[1..=86], [0.7; 86]);
        assert_eq!(delays[87], 16.0);
    }

    #[test]
    fn sessions_that_end_at_once_are_retried_with_pauses() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20)
            .map(|_| {
                backoff.session_ended(Duration::from_millis(20), true);
                backoff.next_with(false, None, 1.0).as_millis()
            })
            .collect();
        assert_eq!(pauses[..6], [10, 20, 40, 80, 100, 100]);
        assert_eq!(pauses[6..], [100; 14]);
        backoff.session_ended(STEADY, true);
        assert_eq!(backoff.next_with(false, None, 1.0), Duration::ZERO);
    }

    #[test]
    fn two_clients_that_displace_each_other_become_slow() {
        // Each opens its session as soon as its pause is over, which ends the other's session.
        let mut clients = [Backoff::default(), Backoff::default()];
        let (mut now, mut opened, mut openings) = (Duration::ZERO, Duration::ZERO, 0);
        while now < Duration::from_secs(60) {
            let displaced = &mut clients[openings % 2];
            displaced.session_ended(now - opened, false);
            opened = now;
            now += displaced.next_with(false, None, 1.0) + Duration::from_millis(20);
            openings += 1;
        }
        assert!((20..40).contains(&openings), "{openings} openings in a minute");
        clients[0].session_ended(CEILING, false);
        assert_eq!(clients[0].next_with(false, None, 1.0), CEILING);
        clients[0].session_ended(UNCONTENDED, false);
        assert_eq!(clients[0].next_with(false, None, 1.0), Duration::ZERO);
    }

    #[test]
    fn the_server_may_ask_for_more_time() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next_with(false, Some(Duration::from_secs(30)), 0.5), Duration::from_secs(30));
        backoff.session_ended(STEADY, true);
        assert_eq!(backoff.attempts(), 0);
        let delay = backoff.next(false, Some(Duration::from_secs(2)));
        assert_eq!(delay, Duration::from_secs(2));
    }
}
