//! Moves bytes between a visitor's socket and a stream, both ways, with half-close. A waiting relay owns no buffer.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Bytes of one read, shared by all relays of a thread.
const SCRATCH: usize = 64 * 1024;
/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One direction of a relay.
#[derive(Debug, Default)]
pub(crate) struct Pump {
    /// Read but not yet taken by the writer.
    pending: BytesMut,
    ended: bool,
    done: bool,
    /// Bytes moved.
    pub(crate) moved: u64,
}

impl Pump {
    /// A direction whose first bytes were read already.
    pub(crate) fn starting_with(pending: BytesMut) -> Self {
        Self { pending, ..Self::default() }
    }

    /// Moves what can be moved; ready once the reader ended and the writer was half-closed.
    pub(crate) fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
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
            ready!(self.poll_step(cx, reader, writer))?;
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

/// Relays until both directions have ended. `up` carries the visitor's bytes, `down` the answer; both keep their counts
/// when the future is dropped.
///
/// # Errors
/// The first failure of either side; the caller resets both then.
pub(crate) async fn relay<S>(visitor: &mut TcpStream, stream: &S, up: &mut Pump, down: &mut Pump) -> io::Result<()>
where
    for<'a> &'a S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_visitor, mut to_visitor) = visitor.split();
    let (mut from_stream, mut to_stream) = (stream, stream);
    poll_fn(|cx| {
        let sent = up.poll(cx, &mut from_visitor, &mut to_stream)?;
        let received = down.poll(cx, &mut from_stream, &mut to_visitor)?;
        if sent.is_ready() && received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Makes the end of a connection visible as a failure: the peer gets a reset instead of a clean end.
pub(crate) fn abort(socket: &TcpStream) {
    // The socket is about to be closed; without the option it merely looks like a clean end.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
