//! Errors by what a caller asks: could I connect, could the tunnel be opened, is a value valid.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use retunnel_link::LinkError;
use retunnel_proto::message::Refusal;
use thiserror::Error;

pub use crate::validation::ValidationError;
use crate::{dialect::Dialect, endpoint::ServerEndpoint};

/// Anything this library can fail with.
#[doc(alias = "ReTunnelError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// A value given by the caller.
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// A call of the REST API.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Why there is no session.
#[doc(alias = "ConnectionError")]
#[doc(alias = "AuthenticationError")]
#[doc(alias = "ProtocolError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server's name has no address.
    #[error("cannot find the address of {endpoint}: {source}")]
    Resolve {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot reach {endpoint}: {source}")]
    Unreachable {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        source: io::Error,
    },
    /// The proxy in between does not open the way.
    #[error("the proxy {proxy} {reason} (on the way to {endpoint})")]
    Proxy {
        /// The proxy, without its password.
        proxy: String,
        /// The server.
        endpoint: ServerEndpoint,
        /// What it did, as the rest of a sentence.
        reason: String,
        /// Whether asking again cannot help, as with a wrong password.
        is_final: bool,
    },
    /// The TLS handshake failed. The token was not sent.
    #[error("no secure connection to {endpoint}: {source}")]
    Tls {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        source: io::Error,
    },
    /// The server speaks TLS only, and this connection was not encrypted.
    #[error("{endpoint} speaks TLS only; with TLS it is https://{}", endpoint.authority())]
    TlsRequired {
        /// The server.
        endpoint: ServerEndpoint,
    },
    /// A handshake took too long.
    #[error("{endpoint} did not answer within {} s", patience.as_secs())]
    Timeout {
        /// The server.
        endpoint: ServerEndpoint,
        /// How long it had.
        patience: Duration,
    },
    /// Something answers there, but not a ReTunnel server.
    #[error("{endpoint} is not a ReTunnel server, or speaks another dialect: it answered `{answer}`")]
    NotAServer {
        /// The server.
        endpoint: ServerEndpoint,
        /// First line of its answer.
        answer: String,
    },
    /// The server does not let this client in.
    #[doc(alias = "AuthenticationError")]
    #[error("{endpoint} refused the session: {refusal}")]
    Refused {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        refusal: Refusal,
    },
    /// No account could be made.
    #[error("cannot register with {endpoint}: {source}")]
    Register {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        source: ApiError,
    },
    /// The link was lost.
    #[error("connection to {endpoint} lost: {source}")]
    Lost {
        /// The server.
        endpoint: ServerEndpoint,
        /// Why.
        source: LinkError,
    },
    /// This build does not speak the chosen dialect.
    #[error("this build does not speak dialect {0}; it needs the feature `dialects` of `retunnel-client`")]
    DialectNotIncluded(Dialect),
    /// The client was closed meanwhile.
    #[error("the client was closed")]
    Closed,
}

impl ConnectError {
    /// Whether trying again with the same values cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.code.is_final(),
            Self::Register { source, .. } => source.is_final(),
            Self::Proxy { is_final, .. } => *is_final,
            Self::NotAServer { .. }
            | Self::Tls { .. }
            | Self::TlsRequired { .. }
            | Self::DialectNotIncluded(_)
            | Self::Closed => true,
            _ => false,
        }
    }

    /// Whether nothing listens at the server's address.
    #[must_use]
    pub fn is_connection_refused(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether the server may be restarting: nothing listens, or what stands in front of it lets connections go.
    pub(crate) const fn may_be_restart(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. })
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = match self {
            Self::Refused { refusal, .. } => refusal.retry_after,
            Self::Register { source: ApiError::Status { retry_after, .. }, .. } => *retry_after,
            _ => None,
        };
        seconds.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// Why there is no tunnel.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The server does not open it, or closed it.
    #[error("{0}")]
    Refused(Refusal),
    /// The session ended for good.
    #[error("the session ended: {0}")]
    SessionEnded(String),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why a visitor's bytes did not reach the local service.
#[doc(alias = "ProxyError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The local service does not take connections.
    #[error("{reason}: {target}")]
    LocalUnreachable {
        /// Where the local service should be.
        target: String,
        /// Why, in a few words.
        reason: String,
    },
    /// One of both connections failed midway.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The local service's answer is not HTTP/1.1.
    #[error("the local service's answer failed: {0}")]
    InvalidAnswer(#[source] Arc<dyn StdError + Send + Sync>),
    /// The local service's answer ended early.
    #[error("the local service's answer failed: {0}")]
    AnswerCut(#[source] Arc<dyn StdError + Send + Sync>),
}

#[cfg(feature = "dialects")]
impl RelayError {
    /// Stable code for error pages (`docs/errors.md`).
    pub(crate) const fn code(&self) -> retunnel_proto::PageCode {
        match self {
            Self::LocalUnreachable { .. } => retunnel_proto::PageCode::LocalUnreachable,
            Self::InvalidAnswer(_) => retunnel_proto::PageCode::LocalInvalidResponse,
            Self::Io(_) | Self::AnswerCut(_) => retunnel_proto::PageCode::LocalClosedEarly,
        }
    }
}

/// A failed call of the REST API.
#[doc(alias = "APIError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The server answered with a failure.
    #[error("API Error {status}: {detail}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Stable code; empty when the server gave none.
        code: String,
        /// For people.
        detail: String,
        /// Seconds to wait.
        retry_after: Option<u32>,
    },
    /// The answer is not what the API promises.
    #[error("unexpected answer of the server: {0}")]
    Answer(String),
    /// The call failed on its way.
    #[error("{0}")]
    Connect(Box<ConnectError>),
    /// The connection failed midway.
    #[error("connection failed: {0}")]
    Http(#[source] Arc<dyn StdError + Send + Sync>),
}

impl ApiError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status < 500 && *status != 429,
            Self::Answer(_) => true,
            Self::Connect(cause) => cause.is_final(),
            Self::Http(_) => false,
        }
    }
}
