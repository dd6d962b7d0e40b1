//! Why a link or an attempt to open a stream ended.

use std::{io, sync::Arc, time::Duration};

use retunnel_proto::{DecodeError, native::ReasonCode};
use thiserror::Error;

/// Why a link ended.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer closed the connection without a go-away.
    #[error("connection closed by the peer")]
    ClosedByPeer,
    /// The peer sent a go-away, then closed the connection.
    #[error("peer ended the link: {reason} ({code})")]
    GoAway {
        /// Stable code.
        code: ReasonCode,
        /// Text to show to people.
        reason: String,
    },
    /// This side ended it.
    #[error("link closed here: {reason} ({code})")]
    ClosedHere {
        /// Stable code.
        code: ReasonCode,
        /// Text to show to people.
        reason: String,
    },
    /// The connection failed.
    #[error("connection lost: {0}")]
    Io(Arc<io::Error>),
    /// Nothing has arrived, or a ping has had no answer, for this long.
    #[error("no sign of life for {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// The peer sent bytes that are not frames.
    #[error("invalid frame from the peer: {0}")]
    Decode(#[from] DecodeError),
    /// The peer broke a rule of the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The driver was dropped.
    #[error("link dropped")]
    Dropped,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The link has ended.
    #[error("link ended: {0}")]
    Ended(LinkError),
    /// One of the two ends is about to close the link.
    #[error("link is closing")]
    Closing,
    /// The limit of concurrent streams is reached.
    #[error("limit of {0} streams is reached")]
    TooMany(usize),
}
