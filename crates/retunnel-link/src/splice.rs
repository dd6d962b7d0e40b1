//! Bytes from one TCP socket to another without a visit to user space (Linux, `splice(2)`).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

use crate::{Lane, LinkStream, MaybeTcp, Pump, Way, take_turns};

/// Pipefuls in a row before other tasks get a turn.
const TURNS: usize = 1;
/// Bytes a pipe holds, and what a pair of calls moves at the most: as much as Linux gives everybody. With 256 KiB bulk costs a
/// fifth more processor time, and small requests beside a saturating stream wait half as long (`docs/benchmarks.md`).
const PIPE: usize = 1024 * 1024;

/// The kernel buffer that bytes pass through.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
}

impl Pipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user at the limit of /proc/sys/fs/pipe-user-pages-soft gets a smaller one; it works all the same.
        let _ = fcntl_setpipe_size(&write, PIPE);
        Ok(Self { read, write, filled: 0 })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes bytes from `from` into the empty pipe; 0 at its end.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream, limit: u64) -> Poll<io::Result<usize>> {
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(PIPE);
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || moved(from, &self.write, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.filled += count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    /// Gives bytes of the pipe to `to`; says how many.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || moved(&self.read, to, self.filled)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.filled -= count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

/// Moves bytes of a socket into a stream as long as both are plain TCP, `most` of them altogether (counted by
/// [`Pump::moved`]). Ready when the rest, or the end, has to be read in the usual way.
///
/// # Errors
/// The first failure of either side.
pub fn poll_splice_up<S: MaybeTcp>(
    cx: &mut Context<'_>,
    from: &mut S,
    stream: &LinkStream,
    up: &mut Pump,
    most: u64,
) -> io::Result<Poll<()>> {
    if up.ended || !up.pending.is_empty() {
        return Ok(Poll::Ready(()));
    }
    for _ in 0..TURNS {
        let lane = stream.poll_lane_to_write(cx);
        let (Some(socket), Some(to)) = (from.tcp(), lane.as_deref().and_then(Lane::tcp)) else {
            return Ok(Poll::Ready(()));
        };
        let Some(pipe) = pipe_of(&mut up.pipe) else { return Ok(Poll::Ready(())) };
        while !pipe.is_empty() {
            let Poll::Ready(count) = pipe.poll_drain(cx, to)? else { return Ok(Poll::Pending) };
            up.moved += count as u64;
            stream.sent_on_lane(count);
        }
        let most = most.saturating_sub(up.moved).min(from.unseen(Way::Read));
        if most == 0 {
            return Ok(Poll::Ready(()));
        }
        let Poll::Ready(count) = pipe.poll_fill(cx, socket, most)? else { return Ok(Poll::Pending) };
        if count == 0 {
            up.ended = true;
            return Ok(Poll::Ready(()));
        }
        from.skip(Way::Read, count as u64);
    }
    take_turns(cx);
    Ok(Poll::Pending)
}

/// Moves bytes of a stream into a socket as long as both are plain TCP, `most` of them altogether. Ready when the rest,
/// or the end, has to be read in the usual way.
///
/// # Errors
/// The first failure of either side.
pub fn poll_splice_down<S: MaybeTcp>(
    cx: &mut Context<'_>,
    stream: &LinkStream,
    to: &mut S,
    down: &mut Pump,
    most: u64,
) -> io::Result<Poll<()>> {
    if down.ended || !down.pending.is_empty() {
        return Ok(Poll::Ready(()));
    }
    for _ in 0..TURNS {
        let Some(socket) = to.tcp() else { return Ok(Poll::Ready(())) };
        // What was taken from the lane goes first, also when nothing more will come from there.
        if let Some(pipe) = &mut down.pipe {
            while !pipe.is_empty() {
                let Poll::Ready(count) = pipe.poll_drain(cx, socket)? else { return Ok(Poll::Pending) };
                down.moved += count as u64;
            }
        }
        let most = most.saturating_sub(down.moved).min(to.unseen(Way::Written));
        let Some((lane, left)) = stream.poll_lane_to_read(cx).filter(|_| most > 0) else { return Ok(Poll::Ready(())) };
        let Some(from) = lane.tcp() else { return Ok(Poll::Ready(())) };
        let Some(pipe) = pipe_of(&mut down.pipe) else { return Ok(Poll::Ready(())) };
        let Poll::Ready(count) = pipe.poll_fill(cx, from, left.min(most))? else { return Ok(Poll::Pending) };
        stream.arrived_on_lane(count);
        if count == 0 {
            // Cut, which a read tells, or the count of all bytes is still on its way.
            let waits = stream.poll_lane_to_read(cx).is_some();
            return Ok(if waits { Poll::Pending } else { Poll::Ready(()) });
        }
        to.skip(Way::Written, count as u64);
    }
    take_turns(cx);
    Ok(Poll::Pending)
}

/// `None`: there is none to be had (out of descriptors), so bytes go the usual way.
fn pipe_of(pipe: &mut Option<Pipe>) -> Option<&mut Pipe> {
    if pipe.is_none() {
        *pipe = Pipe::new().ok();
    }
    pipe.as_mut()
}
