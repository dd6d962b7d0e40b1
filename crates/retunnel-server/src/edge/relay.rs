//! Relays of a visitor's socket.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use retunnel_link::{LinkStream, Pump, poll_down, poll_relay, poll_up};
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

/// Moves `left` bytes of a stream to a visitor; `moved` hears of each step. Says whether more came behind them.
///
/// # Errors
/// The first failure of either side; [`io::ErrorKind::UnexpectedEof`] when the stream ends before.
pub(crate) async fn down(
    stream: &LinkStream,
    visitor: &mut WriteHalf<'_>,
    left: u64,
    moved: impl Fn(usize),
) -> io::Result<bool> {
    let mut down = Pump::default();
    poll_fn(|cx| {
        let before = down.moved();
        let polled = poll_down(cx, stream, visitor, &mut down, left);
        moved((down.moved() - before) as usize);
        polled
    })
    .await?;
    if down.moved() < left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(down.has_rest()) }
}

/// The same from a visitor to a stream. `patience` is how long the visitor may send nothing.
///
/// # Errors
/// The first failure of either side; [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::UnexpectedEof`] when the visitor
/// ends before `left` bytes.
pub(crate) async fn up(
    visitor: &mut ReadHalf<'_>,
    stream: &LinkStream,
    left: u64,
    patience: Duration,
    moved: impl Fn(usize),
) -> io::Result<()> {
    let mut up = Pump::default();
    loop {
        let before = up.moved();
        let step = poll_fn(|cx| {
            let polled = poll_up(cx, visitor, stream, &mut up, left);
            // A step that moved something is over, so that its patience begins anew.
            if up.moved() > before && polled.is_pending() { Poll::Ready(Ok(false)) } else { polled.map_ok(|()| true) }
        });
        let over = timeout(patience, step).await;
        moved((up.moved() - before) as usize);
        let over = match over {
            Ok(over) => over?,
            // It is not the visitor who is slow.
            Err(_) if up.has_rest() => false,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if over {
            return if up.moved() < left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) };
        }
    }
}
