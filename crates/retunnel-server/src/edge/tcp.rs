//! Public ports of TCP tunnels. A port stays open while its lease is held, so that visitors wait for the owner instead
//! of being refused.

mod v3;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use retunnel_link::{Pump, StreamReset};
use retunnel_proto::message::{RequestSummary, TunnelProtocol};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    core::Core,
    edge::{
        accept::{self, unix_millis},
        relay,
        socket::Socket,
    },
    guarded::guarded,
    registry::{Found, Key},
    tunnel::{Tunnel, Upstream},
};

use v3::Moved;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Opens a public port and serves it until the returned token is cancelled.
///
/// # Errors
/// When the port cannot be bound.
pub(crate) fn listen(core: &Arc<Core>, port: u16) -> io::Result<CancellationToken> {
    let address = SocketAddr::new(core.config.tcp_bind(), port);
    let listener = accept::listen(address, BACKLOG)?;
    let stop = core.stopping.child_token();
    core.tasks.spawn(serve(Arc::clone(core), listener, port, stop.clone()));
    Ok(stop)
}

async fn serve(core: Arc<Core>, listener: TcpListener, port: u16, stop: CancellationToken) {
    info!(port, "public port opened");
    loop {
        // Both arms are cancel-safe.
        let accepted = tokio::select! {
            accepted = accept::next(&listener) => accepted,
            () = core.draining.cancelled() => break,
            () = stop.cancelled() => break,
        };
        let (visitor, peer) = accepted;
        let Ok(permit) = Arc::clone(&core.visitors).try_acquire_owned() else {
            debug!(port, %peer, "too many connections");
            visitor.abort();
            continue;
        };
        let this = Arc::clone(&core);
        core.relays.spawn(guarded("visitor of a port", peer, async move {
            serve_visitor(&this, visitor, peer, port).await;
            drop(permit);
        }));
    }
    info!(port, "public port closed");
}

async fn serve_visitor(core: &Arc<Core>, mut visitor: Socket, peer: SocketAddr, port: u16) {
    let started = (Instant::now(), unix_millis());
    let hold = core.config.limits.hold_visitors;
    let Found::Live(tunnel) = core.registry.find(&Key::Port(port), started.0, hold).await else {
        debug!(port, %peer, "no client serves this port");
        return visitor.abort();
    };
    let (mut up, mut down) = (Pump::default(), Pump::default());
    let moved = Moved::default();
    let outcome = connect(&tunnel, &mut visitor, peer, (&mut up, &mut down, &moved)).await;
    let error = match &outcome {
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
    tunnel.activity.record(|| RequestSummary {
        method: String::new(),
        path: String::new(),
        status: 0,
        duration_ms: u32::try_from(started.0.elapsed().as_millis()).unwrap_or(u32::MAX),
        bytes_out: down.moved() + moved.down.load(Relaxed),
        bytes_in: up.moved() + moved.up.load(Relaxed),
        started_ms: started.1,
        visitor: peer.to_string(),
        error,
    });
}

async fn connect(
    tunnel: &Tunnel,
    visitor: &mut Socket,
    peer: SocketAddr,
    (up, down, moved): (&mut Pump, &mut Pump, &Moved),
) -> io::Result<()> {
    let relaying = async {
        match &tunnel.upstream {
            Upstream::Native(upstream) => {
                let stream = upstream.open(TunnelProtocol::Tcp, peer.to_string()).await.map_err(io::Error::other)?;
                relay::relay(visitor, &stream, up, down).await
            }
            Upstream::V3(upstream) => v3::relay(visitor, upstream, moved).await,
            Upstream::V2(_) => Err(io::Error::other("this client cannot carry TCP")),
        }
    };
    // Every arm is cancel-safe: dropping the stream resets it.
    tokio::select! {
        result = relaying => result,
        () = tunnel.closed.cancelled() => Err(io::Error::other("the tunnel was closed")),
    }
}
