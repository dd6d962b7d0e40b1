//! A local service may refuse a request before it has read the body: it answers and closes. The rest of the body cannot be
//! sent then, and the system makes the close a reset because bytes wait unread. The answer counts nevertheless.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Length of `HTTP/1.1 4`.
const STATUS_CLASS: usize = 10;

/// A connection whose answer can be read after the service has stopped reading. Once a write fails, everything that is
/// written is discarded; the end of the answer ends the exchange.
#[derive(Debug)]
pub(super) struct Refusable<IO> {
    io: IO,
    has_body: bool,
    /// The service takes nothing more.
    is_deaf: bool,
    /// Whether the answer says that the request was refused; `None` before its first bytes.
    is_refusal: Option<bool>,
}

impl<IO> Refusable<IO> {
    /// `has_body`: the request has one.
    pub(super) const fn new(io: IO, has_body: bool) -> Self {
        Self { io, has_body, is_deaf: false, is_refusal: None }
    }

    fn written(&mut self, result: io::Result<usize>, all: usize) -> io::Result<usize> {
        match result {
            Err(_) if self.has_body => {
                self.is_deaf = true;
                Ok(all)
            }
            result => result,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Refusable<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            self.is_refusal.get_or_insert_with(|| {
                bytes.starts_with(b"HTTP/1.") && matches!(bytes.get(STATUS_CLASS - 1), Some(b'4' | b'5'))
            });
        }
        match read {
            // A refusal without a length lasts until here. One with a length is still found to be short.
            Err(_) if self.has_body && self.is_refusal == Some(true) => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Refusable<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(self.written(result, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_deaf {
            return Poll::Ready(Ok(all));
        }
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(result, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_deaf { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_deaf { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_shutdown(cx) }
    }
}
