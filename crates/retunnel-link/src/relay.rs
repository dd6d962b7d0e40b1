//! Moves bytes between a socket and a stream, both ways, with half-close. A waiting relay owns no buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::LinkStream;

/// Bytes of one read, shared by all relays of a thread.
const SCRATCH: usize = 64 * 1024;
/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One direction of a relay.
#[derive(Debug, Default)]
pub struct Pump {
    /// Read but not yet taken by the writer.
    pending: BytesMut,
    ended: bool,
    done: bool,
    moved: u64,
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
        cx.waker().wake_by_ref();
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
    S: AsyncRead + AsyncWrite + Unpin,
{
    let sent = up.poll(cx, socket, &mut stream)?;
    let received = down.poll(cx, &mut stream, socket)?;
    if sent.is_ready() && received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
}
