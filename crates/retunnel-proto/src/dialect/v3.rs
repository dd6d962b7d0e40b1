//! Dialect 3: what the published Python clients 3.0.0 to 3.3.2 speak. One WebSocket carries everything; each binary
//! message is one MessagePack map without a length. `docs/protocol.md` has the fields.
//!
//! There are two wire versions. The server names the one in force in its answer to `Auth`; they differ in how requests
//! are written and in that messages longer than a chunk are cut in version 2 only.

mod assemble;
mod decode;
mod encode;
mod meta;
mod refusal;

use bytes::Bytes;

use crate::message::{Token, TunnelProtocol};

pub use assemble::{Assembly, chunks};
pub use meta::{HttpMeta, SocketMeta};
pub use refusal::{error_code, refusal_code};

/// The form of requests and messages. The lower one of both sides is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireVersion {
    /// Clients 3.0.x: headers are a map with the method in front, bodies come whole, a frame is a message.
    One,
    /// Clients from 3.1.0 on: headers are pairs, bodies and messages come in chunks that end with `fin`.
    Two,
}

impl WireVersion {
    /// A version that is absent or cannot be understood is the first; one that is newer than ours is ours.
    const fn announced(number: Option<u64>) -> Self {
        match number {
            Some(2..) => Self::Two,
            _ => Self::One,
        }
    }

    /// As it travels: the first version is told by saying nothing.
    const fn number(self) -> Option<u8> {
        match self {
            Self::One => None,
            Self::Two => Some(2),
        }
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    /// First message.
    Auth {
        /// The account's token; `None` when it is missing or empty.
        token: Option<Token>,
        /// The highest version the client speaks.
        version: WireVersion,
    },
    /// Asks for a tunnel.
    TunnelCreate(TunnelCreate),
    /// Answer to a heartbeat, in the order of the frames: whatever was sent before the heartbeat has been read.
    HeartbeatAck,
    /// Clients open no streams; whoever tries is answered with a reset.
    StreamOpen {
        /// The stream.
        stream_id: u64,
    },
    /// What happens on a stream.
    Stream(StreamFrame),
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    /// Answer to `Auth`: the session stands.
    HeartbeatAck {
        /// Version in force.
        version: WireVersion,
    },
    /// A refused session or tunnel. The connection is closed behind it.
    Error {
        /// One of the published codes ([`error_code`]).
        code: String,
        /// What failed and what to do next, for people.
        message: String,
    },
    /// A tunnel was opened.
    TunnelCreated(TunnelCreated),
    /// A visitor arrived.
    StreamOpen(StreamOpen),
    /// Asks for a [`FromClient::HeartbeatAck`].
    Heartbeat,
    /// What happens on a stream.
    Stream(StreamFrame),
}

/// Asks for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCreate {
    /// What the tunnel carries.
    pub protocol: TunnelProtocol,
    /// Wanted name; of a TCP tunnel the one it was given before.
    pub subdomain: Option<String>,
    /// Asks for a path tunnel: empty lets the server choose the name.
    pub path: Option<String>,
    /// Wanted public port.
    pub remote_port: Option<u16>,
    /// Wanted host name of one's own.
    pub hostname: Option<String>,
}

/// A tunnel that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCreated {
    /// Public address, shown to people as it is.
    pub url: String,
    /// The tunnel's id in this session, never empty; asked for again after a reconnect.
    pub subdomain: String,
    /// The same for a path tunnel, and only for one.
    pub path: Option<String>,
    /// Public port of a TCP tunnel.
    pub remote_port: Option<u16>,
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamMode {
    /// One request and its answer.
    Http,
    /// Messages of a WebSocket.
    WebSocket,
    /// Bytes.
    Tcp,
}

impl StreamMode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "ws",
            Self::Tcp => "tcp",
        }
    }
}

/// A visitor's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOpen {
    /// Never used before in this session.
    pub stream_id: u64,
    /// The tunnel's `subdomain`, or its `path`.
    pub tunnel_id: String,
    /// What it carries.
    pub mode: StreamMode,
    /// Request method; `GET` when the sender names none.
    pub method: String,
    /// Target with its query, as received.
    pub path: String,
    /// In order, duplicates kept. Version 1 joins them, because it carries one value per name.
    pub headers: Vec<(String, String)>,
    /// The whole body, or nothing.
    pub body: Bytes,
    /// The body follows in frames up to the one with `fin` (version 2).
    pub has_body: bool,
}

/// What happens on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFrame {
    /// The stream.
    pub stream_id: u64,
    /// What happens.
    pub event: StreamEvent,
}

/// One step of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Bytes.
    Data {
        /// May be empty.
        data: Bytes,
        /// Kind of a WebSocket's message.
        kind: Option<MessageKind>,
        /// Whether this frame ends its message; `None` where frames are not cut.
        fin: Option<bool>,
    },
    /// The end: complete.
    Close {
        /// Of a WebSocket.
        code: Option<u16>,
        /// Of a WebSocket.
        reason: Option<String>,
    },
    /// The end: failed.
    Reset {
        /// Why, for people; may be empty.
        reason: String,
    },
}

/// Kind of a WebSocket's message. What has none is binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// Whether the first message on the endpoint that both dialects share comes from a 3.x client: it begins with the map
/// itself, where 2.x begins with a length.
#[must_use]
pub fn is_dialect_3(first_message: &[u8]) -> bool {
    matches!(first_message.first(), Some(0x80..=0x8f | 0xde | 0xdf))
}

#[cfg(test)]
mod tests;
