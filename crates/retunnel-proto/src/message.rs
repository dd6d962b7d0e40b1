//! The engine's one set of messages, grouped by direction. Each dialect maps to and from them ([`crate::dialect`]);
//! the native link carries them as MessagePack maps ([`crate::native::control`]).
//!
//! Variants keep the names the published clients gave them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    id::{ClientId, RequestId, TunnelId},
    rules::{self, Rule},
};

/// An account's bearer token. Its `Debug` and `Display` never show the value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Wraps a token.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the wire and the configuration file only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The last four characters behind `****`, as the published clients show it.
    #[must_use]
    pub fn masked(&self) -> String {
        let tail: Vec<char> = self.0.chars().rev().take(4).collect();
        if self.0.chars().count() < 12 {
            "****".into()
        } else {
            format!("****{}", tail.iter().rev().collect::<String>())
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// What a tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// HTTP requests, routed by host name.
    Http,
    /// Raw byte streams on a port of their own.
    Tcp,
}

impl TunnelProtocol {
    /// `http` or `tcp`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for TunnelProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $is_final:literal;)*) => {
        /// Why a server refuses an authentication or a tunnel: a stable code, listed in `docs/errors.md`.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum RefusalCode {
            $($(#[$doc])* $name,)*
            /// A code of a newer server.
            Other(String),
        }

        impl RefusalCode {
            /// Every code this version knows.
            pub const KNOWN: &'static [Self] = &[$(Self::$name),*];

            /// The code as it travels.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(text) => text,
                }
            }

            /// Whether asking again with the same values cannot help. Codes of newer servers count as temporary.
            #[must_use]
            pub const fn is_final(&self) -> bool {
                match self {
                    $(Self::$name => $is_final,)*
                    Self::Other(_) => false,
                }
            }
        }

        impl From<&str> for RefusalCode {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    other => Self::Other(other.chars().take(64).collect()),
                }
            }
        }
    };
}

refusal_codes! {
    /// The token is unknown, revoked or expired.
    Unauthorized = "unauthorized", true;
    /// No token was given and the server wants one.
    AuthRequired = "auth_required", true;
    /// Too many attempts from this address; try again after the given time.
    RateLimited = "rate_limited", false;
    /// The account has as many sessions as it may have.
    SessionLimit = "session_limit", false;
    /// The account has as many tunnels as it may have.
    TunnelLimit = "tunnel_limit", true;
    /// The requested name is not a valid host label.
    NameInvalid = "name_invalid", true;
    /// The requested name is reserved.
    NameReserved = "name_reserved", true;
    /// The requested name belongs to another account.
    NameUnavailable = "name_unavailable", true;
    /// The requested host name is not registered for this account.
    HostnameNotRegistered = "hostname_not_registered", true;
    /// The requested host name is registered, but its DNS records were not seen yet.
    HostnameNotVerified = "hostname_not_verified", true;
    /// The requested host name belongs to another account.
    HostnameTaken = "hostname_taken", true;
    /// The requested host name is none.
    HostnameInvalid = "hostname_invalid", true;
    /// The requested port is outside the server's range.
    PortOutOfRange = "port_out_of_range", true;
    /// The requested port belongs to another account or cannot be bound.
    PortUnavailable = "port_unavailable", true;
    /// No port of the range is free.
    PortsExhausted = "ports_exhausted", false;
    /// This server has no TCP tunnels.
    TcpDisabled = "tcp_disabled", true;
    /// The request cannot be understood or has fields that exclude each other.
    InvalidRequest = "invalid_request", true;
    /// The client's version of the protocol is not spoken here.
    UnsupportedVersion = "unsupported_version", true;
    /// The server opened a tunnel, but not at the requested host name.
    HostnameIgnored = "hostname_ignored", true;
    /// What the server speaks cannot carry such a tunnel.
    DialectUnsupported = "dialect_unsupported", true;
    /// A newer session of the same account took this tunnel over.
    Superseded = "superseded", true;
    /// The server is stopping or restarting.
    ShuttingDown = "shutting_down", false;
    /// The server failed; its log has the cause.
    Internal = "internal", false;
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RefusalCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RefusalCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from(text.as_ref()))
    }
}

/// Messages a client sends.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClientMessage {
    /// First message of a session.
    Auth(Auth),
    /// Asks for a tunnel.
    ReqTunnel(ReqTunnel),
    /// Gives a tunnel up (native only).
    CloseTunnel(CloseTunnel),
    /// First message of a 2.x data socket: which session it belongs to.
    RegProxy(RegProxy),
    /// Liveness question.
    Ping,
    /// Liveness answer.
    Pong,
    /// Sign of life of one 2.x tunnel.
    Heartbeat(Heartbeat),
}

/// Messages a server sends.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ServerMessage {
    /// Answer to [`Auth`].
    AuthResp(AuthResp),
    /// A tunnel was opened, or why not (2.x clients read refusals here).
    NewTunnel(NewTunnel),
    /// A tunnel was refused.
    ErrorResp(ErrorResp),
    /// A tunnel ended on the server's side (native only).
    TunnelClosed(TunnelClosed),
    /// What visitors did on a tunnel since the last report (native only).
    Requests(Requests),
    /// Asks a 2.x client for a data socket.
    ReqProxy,
    /// Tells a 2.x data socket which tunnel its request is for.
    StartProxy(StartProxy),
    /// Liveness question.
    Ping,
    /// Liveness answer.
    Pong,
}

/// Who is connecting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Auth {
    /// The account's token; `None` asks for anonymous access.
    #[serde(default)]
    pub token: Option<Token>,
    /// The client's own id, or the one the server gave before a reconnect. A hint for logs, never an identity.
    #[serde(default)]
    pub client_id: String,
    /// Operating system, lower case.
    #[serde(default)]
    pub os: String,
    /// Processor architecture.
    #[serde(default)]
    pub arch: String,
    /// Program and version of the client.
    #[serde(default)]
    pub version: String,
}

/// Whether the session stands.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthResp {
    /// Facts about the session, or the refusal.
    pub result: Result<Welcome, Refusal>,
}

/// Facts about a new session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session's id as a client sees it.
    pub client_id: ClientId,
    /// Who the server takes the client for: an account's e-mail address or id.
    #[serde(default)]
    pub account: String,
    /// Version of the server program.
    #[serde(default)]
    pub server_version: String,
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable code.
    pub code: RefusalCode,
    /// What failed and what to do next, for people.
    #[serde(default)]
    pub message: String,
    /// Seconds to wait before asking again, when the server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal without a waiting time.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// The same with a time to wait, in seconds.
    #[must_use]
    pub const fn after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}

/// Asks for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ReqTunnelFields")]
pub struct ReqTunnel {
    /// Echoed in the answer.
    pub request_id: RequestId,
    /// What the tunnel carries.
    pub protocol: TunnelProtocol,
    /// Wanted name below the base domain; `None` lets the server choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// Wanted host name of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Wanted public port of a TCP tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// What holds for visitors and their requests. A server refuses rules that it does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What may arrive as a [`ReqTunnel`]: clients of link version 1 have a field for each of the two rules that they know.
#[derive(Deserialize)]
struct ReqTunnelFields {
    request_id: RequestId,
    protocol: TunnelProtocol,
    #[serde(default)]
    subdomain: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    remote_port: Option<u16>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    http_auth: Option<HttpAuth>,
    #[serde(default)]
    local_origin: Option<String>,
}

impl ReqTunnel {
    /// The credentials that visitors must give, for dialects that carry them as a field.
    #[must_use]
    pub fn http_auth(&self) -> Option<HttpAuth> {
        let rule = self.rules.iter().find(|rule| rule.kind == Rule::BASIC_AUTH)?;
        rule.read::<rules::BasicAuthConfig>().ok().map(|config| config.credentials)
    }
}

impl From<ReqTunnelFields> for ReqTunnel {
    fn from(fields: ReqTunnelFields) -> Self {
        let mut rules = rules::of_fields(fields.http_auth, fields.local_origin);
        rules.extend(fields.rules);
        Self {
            request_id: fields.request_id,
            protocol: fields.protocol,
            subdomain: fields.subdomain,
            hostname: fields.hostname,
            remote_port: fields.remote_port,
            rules,
        }
    }
}

/// `user:password` of a protected tunnel; its `Debug` hides the value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HttpAuth(pub String);

impl fmt::Debug for HttpAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// A tunnel that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTunnel {
    /// Of the [`ReqTunnel`] this answers.
    pub request_id: RequestId,
    /// Names the tunnel in this session; stable over reconnects.
    pub tunnel_id: TunnelId,
    /// What the tunnel carries.
    pub protocol: TunnelProtocol,
    /// Public address to show to people.
    pub url: String,
    /// Name to ask for after a reconnect; for TCP tunnels a name of the same form.
    #[serde(default)]
    pub subdomain: String,
    /// Public port of a TCP tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
}

/// A tunnel that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResp {
    /// Of the [`ReqTunnel`] this answers; `None` for a message that could not be understood at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Why.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// Gives a tunnel up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseTunnel {
    /// The tunnel.
    pub tunnel_id: TunnelId,
}

/// A tunnel that ended on the server's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelClosed {
    /// The tunnel.
    pub tunnel_id: TunnelId,
    /// Why.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// A batch of requests of visitors, sent a few times a second while there are any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// The tunnel.
    pub tunnel_id: TunnelId,
    /// Requests (HTTP) or connections (TCP) since the tunnel was opened in this session.
    pub total: u64,
    /// The newest of this batch, oldest first; at most [`Requests::MAX_RECENT`].
    #[serde(default)]
    pub recent: Vec<RequestSummary>,
}

impl Requests {
    /// Most summaries in one batch.
    pub const MAX_RECENT: usize = 50;
}

/// One visitor's request as the edge saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestSummary {
    /// Request method; empty for a TCP connection.
    #[serde(default)]
    pub method: String,
    /// Request target up to 256 bytes; empty for a TCP connection.
    #[serde(default)]
    pub path: String,
    /// Status sent to the visitor; 0 when there was none.
    #[serde(default)]
    pub status: u16,
    /// From the first byte of the request to the last of the answer, in milliseconds.
    #[serde(default)]
    pub duration_ms: u32,
    /// Body bytes sent to the visitor.
    #[serde(default)]
    pub bytes_out: u64,
    /// Body bytes received from the visitor.
    #[serde(default)]
    pub bytes_in: u64,
    /// When the request began, milliseconds since the Unix epoch by the server's clock.
    #[serde(default)]
    pub started_ms: u64,
    /// Address of the visitor.
    #[serde(default)]
    pub visitor: String,
    /// Stable code of the error page the edge answered with; empty when the local service answered.
    #[serde(default)]
    pub error: String,
}

/// First message of a 2.x data socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegProxy {
    /// The id of [`Welcome`].
    pub client_id: ClientId,
}

/// Which tunnel a 2.x data socket serves now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartProxy {
    /// Holds the tunnel's id as a substring.
    pub url: String,
    /// Address of the visitor.
    pub client_addr: String,
    /// Of the visitor's request.
    pub request_id: RequestId,
}

/// Sign of life of one 2.x tunnel.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// The tunnel's name.
    pub subdomain: String,
    /// Unix time in seconds by the client's clock.
    pub timestamp: f64,
}

/// One request on a 2.x data socket: the inner map of the `Proxy` envelope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyRequest {
    /// Request method.
    pub method: String,
    /// Path as received, percent-encoding untouched.
    pub path: String,
    /// Query without `?`; empty when there is none.
    pub query: String,
    /// One value per name, in order.
    pub headers: Vec<(String, String)>,
    /// Whole body.
    pub body: Bytes,
}

/// One response on a 2.x data socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyResponse {
    /// Status code.
    pub status: u16,
    /// One value per name; bytes of the local service decoded as Latin-1.
    pub headers: Vec<(String, String)>,
    /// Whole body, possibly still with chunk framing (`retunnel-2.md`, section 5).
    pub body: Bytes,
}
