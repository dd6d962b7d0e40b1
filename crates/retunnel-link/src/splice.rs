//! Moves bytes from one TCP socket to another inside the kernel (Linux, `splice(2)`), on a thread for bulk.

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
    socket::{Direction, MaybeTcp},
    stream::StreamRef,
};

/// Pipefuls in a row before other tasks get a turn.
const TURNS: usize = 8;
/// Fewer bytes are not worth moving to another thread.
const WORTH_IT: u64 = 64 * 1024;
/// How often a relay is notified of bytes that were moved: for rates, timeouts and the inspector.
const NOTIFY_EVERY: Duration = Duration::from_millis(50);
/// Bytes that a pipe holds, and so the most that a pair of calls moves: the default limit of Linux for any user.
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
        // A user at the limit of /proc/sys/fs/pipe-user-pages-soft keeps a smaller pipe, which works as well.
        let _ = fcntl_setpipe_size(&write, PIPE);
        Ok(Self { read, write, filled: 0 })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves at most `limit` bytes of `from` into the empty pipe. Returns the count, 0 at the end of `from`.
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

    /// Moves bytes of the pipe to `to`. Returns the count.
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

/// One direction of a relay that a bulk thread moves. Dropping it stops that work.
#[derive(Debug)]
pub(crate) struct Job {
    thread: &'static Handle,
    task: JoinHandle<Result<Ended, Lost>>,
    progress: Arc<Progress>,
    /// Bytes the relay knows of.
    reported: u64,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes that a job has moved so far, and the relay that waits for it.
#[derive(Debug, Default)]
struct Progress {
    moved: AtomicU64,
    relay: AtomicWaker,
}

/// Why a job ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The socket that was read has ended.
    Reader,
    /// Its limit is reached, or the next bytes need the usual way.
    Job,
}

/// Which side failed.
#[derive(Debug)]
pub(crate) enum Lost {
    Reader(io::Error),
    Writer(io::Error),
}

impl Job {
    /// Lets a bulk thread move at most `limit` bytes of `socket`. `None` if there is no thread or no file descriptor left:
    /// the bytes have to go the usual way.
    fn start(direction: Direction, socket: &TcpStream, stream: &StreamRef, lane: &Lane, limit: u64) -> Option<Self> {
        let thread = lane.thread()?;
        let progress = Arc::new(Progress::default());
        let mut splice = Splice {
            socket: bulk::twin(socket, thread).ok()?,
            stream: stream.clone(),
            pipe: Pipe::new().ok()?,
            limit,
            taken: 0,
            progress: Arc::clone(&progress),
            notified_at: Instant::now(),
        };
        let task = thread.spawn(poll_fn(move |cx| match direction {
            Direction::Read => splice.poll_up(cx),
            Direction::Write => splice.poll_down(cx),
        }));
        Some(Self { thread, task, progress, reported: 0 })
    }

    /// Bytes moved since the last call, and how the job ended if it has.
    fn poll(&mut self, cx: &mut Context<'_>) -> (u64, Poll<Result<Ended, Lost>>) {
        self.progress.relay.register(cx.waker());
        let polled = Pin::new(&mut self.task)
            .poll(cx)
            .map(|joined| joined.unwrap_or_else(|e| Err(Lost::Reader(io::Error::other(e)))));
        // Read after the poll, so that it includes the last bytes of a job that has ended.
        let moved = self.progress.moved.load(Acquire);
        (moved - mem::replace(&mut self.reported, moved), polled)
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
    notified_at: Instant,
}

impl Splice {
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Lost>> {
        for _ in 0..TURNS {
            let lane = self.stream.poll_lane_to_write(cx);
            let Some(to) = lane.as_deref().and_then(Lane::socket) else { return Poll::Ready(Ok(Ended::Job)) };
            while !self.pipe.is_empty() {
                let count = ready!(self.pipe.poll_drain(cx, &to)).map_err(Lost::Writer)?;
                self.stream.sent_on_lane(count);
                self.notify(count);
            }
            if self.taken == self.limit {
                return Poll::Ready(Ok(Ended::Job));
            }
            let count = ready!(self.pipe.poll_fill(cx, &self.socket, self.limit - self.taken)).map_err(Lost::Reader)?;
            if count == 0 {
                return Poll::Ready(Ok(Ended::Reader));
            }
            self.taken += count as u64;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Lost>> {
        for _ in 0..TURNS {
            // Bytes already taken from the lane go first, even if no more will come from it.
            while !self.pipe.is_empty() {
                let count = ready!(self.pipe.poll_drain(cx, &self.socket)).map_err(Lost::Writer)?;
                self.notify(count);
            }
            if self.taken == self.limit {
                return Poll::Ready(Ok(Ended::Job));
            }
            let Some((lane, left)) = self.stream.poll_lane_to_read(cx) else { return Poll::Ready(Ok(Ended::Job)) };
            let Some(from) = lane.socket() else { return Poll::Ready(Ok(Ended::Job)) };
            let count = match ready!(self.pipe.poll_fill(cx, &from, left.min(self.limit - self.taken))) {
                Ok(count) => count,
                // The end of the stream's direction was a reset, and so was the lane's.
                Err(_) if self.stream.is_over() => 0,
                Err(error) => return Poll::Ready(Err(Lost::Reader(error))),
            };
            self.taken += count as u64;
            self.stream.arrived_on_lane(count);
            if count == 0 {
                // The lane was cut, which a read reports, or the count of all bytes is still on its way.
                let waits = self.stream.poll_lane_to_read(cx).is_some();
                return if waits { Poll::Pending } else { Poll::Ready(Ok(Ended::Job)) };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts bytes that have reached their socket. The relay is notified only from time to time, to spare its thread.
    fn notify(&mut self, count: usize) {
        self.progress.moved.fetch_add(count as u64, Release);
        let now = Instant::now();
        if now.duration_since(self.notified_at) >= NOTIFY_EVERY {
            self.notified_at = now;
            self.progress.relay.wake();
        }
    }
}

/// Moves one direction of a relay on bulk threads, while both sides are plain TCP and enough bytes are left.
#[derive(Debug, Default)]
pub(crate) struct Splicer {
    job: Option<Job>,
}

/// What a [`Splicer`] has done since it was last polled.
#[derive(Debug)]
pub(crate) struct Progressed {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Pending while a thread moves bytes; ready with whether the reader has ended, or with the first failure.
    pub(crate) polled: Poll<Result<bool, Lost>>,
}

impl Splicer {
    /// What the thread has moved; `None` when no thread moves anything.
    pub(crate) fn poll<S: MaybeTcp>(
        &mut self,
        cx: &mut Context<'_>,
        direction: Direction,
        socket: &mut S,
    ) -> Option<Progressed> {
        let job = self.job.as_mut()?;
        let (bytes, polled) = job.poll(cx);
        socket.skip(direction, bytes);
        if polled.is_ready() {
            self.job = None;
            if let Some(socket) = socket.tcp_mut() {
                bulk::change_runtime(socket, &Handle::current());
            }
            cx.waker().wake_by_ref();
        }
        Some(Progressed { bytes, polled: polled.map_ok(|ended| ended == Ended::Reader) })
    }

    /// Lets a thread move at most `limit` bytes. `false`: they need the usual way.
    pub(crate) fn start<S: MaybeTcp>(
        &mut self,
        cx: &Context<'_>,
        direction: Direction,
        socket: &mut S,
        stream: &StreamRef,
        limit: u64,
    ) -> bool {
        let lane = match direction {
            Direction::Read => stream.poll_lane_to_write(cx),
            Direction::Write => stream.poll_lane_to_read(cx).map(|(lane, _)| lane),
        };
        let limit = limit.min(socket.unseen(direction));
        let (Some(lane), Some(tcp), WORTH_IT..) = (lane, socket.tcp(), limit) else { return false };
        let Some(job) = Job::start(direction, tcp, stream, &lane, limit) else { return false };
        if let Some(tcp) = socket.tcp_mut() {
            bulk::change_runtime(tcp, job.thread);
        }
        self.job = Some(job);
        // The other direction may have waited for the lane or the socket where they were before.
        cx.waker().wake_by_ref();
        true
    }
}
