//! The native transport: many flow-controlled byte streams and one control channel over one byte stream.
//!
//! [`link()`] takes anything that reads and writes (TCP, TLS, a WebSocket) and gives back a handle ([`Link`]), the
//! peer's messages and streams ([`Events`]), and the [`Driver`] that must be polled for anything to move. The frame
//! layout is [`retunnel_proto::native`]; this crate adds what needs a clock and tasks: credit, fair turns between
//! streams, batched writes, heartbeat, and an end that every stream notices.
//!
//! Bounds: received bytes per stream (its window), per link ([`LinkConfig::max_buffered`]) and per process
//! ([`Budget`]); bytes waiting to be sent per stream and per link; streams; control messages.

mod budget;
#[cfg(target_os = "linux")]
mod bulk;
mod chunk;
mod config;
mod driver;
mod error;
mod lane;
mod link;
#[cfg(feature = "websocket")]
mod messages;
mod read_ahead;
mod received;
mod relay;
mod scheduling;
mod shared;
mod socket;
#[cfg(target_os = "linux")]
mod splice;
mod state;
mod stream;
mod tls;

pub use budget::Budget;
pub use config::{LinkConfig, Role};
pub use driver::Driver;
pub use error::{LinkError, OpenError};
pub use lane::{Duplex, Lane};
pub use link::{Events, Link, LinkEvent, link};
#[cfg(feature = "websocket")]
pub use messages::{MessageSocket, message_form};
pub use read_ahead::ReadAhead;
pub use relay::{Pump, poll_down, poll_relay, poll_up};
pub use socket::{Direction, MaybeTcp, last_bytes_sent, limit_unsent, use_bbr};
pub use stream::{LinkStream, StreamReset};
pub use tls::TlsSocket;

/// For the fuzz targets of `fuzz/`; no part of the interface.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::state::fuzzing::link_state;
}
