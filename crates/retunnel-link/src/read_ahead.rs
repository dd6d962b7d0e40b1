//! Reads ahead for a reader that takes few bytes at a time, for example a TLS session: one system call serves many reads.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read ahead: four TLS records. More only delays the other tasks of the thread.
const AHEAD: usize = 64 * 1024;
/// Limit of unused buffers that a thread keeps.
const KEPT: usize = 32;

thread_local! {
    /// A connection has a buffer only while bytes wait in it, so idle ones own none.
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn lend() -> Box<[u8]> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    POOL.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(buffer);
        }
    });
}

/// A connection whose bytes are read in large pieces and taken in small ones.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    /// Buffer and range of the bytes that were read and not taken yet. The range is never empty.
    ahead: Option<(Box<[u8]>, Range<usize>)>,
}

impl<IO> ReadAhead<IO> {
    /// Reads ahead of `io`.
    pub const fn new(io: IO) -> Self {
        Self { io, ahead: None }
    }

    /// The inner connection.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The inner connection. Bytes that were read ahead are lost.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Bytes that were read and not taken yet.
    #[must_use]
    pub fn ahead(&self) -> &[u8] {
        self.ahead.as_ref().map_or(&[], |(buffer, range)| &buffer[range.clone()])
    }
}

impl<IO: AsyncRead + Unpin> ReadAhead<IO> {
    /// Waits for bytes and returns them without taking them; empty at the end of the connection. Cancel-safe.
    ///
    /// # Errors
    /// Errors of the connection.
    pub async fn peek(&mut self) -> io::Result<&[u8]> {
        if self.ahead.is_none() {
            poll_fn(|cx| self.poll_fill(cx)).await?;
        }
        Ok(self.ahead())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = lend();
        let mut filled = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut filled);
        let count = filled.filled().len();
        if count > 0 {
            self.ahead = Some((buffer, 0..count));
        } else {
            give_back(buffer);
        }
        polled
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_none() {
            ready!(self.poll_fill(cx))?;
        }
        let Some((buffer, range)) = &mut self.ahead else { return Poll::Ready(Ok(())) };
        let count = range.len().min(buf.remaining());
        buf.put_slice(&buffer[range.start..range.start + count]);
        range.start += count;
        if range.start == range.end
            && let Some((buffer, _)) = self.ahead.take()
        {
            give_back(buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
