//! Relays of a visitor's socket.

use std::{future::poll_fn, io};

use retunnel_link::{LinkStream, Pump, poll_relay};

use crate::edge::socket::Socket;

/// Relays until both directions have ended. `up` carries the visitor's bytes, `down` the answer; both keep their counts
/// when the future is dropped.
///
/// # Errors
/// The first failure of either side; the caller resets both then.
pub(crate) async fn relay(visitor: &mut Socket, stream: &LinkStream, up: &mut Pump, down: &mut Pump) -> io::Result<()> {
    poll_fn(|cx| poll_relay(cx, visitor, stream, up, down)).await
}
