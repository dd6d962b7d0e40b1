//! What a link knows of the path to its peer: round trips, and when the peer was last heard.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Pings without an answer; no more are sent.
const MAX_UNANSWERED: usize = 16;
/// Paths with a shorter round trip are not worth a probe: losses there are rare, and probes would be frequent.
const PROBED_FROM: Duration = Duration::from_millis(10);
/// Assumed until the first ping is answered.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(1);
/// The fastest path that windows grow for, in bytes per second (8 Gbit/s).
const FASTEST: f64 = 1e9;

#[derive(Debug)]
pub(super) struct Path {
    rtt: Option<Duration>,
    /// The shortest round trip: the time of the path itself, when nothing waits before a ping.
    min_rtt: Option<Duration>,
    /// Pings without an answer: number and time of sending.
    pings: VecDeque<(u64, Instant)>,
    last_ping: u64,
    heard_at: Instant,
}

impl Path {
    pub(super) const fn new(now: Instant) -> Self {
        Self { rtt: None, min_rtt: None, pings: VecDeque::new(), last_ping: 0, heard_at: now }
    }

    /// Bytes of the peer have arrived.
    pub(super) const fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// The number of a ping to send now; `None` when too many have no answer yet.
    pub(super) fn ping(&mut self, now: Instant) -> Option<u64> {
        if self.pings.len() >= MAX_UNANSWERED {
            return None;
        }
        self.last_ping += 1;
        self.pings.push_back((self.last_ping, now));
        Some(self.last_ping)
    }

    /// The peer answered a ping. This answers all earlier ones as well.
    pub(super) fn answered(&mut self, number: u64, now: Instant) {
        while let Some((sent, at)) = self.pings.front().copied().filter(|(sent, _)| *sent <= number) {
            self.pings.pop_front();
            if sent == number {
                let rtt = now.duration_since(at);
                self.rtt = Some(rtt);
                self.min_rtt = Some(self.min_rtt.map_or(rtt, |shortest| shortest.min(rtt)));
            }
        }
    }

    /// The round trip of the last ping that was answered.
    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// How long the peer has sent nothing, or has left a ping without an answer.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        let unanswered = self.pings.front().map_or(Duration::ZERO, |(_, sent)| now.duration_since(*sent));
        unanswered.max(now.duration_since(self.heard_at))
    }

    /// The time after the last bytes before a pause when a probe is due; `None` on a short path.
    pub(super) fn probe_after(&self) -> Option<Duration> {
        self.min_rtt.filter(|rtt| *rtt >= PROBED_FROM).map(|rtt| rtt / 2)
    }

    /// A window that was used up faster than this was limited by the round trip, not by its reader.
    pub(super) fn limits_within(&self) -> Duration {
        2 * self.rtt.unwrap_or(UNKNOWN_ROUND_TRIP)
    }

    /// Bytes that the path itself holds. A larger window only moves bytes from the socket into our memory.
    pub(super) fn capacity(&self) -> u32 {
        self.min_rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * FASTEST) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_answer_gives_the_round_trip_and_the_shortest_is_kept() {
        let start = Instant::now();
        let mut path = Path::new(start);
        assert_eq!((path.rtt(), path.capacity(), path.probe_after()), (None, 0, None));
        let first = path.ping(start).expect("a number");
        path.answered(first, start + ms(20));
        let second = path.ping(start + ms(100)).expect("a number");
        path.answered(second, start + ms(150));
        assert_eq!(path.rtt(), Some(ms(50)));
        assert_eq!(path.probe_after(), Some(ms(10)), "half of the shortest");
        assert_eq!(path.capacity(), 20_000_000);
        assert_eq!(path.limits_within(), ms(100));
    }

    #[test]
    fn short_paths_are_not_probed() {
        let start = Instant::now();
        let mut path = Path::new(start);
        let number = path.ping(start).expect("a number");
        path.answered(number, start + ms(9));
        assert_eq!(path.probe_after(), None);
    }

    #[test]
    fn silence_counts_from_the_last_byte_or_the_oldest_ping_without_an_answer() {
        let start = Instant::now();
        let mut path = Path::new(start);
        assert_eq!(path.silence(start + ms(5)), ms(5));
        let number = path.ping(start + ms(10)).expect("a number");
        path.heard(start + ms(100));
        assert_eq!(path.silence(start + ms(110)), ms(100), "it talks but does not answer");
        path.answered(number, start + ms(110));
        assert_eq!(path.silence(start + ms(110)), ms(10));
    }

    #[test]
    fn answers_to_pings_that_were_never_sent_are_no_round_trip() {
        let start = Instant::now();
        let mut path = Path::new(start);
        path.answered(0, start);
        path.ping(start);
        path.answered(7, start + ms(1));
        assert_eq!(path.rtt(), None);
    }

    #[test]
    fn pings_without_an_answer_are_bounded() {
        let start = Instant::now();
        let mut path = Path::new(start);
        assert_eq!((0..100).filter_map(|_| path.ping(start)).count(), MAX_UNANSWERED);
    }
}
