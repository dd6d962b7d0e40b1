//! The newest exchanges, in memory only and within a budget: the oldest are dropped first.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use retunnel_client::RequestSummary;
use tokio::{sync::broadcast, time::Instant};

use super::record::{Record, Report};

/// Maximum number of exchanges.
const MAX_EXCHANGES: usize = 1000;
/// Maximum bytes of all exchanges together.
const MAX_MEMORY: usize = 32 * 1024 * 1024;
/// A retry follows at once: how many unanswered exchanges are remembered for it, and how long after they began.
const MAX_UNANSWERED: usize = 32;
const RETRIED_WITHIN: Duration = Duration::from_secs(10);
/// How many of the newest exchanges a report may be about.
const REPORTED_AMONG: usize = 256;
/// Bytes up to which a reported path is whole.
const REPORTED_PATH: usize = 256;
/// Changes that a slow page may lag behind before it reloads everything.
const MAX_CHANGES: usize = 1024;

/// A change that pages are notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// An exchange began or progressed.
    Exchange(u64),
    /// The list was cleared, or capturing was paused or resumed.
    State,
}

/// The captured exchanges.
#[derive(Debug)]
pub(crate) struct Store {
    ring: Mutex<VecDeque<Arc<Entry>>>,
    /// The newest exchanges whose connection closed without an answer; the server may repeat them.
    unanswered: Mutex<VecDeque<Arc<Entry>>>,
    used: AtomicUsize,
    next: AtomicU64,
    paused: AtomicBool,
    pub(crate) body_limit: usize,
    changes: broadcast::Sender<Change>,
}

/// One exchange, held by the store and by its capture.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    record: Mutex<Record>,
    /// Bytes it is charged for.
    cost: AtomicUsize,
    /// The store dropped it; nothing more is captured.
    evicted: AtomicBool,
}

impl Entry {
    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no code panics while it holds an exchange")
    }

    /// A copy, so that work on it does not make the exchange wait.
    pub(crate) fn snapshot(&self) -> Record {
        self.record().clone()
    }

    pub(crate) fn is_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }
}

impl Store {
    pub(crate) fn new(body_limit: usize) -> Self {
        Self {
            ring: Mutex::default(),
            unanswered: Mutex::default(),
            used: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            paused: AtomicBool::new(false),
            body_limit,
            changes: broadcast::channel(MAX_CHANGES).0,
        }
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.ring.lock().expect("no code panics while it holds the list")
    }

    /// Adds an exchange; `None` while paused.
    pub(crate) fn begin(
        &self,
        tunnel: &str,
        head: &[u8],
        replay_of: Option<u64>,
        began: Instant,
    ) -> Option<Arc<Entry>> {
        if self.paused.load(Relaxed) {
            return None;
        }
        let started = SystemTime::now() - began.elapsed();
        let mut record = Record::new(tunnel, head, replay_of, started, began);
        let repeated = if replay_of.is_none() { self.repeated(tunnel, head) } else { None };
        record.retry_of = repeated.as_ref().map(|entry| entry.id);
        let cost = record.cost() + size_of::<Entry>();
        let entry = Arc::new(Entry {
            id: self.next.fetch_add(1, Relaxed),
            record: Mutex::new(record),
            cost: AtomicUsize::new(0),
            evicted: AtomicBool::new(false),
        });
        let oldest = {
            let mut ring = self.ring();
            ring.push_back(Arc::clone(&entry));
            if ring.len() > MAX_EXCHANGES { ring.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            self.evict(&oldest);
        }
        if let Some(repeated) = repeated {
            repeated.record().retried_as = Some(entry.id);
            self.notify(Change::Exchange(repeated.id));
        }
        self.charge(&entry, cost);
        self.notify(Change::Exchange(entry.id));
        Some(entry)
    }

    /// The exchange that the server repeats with this request: the same one, whose connection closed without an answer.
    fn repeated(&self, tunnel: &str, head: &[u8]) -> Option<Arc<Entry>> {
        let mut unanswered = self.unanswered();
        let position = unanswered.iter().position(|entry| {
            let record = entry.record();
            record.began.elapsed() < RETRIED_WITHIN && record.tunnel == tunnel && record.request().head == head
        });
        unanswered.remove(position?)
    }

    /// The connection of an exchange closed without an answer.
    pub(crate) fn note_unanswered(&self, entry: &Arc<Entry>) {
        let mut unanswered = self.unanswered();
        if unanswered.len() == MAX_UNANSWERED {
            unanswered.pop_front();
        }
        unanswered.push_back(Arc::clone(entry));
    }

    fn unanswered(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.unanswered.lock().expect("no code panics while it holds the list")
    }

    /// The server reports what a visitor got. Reports have no id of the exchange: it belongs to the oldest one with this
    /// request and status, or else to the oldest one without a complete answer.
    pub(crate) fn reported(&self, tunnel: &str, request: &RequestSummary) {
        let newest: Vec<_> = self.ring().iter().rev().take(REPORTED_AMONG).cloned().collect();
        // A long path is reported without its end.
        let end = if request.path.len() < REPORTED_PATH { " " } else { "" };
        let first_line = format!("{} {}{end}", request.method, request.path);
        let fit = |entry: &Arc<Entry>| {
            let record = entry.record();
            let is_done = record.response().ended.is_some();
            let is_open = record.over.is_none() && !is_done && record.failure.is_none();
            let is_known = record.report.is_some() || record.retried_as.is_some() || record.replay_of.is_some();
            let is_it = record.tunnel == tunnel && record.request().head.starts_with(first_line.as_bytes());
            let has_status = record.response().status() == request.status;
            (is_it && !is_open && !is_known).then_some((has_status, !is_done))
        };
        // The last of equals is the oldest.
        let best = newest.iter().filter_map(|entry| Some((fit(entry)?, entry))).max_by_key(|(fit, _)| *fit);
        if let Some((_, entry)) = best {
            let report = Report { status: request.status, error: request.error.clone() };
            entry.record().report = Some(report);
            self.notify(Change::Exchange(entry.id));
        }
    }

    /// Charges an exchange for more bytes. The caller must not hold a lock.
    pub(crate) fn charge(&self, entry: &Entry, bytes: usize) {
        entry.cost.fetch_add(bytes, Relaxed);
        if self.used.fetch_add(bytes, Relaxed) + bytes <= MAX_MEMORY {
            return;
        }
        while self.used.load(Relaxed) > MAX_MEMORY {
            let Some(oldest) = self.ring().pop_front() else { return };
            self.evict(&oldest);
        }
    }

    fn evict(&self, entry: &Entry) {
        let mut record = entry.record();
        entry.evicted.store(true, Relaxed);
        record.free();
        self.used.fetch_sub(entry.cost.swap(0, Relaxed), Relaxed);
    }

    /// Notifies pages, if there are any.
    pub(crate) fn notify(&self, change: Change) {
        if self.changes.receiver_count() > 0 {
            let _ = self.changes.send(change);
        }
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Entry>> {
        let ring = self.ring();
        ring.binary_search_by_key(&id, |entry| entry.id).ok().map(|at| Arc::clone(&ring[at]))
    }

    /// All exchanges, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.ring().iter().cloned().collect()
    }

    pub(crate) fn clear(&self) {
        self.unanswered().clear();
        let all = std::mem::take(&mut *self.ring());
        for entry in all {
            self.evict(&entry);
        }
        self.notify(Change::State);
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
        self.notify(Change::State);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use retunnel_client::tap::{Observer, Side};

    use super::{super::capture::Recorder, *};

    const HEAD: &[u8] = b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn memory_stays_within_the_budget_and_the_oldest_are_dropped_first() {
        let store = Arc::new(Store::new(256 * 1024));
        let piece = vec![7; 64 * 1024];
        let recorder = Recorder::new(Arc::clone(&store), None);
        let mut open = Vec::new();
        for _ in 0..400 {
            let mut capture = recorder.request("web", HEAD, Instant::now()).expect("not paused");
            for side in [Side::Request, Side::Response] {
                for _ in 0..8 {
                    capture.body(side, &piece);
                }
            }
            open.push(capture);
        }
        let used = store.used.load(Relaxed);
        assert!(used <= MAX_MEMORY, "{used}");
        assert!(used > MAX_MEMORY / 2, "{used}");
        let all = store.all();
        assert_eq!(all.last().map(|entry| entry.id), Some(400));
        assert!(store.find(1).is_none() && store.find(400).is_some());
        let held: usize =
            all.iter().map(|entry| entry.record().parts.iter().map(|p| p.body.len()).sum::<usize>()).sum();
        assert_eq!(held, all.len() * 512 * 1024);
        // An evicted exchange captures nothing more.
        open[0].body(Side::Request, &piece);
        assert!(!open[0].wants(Side::Request));
        store.clear();
        drop(open);
        assert_eq!(store.used.load(Relaxed), 0);
    }

    #[test]
    fn many_small_ones_are_bounded_by_their_number() {
        let store = Arc::new(Store::new(1024));
        for _ in 0..MAX_EXCHANGES + 10 {
            store.begin("web", HEAD, None, Instant::now()).expect("not paused");
        }
        let all = store.all();
        assert_eq!((all.len(), all[0].id), (MAX_EXCHANGES, 11));
        store.pause(true);
        assert!(store.begin("web", HEAD, None, Instant::now()).is_none());
    }

    #[test]
    fn a_repeated_request_and_the_answer_of_the_visitor_are_found() {
        let store = Arc::new(Store::new(1024));
        let recorder = Recorder::new(Arc::clone(&store), None);
        let begin = || recorder.request("web", HEAD, Instant::now()).expect("not paused");
        // The kept connection was closed by the local service: the server repeats the request on another one.
        let mut first = begin();
        first.end(Side::Request);
        first.cut(Side::Response);
        let mut second = begin();
        second.response(b"HTTP/1.1 200 OK\r\n\r\n");
        second.end(Side::Response);
        second.end(Side::Request);
        let retried = |id| store.find(id).expect("kept").record().clone();
        assert_eq!((retried(1).retried_as, retried(2).retry_of), (Some(2), Some(1)));
        // One that was answered is not repeated.
        drop(begin());
        assert_eq!(retried(3).retry_of, None);
        let mut report = RequestSummary::default();
        (report.method, report.path, report.status) = ("POST".into(), "/x".into(), 502);
        report.error = "local_closed_early".into();
        store.reported("web", &report);
        assert!(retried(1).report.is_none() && retried(2).report.is_none());
        assert_eq!(retried(3).report.map(|report| report.status), Some(502));
        report.status = 200;
        store.reported("web", &report);
        assert_eq!(retried(2).report.map(|report| report.status), Some(200));
    }
}
