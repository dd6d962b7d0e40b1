//! Statistics of a tunnel or a client, cheap to update and to read at any time.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use retunnel_proto::message::{RequestSummary, Requests};
use tokio::time::Instant;

/// Requests that are kept for the live view.
const RECENT: usize = 50;

/// Statistics of a tunnel, or of all tunnels of a client.
#[doc(alias = "TunnelStats")]
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Bytes from visitors to the local service.
    pub bytes_in: u64,
    /// Bytes from the local service to visitors.
    pub bytes_out: u64,
    /// Requests (HTTP) or connections (TCP) of visitors, as the server counted them.
    pub requests: u64,
    /// Connections to the local service that are open now.
    pub open_connections: u64,
    /// Connections to the local service since the start.
    pub connections: u64,
    /// Requests or connections of visitors that failed ([`RequestSummary::is_failed`]).
    pub errors: u64,
    /// Time since the tunnel or client was created.
    pub uptime: Duration,
    /// The last requests, oldest first.
    pub recent: Vec<RequestSummary>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Requests of earlier sessions, and the server's count of this one.
    earlier: u64,
    current: u64,
    /// The same for those that failed.
    failed_earlier: u64,
    failed: u64,
    recent: VecDeque<RequestSummary>,
}

impl Seen {
    fn count_failed(&mut self, requests: &[RequestSummary]) {
        self.failed += requests.iter().filter(|request| request.is_failed()).count() as u64;
    }

    fn remember(&mut self, request: RequestSummary) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(request);
    }
}

#[derive(Debug)]
pub(crate) struct Stats {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    open: AtomicU64,
    connections: AtomicU64,
    seen: Mutex<Seen>,
    started: Instant,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            open: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            seen: Mutex::default(),
            started: Instant::now(),
        }
    }
}

impl Stats {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no code panics while it holds the list")
    }

    pub(crate) fn add_bytes(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        self.bytes_out.fetch_add(bytes_out, Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// The server counts from zero again.
    pub(crate) fn new_session(&self) {
        let mut seen = self.seen();
        seen.earlier += std::mem::take(&mut seen.current);
        seen.failed_earlier += std::mem::take(&mut seen.failed);
    }

    pub(crate) fn report(&self, report: &Requests) {
        let mut seen = self.seen();
        seen.current = seen.current.max(report.total);
        match report.failed {
            Some(failed) => seen.failed = seen.failed.max(failed),
            None => seen.count_failed(&report.recent),
        }
        for request in &report.recent {
            seen.remember(request.clone());
        }
    }

    /// Counts a request on this side, because the server's dialect has no reports.
    pub(crate) fn request(&self, request: RequestSummary) {
        let mut seen = self.seen();
        seen.current += 1;
        seen.count_failed(std::slice::from_ref(&request));
        seen.remember(request);
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let seen = self.seen();
        StatsSnapshot {
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            requests: seen.earlier + seen.current,
            open_connections: self.open.load(Relaxed),
            connections: self.connections.load(Relaxed),
            errors: seen.failed_earlier + seen.failed,
            uptime: self.started.elapsed(),
            recent: seen.recent.iter().cloned().collect(),
        }
    }
}

impl StatsSnapshot {
    /// Adds the counts of another tunnel.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.requests += other.requests;
        self.open_connections += other.open_connections;
        self.connections += other.connections;
        self.errors += other.errors;
        self.recent.extend(other.recent);
    }
}
