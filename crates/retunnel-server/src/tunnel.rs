//! One live tunnel: what the edge needs to serve its visitors, and what its session wants to know about them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use retunnel_proto::{
    TunnelId,
    message::{Refusal, RequestSummary, Requests, TunnelProtocol},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::AccountId,
    control::{native::NativeUpstream, v2::V2Upstream, v3::V3Upstream},
    edge::{access::BasicAuth, origin::LocalOrigin},
    registry::Key,
};

/// Where a tunnel's visitors are sent.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// Streams of a native link.
    Native(NativeUpstream),
    /// A data socket per request.
    V2(V2Upstream),
    /// Streams of a 3.x session.
    V3(V3Upstream),
}

/// One public address while a session serves it.
pub(crate) struct Tunnel {
    /// Stable over reconnects.
    pub(crate) id: TunnelId,
    /// The leased address.
    pub(crate) key: Key,
    pub(crate) protocol: TunnelProtocol,
    pub(crate) account: AccountId,
    /// Public address to show to people.
    pub(crate) url: String,
    /// What visitors must know.
    pub(crate) access: Option<BasicAuth>,
    /// What the local service takes for its public address, when not the public one.
    pub(crate) local_origin: Option<LocalOrigin>,
    pub(crate) upstream: Upstream,
    pub(crate) activity: Activity,
    /// Ends the tunnel's relays; cancelled when the server stops, too.
    pub(crate) closed: CancellationToken,
    /// Why the server closed it.
    pub(crate) refusal: OnceLock<Refusal>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("id", &self.id).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Ends the tunnel from the server's side; its session tells the client.
    pub(crate) fn close(&self, refusal: Refusal) {
        let _ = self.refusal.set(refusal);
        self.closed.cancel();
        self.activity.wake();
    }
}

/// What visitors did on a tunnel, gathered until its session reports it.
#[derive(Debug)]
pub(crate) struct Activity {
    total: AtomicU64,
    reported: AtomicU64,
    recent: Mutex<Vec<RequestSummary>>,
    /// Shared by all tunnels of a session.
    changed: Arc<Notify>,
}

impl Activity {
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self { total: AtomicU64::new(0), reported: AtomicU64::new(0), recent: Mutex::default(), changed }
    }

    /// Counts a finished request or connection. `summary` is made only while there is room for it.
    pub(crate) fn record(&self, summary: impl FnOnce() -> RequestSummary) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut recent = self.recent.lock().expect("no code panics while it holds the list");
        if recent.len() < Requests::MAX_RECENT {
            recent.push(summary());
        }
        if recent.len() == 1 {
            self.changed.notify_one();
        }
    }

    fn wake(&self) {
        self.changed.notify_one();
    }

    /// The report since the last call, if anything happened.
    pub(crate) fn take(&self, tunnel_id: &TunnelId) -> Option<Requests> {
        let recent = std::mem::take(&mut *self.recent.lock().expect("no code panics while it holds the list"));
        let total = self.total.load(Ordering::Relaxed);
        (self.reported.swap(total, Ordering::Relaxed) != total).then(|| Requests {
            tunnel_id: tunnel_id.clone(),
            total,
            recent,
        })
    }
}
