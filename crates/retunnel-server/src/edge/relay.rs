//! Relays of a visitor's socket, and its end as a failure.

use std::{future::poll_fn, io, time::Duration};

use retunnel_link::{LinkStream, Pump, poll_relay};
use tokio::net::TcpStream;

/// Relays until both directions have ended. `up` carries the visitor's bytes, `down` the answer; both keep their counts
/// when the future is dropped.
///
/// # Errors
/// The first failure of either side; the caller resets both then.
pub(crate) async fn relay(
    visitor: &mut TcpStream,
    stream: &LinkStream,
    up: &mut Pump,
    down: &mut Pump,
) -> io::Result<()> {
    poll_fn(|cx| poll_relay(cx, visitor, stream, up, down)).await
}

/// Makes the end of a connection visible as a failure: the peer gets a reset instead of a clean end.
pub(crate) fn abort(socket: &TcpStream) {
    // The socket is about to be closed; without the option it merely looks like a clean end.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
