//! Moves sized bodies between a visitor's socket and a stream without copies.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use retunnel_link::{LinkStream, Pump, poll_down, poll_up};
use tokio::time::timeout;

use super::socket::{ReadHalf, WriteHalf};

/// Moves `left` bytes of a stream to a visitor; calls `moved` with the bytes of each step. Returns whether more bytes
/// came after them.
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

/// Moves `left` bytes of a visitor to a stream. `limit`: how long the visitor may send nothing.
///
/// # Errors
/// The visitor's failure; [`io::ErrorKind::BrokenPipe`] when the stream takes no more; [`io::ErrorKind::TimedOut`];
/// [`io::ErrorKind::UnexpectedEof`] when the visitor ends before `left` bytes.
pub(crate) async fn up(
    visitor: &mut ReadHalf<'_>,
    stream: &LinkStream,
    left: u64,
    limit: Duration,
    moved: impl Fn(usize),
) -> io::Result<()> {
    let mut up = Pump::default();
    loop {
        let before = up.moved();
        let step = poll_fn(|cx| {
            let polled = poll_up(cx, visitor, stream, &mut up, left);
            // A step that moved something ends, so the timeout restarts.
            if up.moved() > before && polled.is_pending() { Poll::Ready(Ok(false)) } else { polled.map_ok(|()| true) }
        });
        let over = timeout(limit, step).await;
        moved((up.moved() - before) as usize);
        let over = match over {
            Ok(Ok(over)) => over,
            Ok(Err(error)) if up.has_lost_reader() => return Err(error),
            Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            // The local service is slow, not the visitor.
            Err(_) if up.has_rest() => false,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if over {
            return if up.moved() < left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) };
        }
    }
}
