//! Moves bytes between a socket and a stream, both ways, with half-close. A waiting relay owns no buffer.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(target_os = "linux")]
use crate::splice::{Progressed, Splicer};
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

/// One direction of a relay.
#[derive(Debug, Default)]
pub struct Pump {
    #[cfg(target_os = "linux")]
    splicer: Splicer,
    /// Read but not yet taken by the writer. `first` is empty only when `more` is.
    first: Bytes,
    more: VecDeque<Bytes>,
    ended: bool,
    done: bool,
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

    /// Whether bytes were read that the writer has not taken: they are on their way, or they are beyond the limit of
    /// bytes to move.
    #[must_use]
    pub const fn has_rest(&self) -> bool {
        !self.first.is_empty()
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
        ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
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
/// the direction into the stream.
///
/// # Errors
/// The first failure of either side. The caller then has to reset both.
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
    if !up.done && poll_up(cx, socket, stream, up, u64::MAX)?.is_ready() {
        up.done = Pin::new(&mut stream).poll_shutdown(cx)?.is_ready();
    }
    if !down.done && poll_down(cx, stream, socket, down, u64::MAX)?.is_ready() {
        down.done = Pin::new(socket).poll_shutdown(cx)?.is_ready();
    }
    if up.done && down.done { Poll::Ready(Ok(())) } else { Poll::Pending }
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
            pump.ended = has_ended?;
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
