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

use crate::{
    config::ServerConfig,
    limits::{Place, Places, waiting::Waiting},
    net::{handover::ApiRequest, socket::Socket, tls::Tls},
    registry::Registry,
    running::Running,
};

/// Connections beyond the bound of all, of all peers and of one. They are read until their request is known.
const RESERVE: usize = 64;
const RESERVE_PER_PEER: usize = 16;

/// What visitors' connections share.
#[derive(Debug)]
pub(crate) struct Edge {
    config: Arc<ServerConfig>,
    registry: Arc<Registry>,
    running: Arc<Running>,
    /// The certificate, if there is one.
    tls: Option<Arc<Tls>>,
    gate: Places,
    /// Places for all connections.
    pub(crate) places: Places,
    /// Places for connections beyond them: owners, health checks and the REST API always get in.
    reserve: Places,
    /// Request bodies that are kept whole for published clients.
    whole_bodies: Arc<Waiting>,
}

impl Edge {
    pub(crate) fn new(
        config: Arc<ServerConfig>,
        registry: Arc<Registry>,
        running: Arc<Running>,
        tls: Option<Arc<Tls>>,
        gate: Places,
    ) -> Self {
        let limits = &config.limits;
        Self {
            places: Places::new(
                limits.max_connections,
                limits.max_connections_per_address.min(limits.max_connections.div_ceil(2)),
            ),
            reserve: Places::reserve(RESERVE, RESERVE_PER_PEER),
            // Room for at least one body, however small the bound.
            whole_bodies: Arc::new(Waiting::new(limits.max_buffered.max(V2_MAX_REQUEST_BODY))),
            config,
            registry,
            running,
            tls,
            gate,
        }
    }

    /// A place for a new connection, if need be one of the reserve. `None`: it has to be closed.
    pub(crate) fn place(&self, peer: SocketAddr) -> Option<Place> {
        let is_proxy = self.is_trusted(peer.ip());
        self.places.enter(peer.ip(), is_proxy).or_else(|| self.reserve.enter(peer.ip(), is_proxy))
    }

    /// Serves a connection until it ends, or until a request is for the base domain; returns that request. In a place of the
    /// reserve, only such a request is served.
    pub(crate) async fn serve(&self, socket: Socket, peer: SocketAddr, place: &Place) -> Option<ApiRequest> {
        http1::serve(self, socket, peer, place).await
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.config.trusted_proxies.iter().any(|net| net.contains(&address))
    }

    /// Who the visitor is: the connection's peer, or what a trusted proxy says about its own peer. Also returns whether the
    /// peer is such a proxy.
    fn visitor_of(&self, head: &RequestHead, peer: SocketAddr) -> (IpAddr, bool) {
        if !self.is_trusted(peer.ip()) {
            return (peer.ip(), false);
        }
        let chain: Vec<&[u8]> = tokens(head.headers.all("x-forwarded-for")).collect();
        let visitor = chain
            .iter()
            .rev()
            .map_while(|entry| std::str::from_utf8(entry).ok()?.parse::<IpAddr>().ok())
            .find(|address| !self.is_trusted(*address));
        (visitor.unwrap_or_else(|| peer.ip()), true)
    }
}
