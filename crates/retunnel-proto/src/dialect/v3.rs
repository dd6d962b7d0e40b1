//! Dialect 3, of the published Python clients 3.0.0 to 3.3.2: one WebSocket carries everything, and each binary message is
//! one MessagePack map without a length. `docs/protocol.md` lists the fields.
//!
//! There are two wire versions. The server announces the one in force in its answer to `Auth`. They differ in the form of
//! requests, and only version 2 cuts messages longer than a chunk.

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

/// The form of requests and messages. The lower version of the two sides is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireVersion {
    /// Clients 3.0.x: headers are a map that begins with the method, bodies are not cut, and a frame is a message.
    One,
    /// Clients since 3.1.0: headers are pairs, bodies and messages come in chunks, the last one with `fin`.
    Two,
}

impl WireVersion {
    /// The version for an announced number: the first if it is missing or invalid, ours if it is newer.
    const fn announced(number: Option<u64>) -> Self {
        match number {
            Some(2..) => Self::Two,
            _ => Self::One,
        }
    }

    /// The number to announce: nothing stands for the first version.
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
    /// Answer to a heartbeat, in the order of the frames: the client has read all frames before the heartbeat.
    HeartbeatAck,
    /// Opens a stream, which clients must not do. The answer is a reset.
    StreamOpen {
        /// The stream.
        stream_id: u64,
    },
    /// An event of a stream.
    Stream(StreamFrame),
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    /// Answer to `Auth`: the session is established.
    HeartbeatAck {
        /// Version in force.
        version: WireVersion,
    },
    /// A refused session or tunnel. The server then closes the connection.
    Error {
        /// One of the published codes ([`error_code`]).
        code: String,
        /// What failed and what to do next, to show to people.
        message: String,
    },
    /// A tunnel was opened.
    TunnelCreated(TunnelCreated),
    /// A visitor arrived.
    StreamOpen(StreamOpen),
    /// Asks for a [`FromClient::HeartbeatAck`].
    Heartbeat,
    /// An event of a stream.
    Stream(StreamFrame),
}

/// Asks for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCreate {
    /// What the tunnel carries.
    pub protocol: TunnelProtocol,
    /// Requested name. For a TCP tunnel, the name it had before a reconnect.
    pub subdomain: Option<String>,
    /// Requested path of a path tunnel. An empty one lets the server choose.
    pub path: Option<String>,
    /// Requested public port.
    pub remote_port: Option<u16>,
    /// Requested custom host name.
    pub hostname: Option<String>,
}

/// A tunnel that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCreated {
    /// Public address, shown to people unchanged.
    pub url: String,
    /// The tunnel's id in this session, never empty. The client requests it again after a reconnect.
    pub subdomain: String,
    /// The same for a path tunnel; `None` for others.
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
    /// Id that was not used before in this session.
    pub stream_id: u64,
    /// The tunnel's `subdomain`, or its `path`.
    pub tunnel_id: String,
    /// What it carries.
    pub mode: StreamMode,
    /// Request method; `GET` if the message has none.
    pub method: String,
    /// Target with its query, as received.
    pub path: String,
    /// Headers in order, with duplicates. Version 1 joins duplicates, because it carries one value per name.
    pub headers: Vec<(String, String)>,
    /// The complete body, or empty.
    pub body: Bytes,
    /// Whether the body follows in frames, up to the one with `fin` (version 2).
    pub has_body: bool,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFrame {
    /// The stream.
    pub stream_id: u64,
    /// The event.
    pub event: StreamEvent,
}

/// Something that happens on a stream.
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
    /// The stream ended and is complete.
    Close {
        /// Close code of a WebSocket.
        code: Option<u16>,
        /// Close reason of a WebSocket.
        reason: Option<String>,
    },
    /// The stream failed.
    Reset {
        /// Reason to show to people; may be empty.
        reason: String,
    },
}

/// Kind of a WebSocket's message. A message without a kind is binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// Whether the first message on the endpoint that both dialects share is from a 3.x client: it begins with the map, where
/// 2.x begins with a length.
#[must_use]
pub fn is_dialect_3(first_message: &[u8]) -> bool {
    matches!(first_message.first(), Some(0x80..=0x8f | 0xde | 0xdf))
}

#[cfg(test)]
mod tests;
