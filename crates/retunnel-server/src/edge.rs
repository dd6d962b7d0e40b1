//! Where visitors arrive. A *downstream* is how a visitor speaks ([`http1`]); the one *exchange* ([`exchange`]) couples it
//! with whatever carries the tunnel.

mod downstream;
mod exchange;
mod http1;
pub(crate) mod page;
mod route;
pub(crate) mod tcp;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use retunnel_proto::{
    http1::{request::RequestHead, tokens},
    limits::V2_MAX_REQUEST_BODY,
};
use tokio::sync::Semaphore;

use crate::{
    config::ServerConfig,
    limits::{ConnectionGate, waiting::Waiting},
    net::{handover::ApiRequest, socket::Socket, tls::Tls},
    registry::Registry,
    running::Running,
};

/// What visitors' connections share.
#[derive(Debug)]
pub(crate) struct Edge {
    config: Arc<ServerConfig>,
    registry: Arc<Registry>,
    running: Arc<Running>,
    /// The certificate, if there is one.
    tls: Option<Arc<Tls>>,
    gate: ConnectionGate,
    /// Visitors' connections that may still be accepted.
    pub(crate) visitors: Arc<Semaphore>,
    /// Request bodies that are kept whole for published clients.
    whole_bodies: Arc<Waiting>,
}

impl Edge {
    pub(crate) fn new(
        config: Arc<ServerConfig>,
        registry: Arc<Registry>,
        running: Arc<Running>,
        tls: Option<Arc<Tls>>,
        gate: ConnectionGate,
    ) -> Self {
        let limits = &config.limits;
        Self {
            visitors: Arc::new(Semaphore::new(limits.max_connections)),
            // Room for at least one body, however small the bound.
            whole_bodies: Arc::new(Waiting::new(limits.max_buffered.max(V2_MAX_REQUEST_BODY))),
            config,
            registry,
            running,
            tls,
            gate,
        }
    }

    /// Serves a connection until it ends, or until a request is for the base domain; returns that request.
    pub(crate) async fn serve(&self, socket: Socket, peer: SocketAddr) -> Option<ApiRequest> {
        http1::serve(self, socket, peer).await
    }

    /// Answers a connection beyond the bound.
    pub(crate) async fn turn_away(&self, socket: Socket, peer: SocketAddr) {
        http1::turn_away(self, socket, peer).await;
    }

    /// Who the visitor is: the connection's peer, or what a trusted proxy says about its own peer. Also returns whether the
    /// peer is such a proxy.
    fn visitor_of(&self, head: &RequestHead, peer: SocketAddr) -> (IpAddr, bool) {
        let is_trusted = |address: IpAddr| self.config.trusted_proxies.iter().any(|net| net.contains(&address));
        if !is_trusted(peer.ip()) {
            return (peer.ip(), false);
        }
        let chain: Vec<&[u8]> = tokens(head.headers.all("x-forwarded-for")).collect();
        let visitor = chain
            .iter()
            .rev()
            .map_while(|entry| std::str::from_utf8(entry).ok()?.parse::<IpAddr>().ok())
            .find(|address| !is_trusted(*address));
        (visitor.unwrap_or_else(|| peer.ip()), true)
    }
}
