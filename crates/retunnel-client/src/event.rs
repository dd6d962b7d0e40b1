//! What happens to a client, for whoever shows it.

use std::time::Duration;

use retunnel_proto::message::{Refusal, RequestSummary, Token};
use tokio::sync::broadcast;

use crate::{dialect::Dialect, spec::TunnelInfo};

/// Events a slow listener may miss.
pub(crate) const QUEUE: usize = 1024;

/// Something happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A try to reach the server begins; 1 is the first.
    Connecting {
        /// Number of the try.
        attempt: u32,
    },
    /// An account was made; keep its token.
    Registered {
        /// The account's token.
        token: Token,
    },
    /// The session stands.
    Connected {
        /// The session.
        session: SessionInfo,
    },
    /// The session was lost, or could not be made.
    Disconnected {
        /// Why.
        cause: String,
        /// When the next try begins.
        retry_in: Duration,
        /// Nothing listens at the server's address.
        refused: bool,
    },
    /// A tunnel is open for the first time.
    TunnelOpened(TunnelInfo),
    /// A tunnel is open again.
    TunnelRestored(TunnelInfo),
    /// A tunnel could not be opened again; it is tried again when `is_final` is not set.
    TunnelFailed {
        /// The tunnel's name in this client.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// The server closed a tunnel.
    TunnelClosed {
        /// The tunnel's name in this client.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// A visitor's request is done.
    Request {
        /// The tunnel's name in this client.
        tunnel: String,
        /// The request.
        request: RequestSummary,
    },
    /// The local service did not take a connection.
    LocalUnreachable {
        /// The tunnel's name in this client.
        tunnel: String,
        /// Why.
        reason: String,
    },
    /// The client ended for good.
    Ended {
        /// Why.
        cause: String,
    },
}

/// An authenticated session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Account the server took this client for; empty when the dialect does not tell it.
    pub account: String,
    /// The session's id.
    pub client_id: String,
    /// The server.
    pub server: String,
    /// The server's version; empty when the dialect does not tell it.
    pub server_version: String,
    /// What both speak.
    pub dialect: Dialect,
}

/// A client's events. A listener that is too slow misses the oldest.
#[derive(Debug)]
pub struct Events(pub(crate) broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
