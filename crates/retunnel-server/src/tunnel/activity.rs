//! What visitors did on a tunnel.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use retunnel_proto::{
    TunnelId,
    message::{RequestSummary, Requests},
};
use tokio::sync::Notify;

/// What visitors did on a tunnel, collected until its session reports it.
#[derive(Debug)]
pub(crate) struct Activity {
    total: AtomicU64,
    failed: AtomicU64,
    reported: AtomicU64,
    recent: Mutex<Vec<RequestSummary>>,
    /// Shared by all tunnels of a session.
    changed: Arc<Notify>,
}

impl Activity {
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self {
            total: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            recent: Mutex::default(),
            changed,
        }
    }

    /// Counts a finished request or connection. `summary` is made only while there is room for it.
    pub(crate) fn record(&self, is_failed: bool, summary: impl FnOnce() -> RequestSummary) {
        self.failed.fetch_add(is_failed.into(), Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut recent = self.recent.lock().expect("no code panics while it holds the list");
        if recent.len() < Requests::MAX_RECENT {
            recent.push(summary());
        }
        if recent.len() == 1 {
            self.changed.notify_one();
        }
    }

    /// Wakes the session.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// The report since the last call, if anything happened.
    pub(crate) fn take(&self, tunnel_id: &TunnelId) -> Option<Requests> {
        let recent = std::mem::take(&mut *self.recent.lock().expect("no code panics while it holds the list"));
        let total = self.total.load(Ordering::Relaxed);
        (self.reported.swap(total, Ordering::Relaxed) != total).then(|| Requests {
            tunnel_id: tunnel_id.clone(),
            total,
            failed: Some(self.failed.load(Ordering::Relaxed)),
            recent,
        })
    }
}
