//! Connects to a name with several addresses (RFC 8305): address families take turns, and an attempt that hangs delays
//! the next one by a quarter of a second only.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout_at},
};

/// Pause between the starts of two attempts while none has ended (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// One address and the result of connecting to it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) address: SocketAddr,
    pub(crate) result: io::Result<TcpStream>,
    pub(crate) took: Duration,
}

/// Attempts to connect to the addresses of one name.
pub(crate) struct Race {
    waiting: VecDeque<SocketAddr>,
    running: FuturesUnordered<BoxFuture<'static, Attempt>>,
    /// When the next attempt starts, even if none has ended.
    next_start: Instant,
    deadline: Instant,
}

impl Race {
    /// Attempts that all end within `limit`.
    pub(crate) fn new(addresses: &[SocketAddr], limit: Duration) -> Self {
        let now = Instant::now();
        let waiting = interleaved(addresses).into();
        Self { waiting, running: FuturesUnordered::new(), next_start: now, deadline: now + limit }
    }

    /// The next attempt that ends, with or without success; `None` after the last. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Attempt> {
        loop {
            if self.running.is_empty() || self.next_start <= Instant::now() {
                self.start();
            }
            tokio::select! {
                attempt = self.running.next() => {
                    if attempt.as_ref().is_some_and(|attempt| attempt.result.is_err()) {
                        self.next_start = Instant::now();
                    }
                    return attempt;
                }
                () = sleep_until(self.next_start), if !self.waiting.is_empty() => {}
            }
        }
    }

    /// Starts all attempts that have not started yet.
    pub(crate) fn start_all(&mut self) {
        while !self.waiting.is_empty() {
            self.start();
        }
    }

    fn start(&mut self) {
        let Some(address) = self.waiting.pop_front() else { return };
        let (now, deadline) = (Instant::now(), self.deadline);
        self.next_start = now + HEAD_START;
        let attempt = async move {
            let connected = timeout_at(deadline, TcpStream::connect(address)).await;
            let result = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            Attempt { address, result, took: now.elapsed() }
        };
        self.running.push(attempt.boxed());
    }
}

/// The first connection to any of the addresses, within `limit`.
///
/// # Errors
/// The most informative failure: a refusal comes from the host itself, a timeout can have any cause.
pub(crate) async fn connect(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let rank = |error: &io::Error| match error.kind() {
        _ if is_out_of_descriptors(error) => 3,
        io::ErrorKind::ConnectionRefused => 2,
        io::ErrorKind::TimedOut => 1,
        _ => 0,
    };
    let mut race = Race::new(addresses, limit);
    let mut failure: Option<io::Error> = None;
    while let Some(Attempt { result, .. }) = race.next().await {
        match result {
            Ok(socket) => return Ok(socket),
            Err(error) if failure.as_ref().is_none_or(|known| rank(known) < rank(&error)) => failure = Some(error),
            Err(_) => {}
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// Whether the process or the machine has no file descriptor left, which says nothing about the other side.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    /// `EMFILE` and `ENFILE`; `WSAEMFILE`.
    const CODES: &[i32] = if cfg!(windows) { &[10024] } else { &[24, 23] };
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

/// The same addresses in the order to try: the system's, but the two families take turns (RFC 8305, section 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let (mut same, mut other): (VecDeque<SocketAddr>, VecDeque<SocketAddr>) =
        addresses.iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let mut ordered = Vec::with_capacity(addresses.len());
    while !(same.is_empty() && other.is_empty()) {
        ordered.extend(same.pop_front());
        ordered.extend(other.pop_front());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns_from_the_systems_first() {
        for (given, ordered) in [
            (&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"][..], &["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"][..]),
            (&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"], &["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]),
            (&["1.1.1.1:1"], &["1.1.1.1:1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(&addresses(given)), addresses(ordered));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_more_informative_than_other_failures() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = closed.local_addr().expect("bound").port();
        drop(closed);
        let nowhere = SocketAddr::from(([255, 255, 255, 255], port));
        let error = connect(&[nowhere, SocketAddr::from(([127, 0, 0, 1], port))], Duration::from_secs(5)).await;
        assert_eq!(error.expect_err("closed").kind(), io::ErrorKind::ConnectionRefused);
        let error = connect(&[], Duration::from_secs(5)).await.expect_err("no address");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
