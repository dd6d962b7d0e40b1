//! Moves bytes between a socket and a stream, both ways, with half-close. A waiting relay owns no buffer.

use std::{
    collections::VecDeque,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

#[cfg(target_os = "linux")]
use crate::splice::{Lost, Progressed, Splicer};
use crate::{
    chunk::{CHUNK, Chunk, OWN_FROM},
    scheduling::take_turns,
    socket::{Direction, MaybeTcp},
    stream::LinkStream,
};

/// Bytes written together, if that many have arrived.
const ENOUGH: usize = 64 * 1024;
/// Pieces written together.
const SLICES: usize = 8;
/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 16;

/// After one direction has failed, how long the other may move nothing before the relay ends.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// One direction of a relay.
#[derive(Debug, Default)]
pub struct Pump {
    #[cfg(target_os = "linux")]
    splicer: Splicer,
    /// Read but not yet taken by the writer. `first` is empty only when `more` is.
    first: Bytes,
    more: VecDeque<Bytes>,
    ended: bool,
    /// The error was the reader's.
    lost_reader: bool,
    moved: u64,
    /// How the direction ended, where [`poll_relay`] moves it.
    over: Option<io::Result<()>>,
    last_words: Option<Box<LastWords>>,
}

/// The time that the other direction has, after this one has failed.
#[derive(Debug)]
struct LastWords {
    timer: Pin<Box<Sleep>>,
    /// What the other direction had moved when the timer was set.
    moved: u64,
}

impl Pump {
    /// A direction whose first bytes have already been read.
    #[must_use]
    pub fn starting_with(pending: BytesMut) -> Self {
        Self { first: pending.freeze(), ..Self::default() }
    }

    /// Bytes moved so far.
    #[must_use]
    pub const fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the reader has ended. Its last bytes may still wait for the writer.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a failure was the reader's and not the writer's.
    #[must_use]
    pub const fn has_lost_reader(&self) -> bool {
        self.lost_reader
    }

    /// Whether bytes were read that the writer has not taken: they are on their way, or they are beyond the limit of
    /// bytes to move.
    #[must_use]
    pub const fn has_rest(&self) -> bool {
        !self.first.is_empty()
    }

    const fn has_failed(&self) -> bool {
        matches!(self.over, Some(Err(_)))
    }

    /// Whether the relay cannot go on after this direction's failure: nothing comes from the other side of a reader that
    /// failed, and nothing can be delivered there. After a writer's failure the rest of what that side sent is delivered,
    /// until it ends or moves nothing for [`LAST_WORDS`].
    fn poll_last_words(&mut self, cx: &mut Context<'_>, other: &Self) -> Poll<()> {
        if self.lost_reader {
            return Poll::Ready(());
        }
        let last = self
            .last_words
            .get_or_insert_with(|| Box::new(LastWords { timer: Box::pin(sleep(LAST_WORDS)), moved: other.moved }));
        while last.timer.as_mut().poll(cx).is_ready() {
            if last.moved == other.moved {
                return Poll::Ready(());
            }
            last.moved = other.moved;
            last.timer.as_mut().reset(Instant::now() + LAST_WORDS);
        }
        Poll::Pending
    }

    fn poll_into_stream<R>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        mut stream: &LinkStream,
        most: u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
    {
        for _ in 0..READS_PER_POLL {
            while !self.first.is_empty() {
                self.moved += ready!(stream.poll_write_owned(cx, &mut self.first))? as u64;
            }
            if self.ended || self.moved == most {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(read) = self.poll_read_and_write(cx, reader, stream, most) else {
                // A TLS lane holds bytes back until it is flushed.
                ready!(Pin::new(&mut stream).poll_flush(cx))?;
                return Poll::Pending;
            };
            read?;
        }
        take_turns(cx);
        Poll::Pending
    }

    /// One read. Few bytes are written at once, so that the next read can reuse the buffer.
    fn poll_read_and_write<R>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        mut stream: &LinkStream,
        most: u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
    {
        let mut chunk = Chunk::lend();
        let room = usize::try_from(most - self.moved).unwrap_or(usize::MAX).min(CHUNK);
        let mut buf = ReadBuf::new(&mut chunk.space()[..room]);
        if let Err(error) = ready!(Pin::new(reader).poll_read(cx, &mut buf)) {
            self.lost_reader = true;
            return Poll::Ready(Err(error));
        }
        let bytes = buf.filled();
        let count = bytes.len();
        self.ended = count == 0;
        if (1..OWN_FROM).contains(&count) {
            let written = match Pin::new(&mut stream).poll_write(cx, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.moved += written as u64;
            self.first = Bytes::copy_from_slice(&bytes[written..]);
        } else {
            self.first = chunk.into_bytes(count);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_from_stream<W>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &LinkStream,
        writer: &mut W,
        most: u64,
    ) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        for _ in 0..READS_PER_POLL {
            while !self.first.is_empty() && self.moved < most {
                let written = ready!(self.poll_write(cx, writer, most))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.wrote(written);
            }
            if self.ended || self.moved == most {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(read) = stream.poll_pieces(cx, &mut self.first, &mut self.more, ENOUGH) else {
                // A TLS writer holds bytes back until it is flushed.
                ready!(Pin::new(writer).poll_flush(cx))?;
                return Poll::Pending;
            };
            self.lost_reader = read.is_err();
            read?;
            self.ended = self.first.is_empty();
        }
        take_turns(cx);
        Poll::Pending
    }

    fn poll_write<W>(&self, cx: &mut Context<'_>, writer: &mut W, most: u64) -> Poll<io::Result<usize>>
    where
        W: AsyncWrite + Unpin,
    {
        let mut left = usize::try_from(most - self.moved).unwrap_or(usize::MAX);
        if self.more.is_empty() || !writer.is_write_vectored() {
            return Pin::new(writer).poll_write(cx, &self.first[..left.min(self.first.len())]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let pieces = std::iter::once(&self.first).chain(&self.more);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            let part = &piece[..left.min(piece.len())];
            *slice = IoSlice::new(part);
            left -= part.len();
            count += 1;
        }
        Pin::new(writer).poll_write_vectored(cx, &slices[..count])
    }

    fn wrote(&mut self, mut count: usize) {
        self.moved += count as u64;
        while count > 0 {
            let step = count.min(self.first.len());
            self.first.advance(step);
            count -= step;
            if self.first.is_empty() {
                self.first = self.more.pop_front().unwrap_or_default();
                if self.more.is_empty() {
                    // A waiting relay owns no buffer.
                    self.more = VecDeque::new();
                }
            }
        }
    }
}

/// Moves bytes of a socket into a stream, up to a total of `most` (see [`Pump::moved`]). Ready when that many were moved or
/// the socket has ended ([`Pump::has_ended`]).
///
/// # Errors
/// The first failure of either side.
pub fn poll_up<S>(
    cx: &mut Context<'_>,
    socket: &mut S,
    stream: &LinkStream,
    up: &mut Pump,
    most: u64,
) -> Poll<io::Result<()>>
where
    S: AsyncRead + MaybeTcp + Unpin,
{
    match poll_splice(cx, Direction::Read, socket, stream, up, most)? {
        Poll::Ready(()) => up.poll_into_stream(cx, socket, stream, most),
        Poll::Pending => Poll::Pending,
    }
}

/// Moves bytes of a stream into a socket, up to a total of `most` (see [`Pump::moved`]). Ready when that many were moved or
/// the stream has ended ([`Pump::has_ended`]).
///
/// # Errors
/// The first failure of either side.
pub fn poll_down<S>(
    cx: &mut Context<'_>,
    stream: &LinkStream,
    socket: &mut S,
    down: &mut Pump,
    most: u64,
) -> Poll<io::Result<()>>
where
    S: AsyncWrite + MaybeTcp + Unpin,
{
    match poll_splice(cx, Direction::Write, socket, stream, down, most)? {
        Poll::Ready(()) => down.poll_from_stream(cx, stream, socket, most),
        Poll::Pending => Poll::Pending,
    }
}

/// Moves bytes in both directions between `socket` and `stream`. Ready once both have ended and were half-closed. `up` is
/// the direction into the stream. When one side takes nothing more, what it sent before is still delivered to the other.
///
/// # Errors
/// The failure of either side. The caller then has to reset both: the stream with [`LinkStream::reset`], the socket once
/// its last bytes are sent ([`crate::last_bytes_sent`]).
pub fn poll_relay<S>(
    cx: &mut Context<'_>,
    socket: &mut S,
    mut stream: &LinkStream,
    up: &mut Pump,
    down: &mut Pump,
) -> Poll<io::Result<()>>
where
    S: AsyncRead + AsyncWrite + MaybeTcp + Unpin,
{
    if up.over.is_none()
        && let Poll::Ready(moved) = poll_up(cx, socket, stream, up, u64::MAX)
    {
        // Only the end of both sides is a clean end.
        let clean = moved.is_ok() && !down.has_failed();
        let over = if clean { Pin::new(&mut stream).poll_shutdown(cx) } else { Poll::Ready(moved) };
        up.over = ready_or_none(over);
    }
    if down.over.is_none()
        && let Poll::Ready(moved) = poll_down(cx, stream, socket, down, u64::MAX)
    {
        let clean = moved.is_ok() && !up.has_failed();
        let over = if clean { Pin::new(socket).poll_shutdown(cx) } else { Poll::Ready(moved) };
        down.over = ready_or_none(over);
    }
    match (&up.over, &down.over) {
        (Some(Err(_)), None) => ready!(up.poll_last_words(cx, down)),
        (None, Some(Err(_))) => ready!(down.poll_last_words(cx, up)),
        (None, _) | (_, None) => return Poll::Pending,
        (Some(_), Some(_)) => {}
    }
    let results = [up.over.take(), down.over.take()];
    Poll::Ready(results.into_iter().flatten().collect())
}

fn ready_or_none<T>(polled: Poll<T>) -> Option<T> {
    match polled {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Lets the kernel move bytes where it can. Ready when the next bytes, or the end, need the usual way.
#[cfg(target_os = "linux")]
fn poll_splice<S: MaybeTcp>(
    cx: &mut Context<'_>,
    direction: Direction,
    socket: &mut S,
    stream: &LinkStream,
    pump: &mut Pump,
    most: u64,
) -> io::Result<Poll<()>> {
    loop {
        if let Some(Progressed { bytes, polled }) = pump.splicer.poll(cx, direction, socket) {
            pump.moved += bytes;
            let Poll::Ready(has_ended) = polled else { return Ok(Poll::Pending) };
            pump.ended = has_ended.map_err(|lost| match lost {
                Lost::Reader(error) => {
                    pump.lost_reader = true;
                    error
                }
                Lost::Writer(error) => error,
            })?;
        }
        if pump.ended
            || pump.has_rest()
            || !pump.splicer.start(cx, direction, socket, stream.by_ref(), most.saturating_sub(pump.moved))
        {
            return Ok(Poll::Ready(()));
        }
    }
}

/// Other systems have no `splice`.
#[cfg(not(target_os = "linux"))]
fn poll_splice<S: MaybeTcp>(
    _: &mut Context<'_>,
    _: Direction,
    _: &mut S,
    _: &LinkStream,
    _: &mut Pump,
    _: u64,
) -> io::Result<Poll<()>> {
    Ok(Poll::Ready(()))
}
