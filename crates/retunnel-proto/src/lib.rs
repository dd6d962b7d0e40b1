//! The wire formats between a ReTunnel client and a ReTunnel server: messages, the published dialects, and the frames of
//! the native link.
//!
//! No sockets, no clock, no tasks: everything here maps values to bytes and back, and every decoder is bounded by a
//! constant of [`limits`]. The byte layouts are described in `docs/protocol.md`.

pub mod code;
#[cfg(feature = "dialects")]
pub mod dialect;
pub mod error;
pub mod http1;
pub mod id;
pub mod limits;
pub mod message;
pub mod native;
pub mod rules;

pub use code::PageCode;
pub use error::DecodeError;
pub use id::{ClientId, RequestId, SessionId, TunnelId, random_text};
pub use message::{ClientMessage, RefusalCode, ServerMessage, Token, TunnelProtocol};
