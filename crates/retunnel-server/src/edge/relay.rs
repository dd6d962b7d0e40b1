//! Relays of a visitor's socket.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use retunnel_link::{LinkStream, Pump, poll_relay, poll_splice_down, poll_splice_up};
use tokio::time::timeout;

use crate::edge::socket::{ReadHalf, Socket, WriteHalf};

/// Relays until both directions have ended. `up` carries the visitor's bytes, `down` the answer; both keep their counts
/// when the future is dropped.
///
/// # Errors
/// The first failure of either side; the caller resets both then.
pub(crate) async fn relay(visitor: &mut Socket, stream: &LinkStream, up: &mut Pump, down: &mut Pump) -> io::Result<()> {
    poll_fn(|cx| poll_relay(cx, visitor, stream, up, down)).await
}

/// Moves bytes of a stream that rides on a lane to a visitor within the kernel, as far as that goes, `left` at the most;
/// 0: it does not go. `moved` hears of each step.
///
/// # Errors
/// The first failure of either side.
pub(crate) async fn splice_down(
    stream: &LinkStream,
    visitor: &mut WriteHalf<'_>,
    left: u64,
    moved: impl Fn(usize),
) -> io::Result<u64> {
    let mut down = Pump::default();
    poll_fn(|cx| {
        let before = down.moved();
        let polled = poll_splice_down(cx, stream, visitor, &mut down, left)?;
        moved((down.moved() - before) as usize);
        polled.map(Ok)
    })
    .await
    .map(|()| down.moved())
}

/// The same from a visitor to a stream. `patience` is how long the visitor may send nothing.
///
/// # Errors
/// The first failure of either side; [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::UnexpectedEof`] when the visitor
/// ends before `left` bytes.
pub(crate) async fn splice_up(
    visitor: &mut ReadHalf<'_>,
    stream: &LinkStream,
    left: u64,
    patience: Duration,
    moved: impl Fn(usize),
) -> io::Result<u64> {
    let mut up = Pump::default();
    loop {
        let before = up.moved();
        let step = poll_fn(|cx| {
            let polled = poll_splice_up(cx, visitor, stream, &mut up, left)?;
            // A step that moved something is over, so that its patience begins anew.
            if up.moved() > before && polled.is_pending() { Poll::Ready(Ok(false)) } else { polled.map(|()| Ok(true)) }
        });
        let over = timeout(patience, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        moved((up.moved() - before) as usize);
        match over {
            Ok(true) if up.has_ended() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(true) => return Ok(up.moved()),
            Ok(false) => {}
            Err(error) => return Err(error),
        }
    }
}
