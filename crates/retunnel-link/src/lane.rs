//! Lanes: connections of their own for streams that turn out to be bulk.
//!
//! Small things ride on the link, where one system call carries many streams. A stream that has moved
//! [`crate::LinkConfig::lane_after`] bytes is worth a connection: the kernel can move its bytes, and nothing waits
//! behind them. The server offers a lane (`Move`), the client switches its direction and says at which byte (`Moved`),
//! then the server does the same. Half-closes (`End`, with the count of all bytes) and resets stay on the link, so that
//! a lane that is cut is never taken for an end. Without a lane the stream stays where it is.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection that is read and written like one.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection for one bulk stream.
pub enum Lane {
    /// Plain TCP; where the other side of the relay is plain too, the kernel moves the bytes.
    Tcp(TcpStream),
    /// TLS or anything else.
    Other(Mutex<Box<dyn Duplex>>),
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Lane::Tcp",
            Self::Other(_) => "Lane::Other",
        })
    }
}

impl Lane {
    /// A lane over a connection that is not plain TCP.
    #[must_use]
    pub fn other(connection: impl Duplex + 'static) -> Self {
        Self::Other(Mutex::new(Box::new(connection)))
    }

    pub(crate) const fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Other(_) => None,
        }
    }

    fn locked(connection: &Mutex<Box<dyn Duplex>>) -> MutexGuard<'_, Box<dyn Duplex>> {
        connection.lock().expect("no code panics while it polls a lane")
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx).map(|_| ()),
            // A read will tell.
            Self::Other(_) => Poll::Ready(()),
        }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => loop {
                ready!(socket.poll_read_ready(cx))?;
                match socket.try_read(buf.initialize_unfilled()) {
                    Ok(count) => {
                        buf.advance(count);
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
            Self::Other(connection) => match Pin::new(&mut *Self::locked(connection)).poll_read(cx, buf) {
                // TLS without its farewell. Counts on the link tell whether bytes are missing, as they do on plain TCP.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                polled => polled,
            },
        }
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => loop {
                ready!(socket.poll_write_ready(cx))?;
                match socket.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            },
            Self::Other(connection) => Pin::new(&mut *Self::locked(connection)).poll_write(cx, bytes),
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Other(connection) => Pin::new(&mut *Self::locked(connection)).poll_flush(cx),
        }
    }
}
