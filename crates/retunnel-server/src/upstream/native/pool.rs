//! Connections to the local service that wait for their next request.
//!
//! A connection may carry one visitor's bytes into another's request only if the local service left some unread: part of a
//! body that it did not read, or the payload of an upgrade that it refused. So a connection that ever carried such a request
//! is private to the visitor's connection that used it. All others are shared.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use retunnel_link::LinkStream;
use retunnel_proto::TunnelId;
use tokio::{io::AsyncReadExt, time::Instant};
use tracing::info;

use crate::tunnel::upstream::ConnectionId;

/// Idle connections that a tunnel keeps. More help only more visitors at the same instant.
const MAX_IDLE: usize = 1024;
/// How long an idle connection is kept. Shorter than the shortest keep-alive timeout among common servers (Node: 5 s), so
/// that this side closes first.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// A connection that was used so recently is not about to be closed for idleness: common servers wait at least two seconds
/// (gunicorn). Servers that close for another reason announce it in their last answer.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// Who may use a connection for the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Every visitor.
    Everyone,
    /// The requests of one visitor's connection.
    Only(ConnectionId),
}

/// A tunnel's idle connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Idle>,
    /// The local service has served two connections that were open at the same time.
    serves_many: AtomicBool,
}

/// Signs after which a service counts as one that serves one connection at a time.
const SERIAL_SIGNS: usize = 2;

#[derive(Debug, Default)]
struct Idle {
    /// Signs that the local service serves one connection at a time.
    serial_signs: usize,
    /// Newest last.
    shared: Vec<(LinkStream, Instant)>,
    /// At most one for each visitor's connection, which has one request at a time.
    private: HashMap<ConnectionId, (LinkStream, Instant)>,
}

impl Idle {
    /// Whether another connection is alive: one that was answered before and is still open.
    fn has_another(&mut self) -> bool {
        while let Some((stream, since)) = self.shared.pop() {
            if let Some(stream) = alive(stream) {
                self.shared.push((stream, since));
                return true;
            }
        }
        let Some(visitor) = self.private.keys().next().copied() else { return false };
        let (stream, since) = self.private.remove(&visitor).expect("it is listed");
        let stream = alive(stream);
        let is_alive = stream.is_some();
        self.private.extend(stream.map(|stream| (visitor, (stream, since))));
        is_alive
    }
}

impl Pool {
    /// A connection that is alive, and whether it is private. A request that is not `repeatable` gets one that was used a
    /// moment ago, or none.
    pub(super) fn take(&self, visitor: Option<ConnectionId>, repeatable: bool) -> Option<(LinkStream, Share)> {
        if let Some(visitor) = visitor
            && let Some((stream, since)) = self.take_private(visitor)
        {
            let at_most = if repeatable { KEEP_IDLE } else { SURELY_ALIVE };
            if let Some(Some(stream)) = (since.elapsed() < at_most).then(|| alive(stream)) {
                return Some((stream, Share::Only(visitor)));
            }
        }
        loop {
            let (stream, since) =
                self.lock().shared.pop_if(|(_, since)| repeatable || since.elapsed() < SURELY_ALIVE)?;
            if since.elapsed() > KEEP_IDLE {
                // The others are older.
                stream.finish();
                self.sweep();
                return None;
            }
            if let Some(stream) = alive(stream) {
                return Some((stream, Share::Everyone));
            }
        }
    }

    fn take_private(&self, visitor: ConnectionId) -> Option<(LinkStream, Instant)> {
        let mut idle = self.lock();
        if idle.private.is_empty() { None } else { idle.private.remove(&visitor) }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, stream: LinkStream, share: Share) {
        if stream.is_on_lane() {
            // Its next requests are most likely small, and those share the link.
            return stream.finish();
        }
        stream.begin_exchange();
        let mut idle = self.lock();
        if idle.serial_signs >= SERIAL_SIGNS {
            return stream.finish();
        }
        if !self.serves_many() && idle.has_another() {
            self.serves_many.store(true, Relaxed);
        }
        if idle.shared.len() + idle.private.len() >= MAX_IDLE {
            return;
        }
        let entry = (stream, Instant::now());
        match share {
            Share::Everyone => idle.shared.push(entry),
            Share::Only(visitor) => drop(idle.private.insert(visitor, entry)),
        }
    }

    /// Whether the local service is known to serve several connections at a time.
    pub(super) fn serves_many(&self) -> bool {
        self.serves_many.load(Relaxed)
    }

    /// Closes the connection that became idle last; says whether there was one.
    pub(super) fn close_newest(&self) -> bool {
        let mut idle = self.lock();
        let private =
            idle.private.iter().max_by_key(|(_, (_, since))| *since).map(|(visitor, (_, since))| (*visitor, *since));
        let shared = idle.shared.last().map(|(_, since)| *since);
        let newest = match private {
            Some((visitor, since)) if shared.is_none_or(|shared| shared < since) => idle.private.remove(&visitor),
            _ => idle.shared.pop(),
        };
        newest.map(|(stream, _)| stream.finish()).is_some()
    }

    /// A new connection was answered right after an idle one was closed. After some such signs no connection is kept.
    pub(super) fn seems_serial(&self, tunnel: &TunnelId) {
        let mut idle = self.lock();
        idle.serial_signs += 1;
        if idle.serial_signs == SERIAL_SIGNS {
            info!(%tunnel, "the local service serves one connection at a time: connections to it are not kept");
            idle.shared.drain(..).for_each(|(stream, _)| stream.finish());
            idle.private.drain().for_each(|(_, (stream, _))| stream.finish());
        }
    }

    /// Closes what was idle for too long.
    pub(super) fn sweep(&self) {
        let mut idle = self.lock();
        let old = idle.shared.iter().take_while(|(_, since)| since.elapsed() > KEEP_IDLE).count();
        idle.shared.drain(..old).for_each(|(stream, _)| stream.finish());
        let old = idle.private.extract_if(|_, (_, since)| since.elapsed() > KEEP_IDLE);
        old.for_each(|(_, (stream, _))| stream.finish());
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().expect("no code panics while it holds the list")
    }
}

/// The connection, unless bytes, an end or a reset arrived while it was idle: it cannot be used then.
fn alive(mut stream: LinkStream) -> Option<LinkStream> {
    stream.read_u8().now_or_never().is_none().then_some(stream)
}
