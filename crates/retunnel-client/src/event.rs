//! What happens to a client, for programs that show it.

use std::time::Duration;

use retunnel_proto::message::{Refusal, RequestSummary, Token};
use tokio::sync::broadcast;

use crate::{dialect::Dialect, error::ConnectError, spec::TunnelInfo};

/// Events that are kept for a listener that is slow; it misses older ones.
pub(crate) const QUEUE: usize = 1024;

/// Something happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// An attempt to reach the server begins.
    #[non_exhaustive]
    Connecting {
        /// Number of the attempt; 1 is the first.
        attempt: u32,
    },
    /// An account was created.
    #[non_exhaustive]
    Registered {
        /// The account's token. Save it, unless the client has an [`AccountStore`](crate::AccountStore).
        token: Token,
        /// The token of the account that it replaces, because the server does not accept it any more.
        replaces: Option<Token>,
        /// Why the client's [`AccountStore`](crate::AccountStore) could not save it.
        not_saved: Option<String>,
    },
    /// A session is established.
    #[non_exhaustive]
    Connected {
        /// The session.
        session: SessionInfo,
    },
    /// The session was lost, or could not be established.
    #[non_exhaustive]
    Disconnected {
        /// The cause.
        cause: ConnectError,
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// A tunnel is open for the first time.
    TunnelOpened(TunnelInfo),
    /// A tunnel is open again.
    TunnelRestored(TunnelInfo),
    /// The server refused to open a tunnel again. The client tries again unless the refusal's code is final
    /// ([`RefusalCode::is_final`](crate::RefusalCode::is_final)).
    #[non_exhaustive]
    TunnelFailed {
        /// The tunnel's name in this client.
        name: String,
        /// The reason.
        refusal: Refusal,
    },
    /// The server closed a tunnel.
    #[non_exhaustive]
    TunnelClosed {
        /// The tunnel's name in this client.
        name: String,
        /// The reason.
        refusal: Refusal,
    },
    /// A visitor's request is done.
    #[non_exhaustive]
    Request {
        /// The tunnel's name in this client.
        tunnel: String,
        /// The request.
        request: RequestSummary,
    },
    /// The local service did not accept a connection.
    #[non_exhaustive]
    LocalUnreachable {
        /// The tunnel's name in this client.
        tunnel: String,
        /// The cause.
        reason: String,
    },
    /// This process or machine has no file descriptor left, and visitors were refused. Reported at most every
    /// ten seconds.
    #[non_exhaustive]
    OutOfDescriptors {
        /// Visitors that were refused since the last report.
        refused: u64,
    },
    /// The client gave up, or was closed.
    #[non_exhaustive]
    Ended {
        /// The cause.
        cause: ConnectError,
    },
}

/// Constructors for tests of programs that show events: a later version may add fields to any event.
impl Event {
    /// [`Event::Disconnected`].
    #[must_use]
    pub const fn disconnected(cause: ConnectError, retry_in: Duration) -> Self {
        Self::Disconnected { cause, retry_in }
    }

    /// [`Event::TunnelFailed`].
    #[must_use]
    pub fn tunnel_failed(name: impl Into<String>, refusal: Refusal) -> Self {
        Self::TunnelFailed { name: name.into(), refusal }
    }

    /// [`Event::Request`].
    #[must_use]
    pub fn request(tunnel: impl Into<String>, request: RequestSummary) -> Self {
        Self::Request { tunnel: tunnel.into(), request }
    }

    /// [`Event::LocalUnreachable`].
    #[must_use]
    pub fn local_unreachable(tunnel: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::LocalUnreachable { tunnel: tunnel.into(), reason: reason.into() }
    }
}

/// An authenticated session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The account of this client; empty when the dialect does not report it.
    pub account: String,
    /// The session's id.
    pub client_id: String,
    /// The server.
    pub server: String,
    /// The server's version; empty when the dialect does not report it.
    pub server_version: String,
    /// What client and server speak.
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
