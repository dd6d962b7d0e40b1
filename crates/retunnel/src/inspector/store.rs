//! The newest exchanges, in memory only and within a budget: the oldest are dropped first.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use tokio::{sync::broadcast, time::Instant};

use super::record::Record;

/// Maximum number of exchanges.
const MAX_EXCHANGES: usize = 1000;
/// Maximum bytes of all exchanges together.
const MAX_MEMORY: usize = 32 * 1024 * 1024;
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
    pub(crate) fn begin(&self, tunnel: &str, head: &[u8], replay_of: Option<u64>) -> Option<Arc<Entry>> {
        if self.paused.load(Relaxed) {
            return None;
        }
        let record = Record::new(tunnel, head, replay_of, SystemTime::now(), Instant::now());
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
        self.charge(&entry, cost);
        self.notify(Change::Exchange(entry.id));
        Some(entry)
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
            let mut capture = recorder.request("web", HEAD).expect("not paused");
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
            store.begin("web", HEAD, None).expect("not paused");
        }
        let all = store.all();
        assert_eq!((all.len(), all[0].id), (MAX_EXCHANGES, 11));
        store.pause(true);
        assert!(store.begin("web", HEAD, None).is_none());
    }
}
