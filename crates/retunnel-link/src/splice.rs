//! Bytes from one TCP socket to another without a visit to user space (Linux, `splice(2)`), on a thread for bulk.

use std::{
    future::{Future, poll_fn},
    io, mem,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream, runtime::Handle, task::JoinHandle, time::Instant};

use crate::{
    bulk,
    lane::Lane,
    socket::{MaybeTcp, Way},
    stream::StreamRef,
};

/// Pipefuls in a row before other tasks get a turn.
const TURNS: usize = 8;
/// Fewer bytes are not worth the hand-over.
const WORTH_IT: u64 = 64 * 1024;
/// How often a relay hears of bytes that were moved: for rates, timeouts and the inspector.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Bytes a pipe holds, and what a pair of calls moves at the most: as much as Linux gives everybody.
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

/// One direction that a bulk thread moves. Dropping it stops the thread's work on it.
#[derive(Debug)]
pub(crate) struct Job {
    thread: &'static Handle,
    task: JoinHandle<io::Result<Ended>>,
    progress: Arc<Progress>,
    /// Bytes the relay has heard of.
    heard: u64,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a job has moved so far, for the relay that waits for it.
#[derive(Debug, Default)]
struct Progress {
    moved: AtomicU64,
    relay: AtomicWaker,
}

/// Why a job is over without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The socket that was read has ended.
    Reader,
    /// Its limit is reached, or the next bytes have to be moved in the usual way.
    Job,
}

impl Job {
    /// Hands bytes of `socket`, at most so many, to a bulk thread. `None`: there is no thread or no descriptor to be had, so
    /// bytes go the usual way.
    fn start(way: Way, socket: &TcpStream, stream: &StreamRef, lane: &Lane, limit: u64) -> Option<Self> {
        let thread = lane.thread()?;
        let progress = Arc::new(Progress::default());
        let mut splice = Splice {
            socket: bulk::twin(socket, thread).ok()?,
            stream: stream.clone(),
            pipe: Pipe::new().ok()?,
            limit,
            taken: 0,
            progress: Arc::clone(&progress),
            told: Instant::now(),
        };
        let task = thread.spawn(poll_fn(move |cx| match way {
            Way::Read => splice.poll_up(cx),
            Way::Written => splice.poll_down(cx),
        }));
        Some(Self { thread, task, progress, heard: 0 })
    }

    /// Bytes moved since the last call, and how the job is over if it is.
    fn poll(&mut self, cx: &mut Context<'_>) -> (u64, Poll<io::Result<Ended>>) {
        self.progress.relay.register(cx.waker());
        let polled =
            Pin::new(&mut self.task).poll(cx).map(|joined| joined.unwrap_or_else(|e| Err(io::Error::other(e))));
        // What it moved before it was over is known here.
        let moved = self.progress.moved.load(Acquire);
        (moved - mem::replace(&mut self.heard, moved), polled)
    }
}

/// The thread's part of a [`Job`].
struct Splice {
    socket: TcpStream,
    stream: StreamRef,
    pipe: Pipe,
    limit: u64,
    /// Bytes read so far.
    taken: u64,
    progress: Arc<Progress>,
    told: Instant,
}

impl Splice {
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Ended>> {
        for _ in 0..TURNS {
            let lane = self.stream.poll_lane_to_write(cx);
            let Some(to) = lane.as_deref().and_then(Lane::socket) else { return Poll::Ready(Ok(Ended::Job)) };
            while !self.pipe.is_empty() {
                let count = ready!(self.pipe.poll_drain(cx, &to))?;
                self.stream.sent_on_lane(count);
                self.tell(count);
            }
            if self.taken == self.limit {
                return Poll::Ready(Ok(Ended::Job));
            }
            let count = ready!(self.pipe.poll_fill(cx, &self.socket, self.limit - self.taken))?;
            if count == 0 {
                return Poll::Ready(Ok(Ended::Reader));
            }
            self.taken += count as u64;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Ended>> {
        for _ in 0..TURNS {
            // What was taken from the lane goes first, also when nothing more will come from there.
            while !self.pipe.is_empty() {
                let count = ready!(self.pipe.poll_drain(cx, &self.socket))?;
                self.tell(count);
            }
            if self.taken == self.limit {
                return Poll::Ready(Ok(Ended::Job));
            }
            let Some((lane, left)) = self.stream.poll_lane_to_read(cx) else { return Poll::Ready(Ok(Ended::Job)) };
            let Some(from) = lane.socket() else { return Poll::Ready(Ok(Ended::Job)) };
            let count = ready!(self.pipe.poll_fill(cx, &from, left.min(self.limit - self.taken)))?;
            self.taken += count as u64;
            self.stream.arrived_on_lane(count);
            if count == 0 {
                // Cut, which a read tells, or the count of all bytes is still on its way.
                let waits = self.stream.poll_lane_to_read(cx).is_some();
                return if waits { Poll::Pending } else { Poll::Ready(Ok(Ended::Job)) };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// So many bytes are with their receiver. The relay hears of it now and then: its thread has other things to do.
    fn tell(&mut self, count: usize) {
        self.progress.moved.fetch_add(count as u64, Release);
        let now = Instant::now();
        if now.duration_since(self.told) >= TELL_EVERY {
            self.told = now;
            self.progress.relay.wake();
        }
    }
}

/// Moves one direction of a relay on bulk threads, as long as both sides are plain TCP and it is worth it.
#[derive(Debug, Default)]
pub(crate) struct Splicer {
    job: Option<Job>,
}

/// What a [`Splicer`] has done since it was last polled.
#[derive(Debug)]
pub(crate) struct Progressed {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Pending while a thread moves bytes; ready with whether the reader has ended. An error is the first failure of
    /// either side.
    pub(crate) polled: Poll<io::Result<bool>>,
}

impl Splicer {
    /// What the thread has moved; `None` when no thread moves anything.
    pub(crate) fn poll<S: MaybeTcp>(&mut self, cx: &mut Context<'_>, way: Way, socket: &mut S) -> Option<Progressed> {
        let job = self.job.as_mut()?;
        let (bytes, polled) = job.poll(cx);
        socket.skip(way, bytes);
        if polled.is_ready() {
            self.job = None;
            if let Some(socket) = socket.tcp_mut() {
                bulk::change_runtime(socket, &Handle::current());
            }
            cx.waker().wake_by_ref();
        }
        Some(Progressed { bytes, polled: polled.map_ok(|ended| ended == Ended::Reader) })
    }

    /// Hands at most `limit` bytes to a thread. `false`: they have to be moved in the usual way.
    pub(crate) fn start<S: MaybeTcp>(
        &mut self,
        cx: &Context<'_>,
        way: Way,
        socket: &mut S,
        stream: &StreamRef,
        limit: u64,
    ) -> bool {
        let lane = match way {
            Way::Read => stream.poll_lane_to_write(cx),
            Way::Written => stream.poll_lane_to_read(cx).map(|(lane, _)| lane),
        };
        let limit = limit.min(socket.unseen(way));
        let (Some(lane), Some(tcp), WORTH_IT..) = (lane, socket.tcp(), limit) else { return false };
        let Some(job) = Job::start(way, tcp, stream, &lane, limit) else { return false };
        if let Some(tcp) = socket.tcp_mut() {
            bulk::change_runtime(tcp, job.thread);
        }
        self.job = Some(job);
        // The other direction may have waited for the lane or the socket where they were before.
        cx.waker().wake_by_ref();
        true
    }
}
