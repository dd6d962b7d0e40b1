//! The messages of client and server, grouped by direction. Each dialect maps to and from them ([`crate::dialect`]); the
//! native link carries them as MessagePack maps ([`crate::native::control`]).
//!
//! Variants have the names of the published clients.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    code::PageCode,
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

    /// The last four characters after `****`, as the published clients show it. Tokens shorter than 12 characters are
    /// `****` alone.
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
#[non_exhaustive]
pub enum TunnelProtocol {
    /// HTTP requests, routed by host name.
    Http,
    /// Raw byte streams on a dedicated port.
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
        /// Why a server refuses a session or a tunnel: a stable code, listed in `docs/errors.md`.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum RefusalCode {
            $($(#[$doc])* $name,)*
            /// A code of a newer server.
            Other(String),
        }

        impl RefusalCode {
            /// All codes that this version knows.
            pub const KNOWN: &'static [Self] = &[$(Self::$name),*];

            /// The code on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(text) => text,
                }
            }

            /// Whether a retry with the same values cannot succeed. Codes of newer servers count as temporary.
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
    /// No token was given, and the server requires one.
    AuthRequired = "auth_required", true;
    /// Too many attempts from this address. Try again after the given time.
    RateLimited = "rate_limited", false;
    /// The account has reached its limit of sessions.
    SessionLimit = "session_limit", false;
    /// The account has reached its limit of tunnels.
    TunnelLimit = "tunnel_limit", true;
    /// The requested name is not a valid host label.
    NameInvalid = "name_invalid", true;
    /// The requested name is reserved.
    NameReserved = "name_reserved", true;
    /// The requested name belongs to another account.
    NameUnavailable = "name_unavailable", true;
    /// The requested host name is not registered for this account.
    HostnameNotRegistered = "hostname_not_registered", true;
    /// The requested host name is registered, but its DNS records were not found yet.
    HostnameNotVerified = "hostname_not_verified", true;
    /// The requested host name belongs to another account.
    HostnameTaken = "hostname_taken", true;
    /// The requested host name is not valid.
    HostnameInvalid = "hostname_invalid", true;
    /// The requested port is outside the server's range.
    PortOutOfRange = "port_out_of_range", true;
    /// The requested port belongs to another account or cannot be bound.
    PortUnavailable = "port_unavailable", true;
    /// No port of the range is free.
    PortsExhausted = "ports_exhausted", false;
    /// TCP tunnels are disabled on this server.
    TcpDisabled = "tcp_disabled", true;
    /// The request is not valid, or has fields that exclude each other.
    InvalidRequest = "invalid_request", true;
    /// The server does not support the client's version of the protocol.
    UnsupportedVersion = "unsupported_version", true;
    /// The server opened a tunnel, but not at the requested host name.
    HostnameIgnored = "hostname_ignored", true;
    /// The server's dialect cannot carry such a tunnel.
    DialectUnsupported = "dialect_unsupported", true;
    /// A newer session of the same account has taken over this tunnel.
    Superseded = "superseded", true;
    /// The server is stopping or restarting.
    ShuttingDown = "shutting_down", false;
    /// The server had an internal error. Its log has the cause.
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
    /// Closes a tunnel (native only).
    CloseTunnel(CloseTunnel),
    /// First message of a 2.x data socket: the session it belongs to.
    RegProxy(RegProxy),
    /// Asks for a [`Self::Pong`].
    Ping,
    /// Answer to a [`Self::Ping`].
    Pong,
    /// Heartbeat of one 2.x tunnel.
    Heartbeat(Heartbeat),
}

/// Messages a server sends.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ServerMessage {
    /// Answer to [`Auth`].
    AuthResp(AuthResp),
    /// A tunnel was opened. For 2.x clients also a refusal.
    NewTunnel(NewTunnel),
    /// A tunnel was refused.
    ErrorResp(ErrorResp),
    /// The server closed a tunnel (native only).
    TunnelClosed(TunnelClosed),
    /// Requests of visitors since the last report (native only).
    Requests(Requests),
    /// Asks a 2.x client for a data socket.
    ReqProxy,
    /// The tunnel that the next request on a 2.x data socket is for.
    StartProxy(StartProxy),
    /// Asks for a [`Self::Pong`].
    Ping,
    /// Answer to a [`Self::Ping`].
    Pong,
}

/// Identity of a client that connects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Auth {
    /// The account's token; `None` asks for anonymous access.
    #[serde(default)]
    pub token: Option<Token>,
    /// Id that the client chose, or that the server issued before a reconnect. For logs only: it proves nothing.
    #[serde(default)]
    pub client_id: String,
    /// Operating system in lower case.
    #[serde(default)]
    pub os: String,
    /// Processor architecture.
    #[serde(default)]
    pub arch: String,
    /// Program and version of the client.
    #[serde(default)]
    pub version: String,
}

/// Answer to [`Auth`]: whether the session is established.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthResp {
    /// Details of the session, or the refusal.
    pub result: Result<Welcome, Refusal>,
}

/// Details of a new session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The id that the server issued to the client.
    pub client_id: ClientId,
    /// The account that the client belongs to: e-mail address or id.
    #[serde(default)]
    pub account: String,
    /// Version of the server program.
    #[serde(default)]
    pub server_version: String,
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refusal {
    /// Stable code.
    pub code: RefusalCode,
    /// What failed and what to do next, to show to people.
    #[serde(default)]
    pub message: String,
    /// Seconds to wait before a retry, if the server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal without a time to wait.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// Asks the client to wait for so many seconds before it tries again.
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
    /// Requested name below the base domain. `None` lets the server choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// Requested custom host name. `None` for a name below the base domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Requested public port of a TCP tunnel. `None` lets the server choose.
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
    /// Id of the [`ReqTunnel`] that this answers.
    pub request_id: RequestId,
    /// Id of the tunnel in this session; kept over reconnects.
    pub tunnel_id: TunnelId,
    /// What the tunnel carries.
    pub protocol: TunnelProtocol,
    /// Public address to show to people.
    pub url: String,
    /// Name to request after a reconnect. TCP tunnels have one too.
    #[serde(default)]
    pub subdomain: String,
    /// Public port of a TCP tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
}

/// A tunnel that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResp {
    /// Id of the [`ReqTunnel`] that this answers. `None` if the message could not be decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Why.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// Closes a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseTunnel {
    /// The tunnel.
    pub tunnel_id: TunnelId,
}

/// A tunnel that the server closed.
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
    /// How many of them failed ([`RequestSummary::is_failed`]). `None`: the server does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
    /// The newest of this batch, oldest first; at most [`Requests::MAX_RECENT`].
    #[serde(default)]
    pub recent: Vec<RequestSummary>,
}

impl Requests {
    /// Limit of summaries in one batch.
    pub const MAX_RECENT: usize = 50;
}

/// One visitor's request, as the edge recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
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
    /// Stable code of the error page the edge answered with, or of what cut the answer; empty when the local service
    /// answered.
    #[serde(default)]
    pub error: String,
}

impl RequestSummary {
    /// Whether the visitor got no answer, only a part of one, or an error of the client or the server in place of one. What
    /// the local service itself answers is no failure, whatever its status is, and neither is a refusal.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        let is_http = !self.method.is_empty();
        let is_cut =
            self.error == PageCode::LocalClosedEarly.as_str() || self.error == PageCode::TunnelOffline.as_str();
        match (is_http, self.error.is_empty()) {
            (false, is_fine) => !is_fine,
            (true, true) => self.status == 0,
            (true, false) => self.status == 0 || self.status >= 500 || is_cut,
        }
    }
}

/// First message of a 2.x data socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegProxy {
    /// The id of [`Welcome`].
    pub client_id: ClientId,
}

/// The tunnel that the next request on a 2.x data socket is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartProxy {
    /// A URL that contains the tunnel's id.
    pub url: String,
    /// Address of the visitor.
    pub client_addr: String,
    /// Id of the visitor's request.
    pub request_id: RequestId,
}

/// Heartbeat of one 2.x tunnel.
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
    /// Complete body.
    pub body: Bytes,
}

/// One response on a 2.x data socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyResponse {
    /// Status code.
    pub status: u16,
    /// One value per name; bytes of the local service decoded as Latin-1.
    pub headers: Vec<(String, String)>,
    /// Complete body. It may still have chunked framing (`docs/protocol.md`, dialect 2).
    pub body: Bytes,
}
