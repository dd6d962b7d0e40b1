//! Moves bytes between a socket and a stream, both ways, with half-close. A waiting relay owns no buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{LinkStream, take_turns};

/// Bytes of one read, shared by all relays of a thread.
const SCRATCH: usize = 64 * 1024;
/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket that may be plain TCP: then the kernel can move its bytes.
pub trait MaybeTcp {
    /// The socket itself, when nothing stands between it and the bytes.
    fn tcp(&self) -> Option<&TcpStream>;

    /// The same, where it may be replaced by another handle to the same connection.
    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        None
    }

    /// Bytes that may be read, or written, without anybody looking at them. Default: all.
    fn unseen(&self, _: Way) -> u64 {
        u64::MAX
    }

    /// So many were.
    fn skip(&mut self, _: Way, _count: u64) {}
}

/// What is done with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Bytes are read from it.
    Read,
    /// Bytes are written to it.
    Written,
}

impl MaybeTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        Some(self)
    }
}

/// One direction of a relay.
#[derive(Debug, Default)]
pub struct Pump {
    #[cfg(target_os = "linux")]
    pub(crate) job: Option<crate::splice::Job>,
    /// Read but not yet taken by the writer.
    pub(crate) pending: BytesMut,
    pub(crate) ended: bool,
    done: bool,
    pub(crate) moved: u64,
}

impl Pump {
    /// A direction whose first bytes were read already.
    #[must_use]
    pub fn starting_with(pending: BytesMut) -> Self {
        Self { pending, ..Self::default() }
    }

    /// Bytes moved so far.
    #[must_use]
    pub const fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the reader has ended; what it gave may still be under way.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Moves what can be moved; ready once the reader has ended and the writer was half-closed.
    ///
    /// # Errors
    /// The first failure of either side.
    pub fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_PER_POLL {
            while !self.pending.is_empty() {
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.pending))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(written);
                self.moved += written as u64;
            }
            self.pending = BytesMut::new();
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_step(cx, reader, writer) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // A TLS writer holds bytes back until it is flushed.
                    if let Poll::Ready(Err(error)) = Pin::new(&mut *writer).poll_flush(cx) {
                        return Poll::Ready(Err(error));
                    }
                    return Poll::Pending;
                }
            }
        }
        take_turns(cx);
        Poll::Pending
    }

    fn poll_step<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(SCRATCH, 0);
            let mut buf = ReadBuf::new(buffer);
            ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
            let bytes = buf.filled();
            if bytes.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let written = match Pin::new(writer).poll_write(cx, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.moved += written as u64;
            self.pending.extend_from_slice(&bytes[written..]);
            Poll::Ready(Ok(()))
        })
    }
}

/// One step of both directions between `socket` and `stream`; ready once both have ended. `up` goes into the stream.
///
/// # Errors
/// The first failure of either side; the caller resets both then.
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
    let sent = match poll_splice_up(cx, socket, stream, up, u64::MAX)? {
        Poll::Ready(()) => up.poll(cx, socket, &mut stream)?,
        Poll::Pending => Poll::Pending,
    };
    let received = match poll_splice_down(cx, stream, socket, down, u64::MAX)? {
        Poll::Ready(()) => down.poll(cx, &mut stream, socket)?,
        Poll::Pending => Poll::Pending,
    };
    if sent.is_ready() && received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
}

#[cfg(target_os = "linux")]
pub use crate::splice::{poll_splice_down, poll_splice_up};

/// Nothing is spliced here.
#[cfg(not(target_os = "linux"))]
pub fn poll_splice_up<S: MaybeTcp>(
    _: &mut Context<'_>,
    _: &mut S,
    _: &LinkStream,
    _: &mut Pump,
    _: u64,
) -> io::Result<Poll<()>> {
    Ok(Poll::Ready(()))
}

/// Nothing is spliced here.
#[cfg(not(target_os = "linux"))]
pub fn poll_splice_down<S: MaybeTcp>(
    _: &mut Context<'_>,
    _: &LinkStream,
    _: &mut S,
    _: &mut Pump,
    _: u64,
) -> io::Result<Poll<()>> {
    Ok(Poll::Ready(()))
}
