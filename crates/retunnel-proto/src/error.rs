//! Why bytes of a peer cannot be decoded.

use thiserror::Error;

/// A message or frame that cannot be decoded. The text never contains the peer's payload.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Larger than the limit in force at this point of the session.
    #[error("{what} of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// What was too large, for example `frame` or `message`.
        what: &'static str,
        /// Size in bytes as declared or received.
        size: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// Ended before the end of an announced value.
    #[error("{0} ended early")]
    Truncated(&'static str),
    /// Not valid MessagePack, nested too deeply, or not a map.
    #[error("not a MessagePack map: {0}")]
    MessagePack(String),
    /// A map without a `Type`, or whose `Type` is not text.
    #[error("message has no type")]
    MissingType,
    /// A type this side does not know. The session may answer with an error and continue.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// A known message with a field that is missing or has the wrong type.
    #[error("message has no valid field {0}")]
    Field(&'static str),
    /// A frame kind that does not exist.
    #[error("unknown frame kind {0:#04x}")]
    UnknownFrame(u8),
    /// A frame that is not allowed there, for example data on stream 0.
    #[error("invalid frame: {0}")]
    InvalidFrame(&'static str),
}
