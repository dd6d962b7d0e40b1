//! Visitors of TCP tunnels, and the public ports where they arrive.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use retunnel_link::StreamReset;
use retunnel_proto::message::RequestSummary;
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::Edge;
use crate::{
    clock::unix_millis,
    net::{accept, socket::Socket},
    registry::{Found, Ports},
    running::guarded,
    tunnel::{Tunnel, address::PublicAddress, upstream::Moved},
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The open public ports. They are bound here, so that a lease is refused when its port cannot be; [`serve`] accepts.
#[derive(Debug)]
pub(crate) struct PublicPorts {
    bind: IpAddr,
    open: Mutex<HashMap<u16, CancellationToken>>,
    /// At most one for each port of the range.
    opened: mpsc::UnboundedSender<OpenedPort>,
}

/// A port that was bound and has to be served.
#[derive(Debug)]
pub(crate) struct OpenedPort {
    listener: TcpListener,
    port: u16,
    closed: CancellationToken,
}

impl PublicPorts {
    /// No open ports on this address, and those that will be opened.
    pub(crate) fn new(bind: IpAddr) -> (Self, mpsc::UnboundedReceiver<OpenedPort>) {
        let (opened, receiver) = mpsc::unbounded_channel();
        (Self { bind, open: Mutex::default(), opened }, receiver)
    }
}

impl Ports for PublicPorts {
    fn leased(&self, port: u16) -> io::Result<()> {
        let mut open = self.open.lock().expect("no code panics while it holds the ports");
        if open.contains_key(&port) {
            return Ok(());
        }
        let listener = accept::listen(SocketAddr::new(self.bind, port), BACKLOG)?;
        let closed = CancellationToken::new();
        let opened = OpenedPort { listener, port, closed: closed.clone() };
        self.opened.send(opened).map_err(|_| io::Error::other("the server is stopping"))?;
        open.insert(port, closed);
        Ok(())
    }

    fn freed(&self, port: u16) {
        if let Some(closed) = self.open.lock().expect("no code panics while it holds the ports").remove(&port) {
            closed.cancel();
        }
    }
}

/// Serves every port that is opened until the server drains.
pub(crate) async fn serve(edge: Arc<Edge>, mut opened: mpsc::UnboundedReceiver<OpenedPort>) {
    loop {
        // Both arms are cancel-safe.
        let port = tokio::select! {
            port = opened.recv() => port,
            () = edge.running.draining.cancelled() => return,
        };
        let Some(port) = port else { return };
        edge.running.tasks.spawn(accept_all(Arc::clone(&edge), port));
    }
}

async fn accept_all(edge: Arc<Edge>, opened: OpenedPort) {
    let OpenedPort { listener, port, closed } = opened;
    info!(port, "public port opened");
    loop {
        // Every arm is cancel-safe.
        let (visitor, peer) = tokio::select! {
            accepted = accept::next(&listener) => accepted,
            () = edge.running.draining.cancelled() => break,
            () = closed.cancelled() => break,
        };
        let Some(place) = edge.places.enter(peer.ip(), false) else {
            debug!(port, %peer, "too many connections");
            visitor.abort();
            continue;
        };
        // A silent connection of this kind may be in use for hours.
        place.set_busy();
        let this = Arc::clone(&edge);
        edge.running.relays.spawn(guarded("visitor of a port", peer, async move {
            serve_visitor(&this, visitor, peer, port).await;
            drop(place);
        }));
    }
    info!(port, "public port closed");
}

async fn serve_visitor(edge: &Edge, mut visitor: Socket, peer: SocketAddr, port: u16) {
    let started = (Instant::now(), unix_millis());
    let hold = edge.config.limits.hold_visitors;
    let address = PublicAddress::Port(port);
    let found = tokio::select! {
        found = edge.registry.find(&address, started.0, hold) => found,
        () = edge.running.draining.cancelled() => Found::Free,
    };
    let Found::Live(tunnel) = found else {
        debug!(port, %peer, "no client serves this port");
        return visitor.abort();
    };
    let moved = Moved::default();
    let result = relay(&tunnel, &mut visitor, peer, &moved).await;
    let error = match &result {
        Ok(()) => String::new(),
        Err(error) => {
            visitor.abort();
            debug!(port, %peer, %error, "connection failed");
            match StreamReset::of(error) {
                Some(reset) => reset.reason.clone(),
                None => error.to_string(),
            }
        }
    };
    tunnel.activity.record(!error.is_empty(), || {
        let mut summary = RequestSummary::default();
        summary.duration_ms = u32::try_from(started.0.elapsed().as_millis()).unwrap_or(u32::MAX);
        summary.bytes_out = moved.down();
        summary.bytes_in = moved.up();
        summary.started_ms = started.1;
        summary.visitor = peer.to_string();
        summary.error = error;
        summary
    });
    if result.is_err() {
        // What the visitor was sent arrives before the reset.
        tokio::select! {
            () = visitor.last_bytes_sent() => {}
            () = edge.running.stopping.cancelled() => {}
        }
    }
}

async fn relay(tunnel: &Tunnel, visitor: &mut Socket, peer: SocketAddr, moved: &Moved) -> io::Result<()> {
    if let Err(denied) = tunnel.policy.on_tcp_connect(peer.ip()) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("denied by a rule: {}", denied.code.as_str()),
        ));
    }
    // Both arms are cancel-safe: dropping the relay resets its stream.
    tokio::select! {
        result = tunnel.upstream.relay(visitor, peer, moved) => result,
        () = tunnel.closed.cancelled() => Err(io::Error::other("the tunnel was closed")),
    }
}
