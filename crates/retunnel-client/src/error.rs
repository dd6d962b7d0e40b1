//! Errors, grouped by the operation that failed: connecting, opening a tunnel, relaying, calling the REST API.

use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use retunnel_link::LinkError;
use retunnel_proto::{message::Refusal, native::ReasonCode};
use rustls::CertificateError;
use thiserror::Error;

pub use crate::validation::ValidationError;
use crate::{dialect::Dialect, endpoint::ServerEndpoint};

/// Any error of this library.
#[doc(alias = "ReTunnelError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// A value from the caller is not valid.
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// A call of the REST API failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Why there is no session.
#[doc(alias = "ConnectionError")]
#[doc(alias = "AuthenticationError")]
#[doc(alias = "ProtocolError")]
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server's name cannot be resolved.
    #[error("cannot find the address of {endpoint}: {source}")]
    Resolve {
        /// The server.
        endpoint: ServerEndpoint,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The server does not answer at its address.
    #[error("cannot reach {endpoint}: {source}")]
    Unreachable {
        /// The server.
        endpoint: ServerEndpoint,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The proxy does not connect to the server.
    #[error("the proxy {proxy} {reason} (on the way to {endpoint})")]
    Proxy {
        /// The proxy, without its password.
        proxy: String,
        /// The server.
        endpoint: ServerEndpoint,
        /// What the proxy did, as the rest of a sentence.
        reason: String,
        /// Whether trying again cannot help, for example after a wrong password.
        is_final: bool,
    },
    /// The TLS handshake failed. The token was not sent.
    #[error("no secure connection to {endpoint}: {source}")]
    Tls {
        /// The server.
        endpoint: ServerEndpoint,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The server accepts TLS only, and this connection was not encrypted.
    #[error("{endpoint} accepts TLS only; use https://{}", endpoint.authority())]
    TlsRequired {
        /// The server.
        endpoint: ServerEndpoint,
    },
    /// A handshake took too long.
    #[error("{endpoint} did not answer within {} s", timeout.as_secs())]
    Timeout {
        /// The server.
        endpoint: ServerEndpoint,
        /// The time limit.
        timeout: Duration,
    },
    /// A ReTunnel server answers there, but its domain is another name, so it takes requests for this one as a visitor's.
    #[error(
        "a ReTunnel server answers at {endpoint}, but `{}` is not its domain; name the domain of its `--domain` in \
         `--server`, or its address",
        endpoint.host()
    )]
    OtherDomain {
        /// The server.
        endpoint: ServerEndpoint,
    },
    /// Something answers there, but it is not a ReTunnel server.
    #[error("{endpoint} is not a ReTunnel server, or speaks another dialect: it answered `{answer}`")]
    NotAServer {
        /// The server.
        endpoint: ServerEndpoint,
        /// First line of its answer.
        answer: String,
    },
    /// The server refused the session.
    #[doc(alias = "AuthenticationError")]
    #[error("{endpoint} refused the session: {refusal}")]
    Refused {
        /// The server.
        endpoint: ServerEndpoint,
        /// The reason.
        refusal: Refusal,
    },
    /// The server created no account.
    #[error("cannot register with {endpoint}: {source}")]
    Register {
        /// The server.
        endpoint: ServerEndpoint,
        /// The cause.
        source: ApiError,
    },
    /// The session was lost.
    #[error("connection to {endpoint} lost: {source}")]
    Lost {
        /// The server.
        endpoint: ServerEndpoint,
        /// The cause.
        source: LinkError,
    },
    /// This build does not speak the chosen dialect.
    #[error("this build does not speak dialect {0}; it needs the feature `dialects` of `retunnel-client`")]
    DialectNotIncluded(Dialect),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl ConnectError {
    pub(crate) fn resolve(endpoint: &ServerEndpoint, source: io::Error) -> Self {
        Self::Resolve { endpoint: endpoint.clone(), source: Arc::new(source) }
    }

    pub(crate) fn unreachable(endpoint: &ServerEndpoint, source: io::Error) -> Self {
        Self::Unreachable { endpoint: endpoint.clone(), source: Arc::new(source) }
    }

    pub(crate) fn tls(endpoint: &ServerEndpoint, source: io::Error) -> Self {
        Self::Tls { endpoint: endpoint.clone(), source: Arc::new(source) }
    }

    /// Whether trying again with the same values cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.code.is_final(),
            Self::Register { source, .. } => source.is_final(),
            Self::Proxy { is_final, .. } => *is_final,
            Self::NotAServer { .. }
            | Self::OtherDomain { .. }
            | Self::Tls { .. }
            | Self::TlsRequired { .. }
            | Self::DialectNotIncluded(_)
            | Self::Closed => true,
            _ => false,
        }
    }

    /// Whether the server's certificate was refused because nothing that this machine trusts stands behind it.
    #[must_use]
    pub fn is_untrusted(&self) -> bool {
        let Self::Tls { source, .. } = self else { return false };
        let refused = RefusedCertificate::of(source).map(|refused| &refused.0);
        matches!(refused, Some(CertificateError::UnknownIssuer | CertificateError::Other(_)))
    }

    /// Whether nothing listens at the server's address.
    #[must_use]
    pub fn is_connection_refused(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether the server may be restarting: nothing listens, or a proxy in front of it ends the connections.
    pub(crate) const fn may_be_restart(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. })
    }

    /// How long the server asks clients to wait before the next attempt.
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

/// A certificate that was refused, in words where the TLS library has only names.
#[derive(Debug)]
pub(crate) struct RefusedCertificate(pub(crate) CertificateError);

impl RefusedCertificate {
    /// The refused certificate that made a handshake fail.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether the certificate is self-signed and an authority's, as `openssl req -x509` makes it.
    pub(crate) fn is_self_signed(&self) -> bool {
        matches!(&self.0, CertificateError::Other(reason) if reason.to_string().contains("CaUsedAsEndEntity"))
    }
}

impl fmt::Display for RefusedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            CertificateError::UnknownIssuer => {
                f.write_str("no authority that this machine trusts has signed its certificate")
            }
            _ if self.is_self_signed() => {
                f.write_str("its certificate is self-signed, and this machine does not trust it")
            }
            reason => write!(f, "its certificate is refused: {reason}"),
        }
    }
}

impl StdError for RefusedCertificate {}

/// Why there is no tunnel.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The server did not open the tunnel, or closed it.
    #[error("{0}")]
    Refused(Refusal),
    /// The client gave up for this reason.
    #[error("the session ended: {0}")]
    SessionEnded(ConnectError),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why a visitor's bytes did not reach the local service.
#[doc(alias = "ProxyError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The local service does not accept connections.
    #[error("{reason}: {target}")]
    LocalUnreachable {
        /// Address of the local service.
        target: String,
        /// The cause in a few words.
        reason: String,
    },
    /// This process or machine has no file descriptor left for a connection to the local service. Servers of dialect 3
    /// know the words `client busy`.
    #[error("client busy: no file descriptor is left for a connection to {target}")]
    OutOfDescriptors {
        /// Address of the local service.
        target: String,
    },
    /// One of the two connections failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The local service's answer is not HTTP/1.1.
    #[error("the local service's answer failed: {0}")]
    InvalidAnswer(#[source] Arc<dyn StdError + Send + Sync>),
    /// The local service's answer ended early.
    #[error("the local service's answer failed: {0}")]
    AnswerCut(#[source] Arc<dyn StdError + Send + Sync>),
}

impl RelayError {
    /// The reason that the server gets instead of an answer.
    pub(crate) const fn reason_code(&self) -> ReasonCode {
        match self {
            Self::LocalUnreachable { .. } => ReasonCode::LOCAL_UNREACHABLE,
            Self::OutOfDescriptors { .. } => ReasonCode::BUSY,
            _ => ReasonCode::CANCELLED,
        }
    }
}

#[cfg(feature = "dialects")]
impl RelayError {
    /// The status that a visitor gets.
    pub(crate) const fn status(&self) -> u16 {
        match self {
            Self::OutOfDescriptors { .. } => 503,
            _ => 502,
        }
    }

    /// Stable code for error pages (`docs/errors.md`).
    pub(crate) const fn code(&self) -> retunnel_proto::PageCode {
        match self {
            Self::LocalUnreachable { .. } => retunnel_proto::PageCode::LocalUnreachable,
            Self::OutOfDescriptors { .. } => retunnel_proto::PageCode::TooManyConnections,
            Self::InvalidAnswer(_) => retunnel_proto::PageCode::LocalInvalidResponse,
            Self::Io(_) | Self::AnswerCut(_) => retunnel_proto::PageCode::LocalClosedEarly,
        }
    }
}

/// A failed call of the REST API.
#[doc(alias = "APIError")]
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The server answered with an error.
    #[error("API Error {status}: {detail}")]
    Status {
        /// Status of the answer.
        status: u16,
        /// Stable code; empty when the server gave none.
        code: String,
        /// The reason for people.
        detail: String,
        /// Seconds to wait before the next attempt.
        retry_after: Option<u32>,
    },
    /// The answer is not one that the API describes.
    #[error("unexpected answer from the server: {0}")]
    Answer(String),
    /// No connection to the server.
    #[error("{0}")]
    Connect(Box<ConnectError>),
    /// The connection failed during the call.
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
