//! What a client's handles and its supervisor share.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use retunnel_link::Link;
use retunnel_proto::message::Refusal;
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{ConnectError, TunnelError},
    event::{self, Event, SessionInfo},
    spec::{TunnelInfo, TunnelSpec},
    stats::Stats,
    tap::Observer,
};

/// Requests of the handles to the supervisor.
#[derive(Debug)]
pub(crate) enum Command {
    Open(u64),
    Close(u64),
}

/// A tunnel, as the supervisor knows it.
pub(crate) struct Entry {
    pub(crate) spec: TunnelSpec,
    /// Set when it has been open: what is requested again after a reconnect.
    pub(crate) info: Option<TunnelInfo>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) waiter: Option<oneshot::Sender<Result<TunnelInfo, TunnelError>>>,
    pub(crate) closed: watch::Sender<Option<Refusal>>,
    /// Set after a temporary refusal.
    pub(crate) retry: Option<Retry>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) tunnels: BTreeMap<u64, Entry>,
    pub(crate) next_key: u64,
    pub(crate) session: Option<SessionInfo>,
    /// The native session's link, for its round-trip times.
    pub(crate) link: Option<Link>,
    /// Why the supervisor gave up.
    pub(crate) ended: Option<ConnectError>,
}

/// Shared by the client, its tunnels and the supervisor.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Notified when `session` or `ended` changes.
    pub(crate) changed: Notify,
    /// Bounded by the number of tunnels: each has at most two commands.
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// Visitors that were refused for want of file descriptors.
    pub(crate) refusals: Refusals,
    pub(crate) closing: CancellationToken,
    pub(crate) done: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(commands: mpsc::UnboundedSender<Command>, observer: Option<Arc<dyn Observer>>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            commands,
            events: broadcast::channel(event::QUEUE).0,
            observer,
            refusals: Refusals::default(),
            closing: CancellationToken::new(),
            done: CancellationToken::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the client's state")
    }

    pub(crate) fn emit(&self, event: Event) {
        // There may be no listener.
        let _ = self.events.send(event);
    }

    /// Why the client ended.
    pub(crate) fn ended(&self) -> ConnectError {
        self.lock().ended.clone().unwrap_or(ConnectError::Closed)
    }

    pub(crate) fn remove(&self, key: u64) {
        self.lock().tunnels.remove(&key);
    }
}

/// Counts what may happen hundreds of times a second and is reported rarely.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<(u64, Option<Instant>)>);

impl Refusals {
    /// Time between two reports.
    const INTERVAL: Duration = Duration::from_secs(10);

    /// Counts one. Returns how many were not reported yet, if a report is due.
    pub(crate) fn count(&self) -> Option<u64> {
        let (count, reported) = &mut *self.0.lock().expect("no code panics while it holds the count");
        *count += 1;
        if reported.is_some_and(|at| at.elapsed() < Self::INTERVAL) {
            return None;
        }
        *reported = Some(Instant::now());
        Some(std::mem::take(count))
    }
}

/// When a tunnel is requested again after a temporary refusal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) at: Instant,
    pub(crate) pause: Duration,
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_refusals_are_reported_rarely_and_none_is_forgotten() {
        let refusals = Refusals::default();
        assert_eq!(refusals.count(), Some(1));
        for _ in 0..400 {
            assert_eq!(refusals.count(), None);
        }
        advance(Refusals::INTERVAL).await;
        assert_eq!(refusals.count(), Some(401));
        assert_eq!(refusals.count(), None);
    }
}
