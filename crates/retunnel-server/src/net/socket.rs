//! The socket of a visitor or a client: plain TCP or TLS.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use retunnel_link::{Lane, MaybeTcp, TlsSocket, last_bytes_sent};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp},
};

/// A connection that was accepted.
pub(crate) enum Socket {
    Plain(TcpStream),
    /// The lock is for [`Socket::split`]: both halves of an encrypted connection share its state. They live in one task,
    /// so that it is never contended.
    Tls(Box<Mutex<TlsSocket>>),
}

impl Socket {
    /// Makes the end of the connection visible as a failure: the peer gets a reset instead of a clean end.
    pub(crate) fn abort(&self) {
        // The socket is about to be closed; without the option it merely looks like a clean end.
        self.with(|socket| drop(SockRef::from(socket).set_linger(Some(Duration::ZERO))));
    }

    /// Waits until what was written is sent, within a limit of time. Closing after [`Self::abort`] destroys the rest.
    pub(crate) fn last_bytes_sent(&self) -> impl Future<Output = ()> + use<> {
        self.with(last_bytes_sent)
    }

    /// Whether [`Self::abort`] was called.
    pub(crate) fn is_aborted(&self) -> bool {
        self.with(|socket| SockRef::from(socket).linger().ok().flatten() == Some(Duration::ZERO))
    }

    /// Uses the TCP socket below, for example to set options.
    pub(crate) fn with<T>(&self, with: impl FnOnce(&TcpStream) -> T) -> T {
        match self {
            Self::Plain(socket) => with(socket),
            Self::Tls(stream) => with(lock(stream).get_ref()),
        }
    }

    /// Whether the connection uses TLS.
    pub(crate) const fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Both directions, for use in one task.
    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match self {
            Self::Plain(socket) => {
                let (read, write) = socket.split();
                (ReadHalf::Plain(read), WriteHalf::Plain(write))
            }
            Self::Tls(stream) => (ReadHalf::Tls(stream), WriteHalf::Tls(stream)),
        }
    }
}

impl MaybeTcp for Socket {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }
}

impl MaybeTcp for ReadHalf<'_> {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket.as_ref()),
            Self::Tls(_) => None,
        }
    }
}

impl MaybeTcp for WriteHalf<'_> {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket.as_ref()),
            Self::Tls(_) => None,
        }
    }
}

impl From<Socket> for Lane {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Plain(socket) => Self::tcp(socket),
            encrypted @ Socket::Tls(_) => Self::other(encrypted),
        }
    }
}

impl From<TlsSocket> for Socket {
    fn from(socket: TlsSocket) -> Self {
        Self::Tls(Box::new(Mutex::new(socket)))
    }
}

fn lock(stream: &Mutex<TlsSocket>) -> MutexGuard<'_, TlsSocket> {
    // A panic while it was held ended the only task that has it.
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
        })
    }
}

impl fmt::Debug for ReadHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadHalf")
    }
}

impl fmt::Debug for WriteHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteHalf")
    }
}

/// The reading half of a [`Socket`].
pub(crate) enum ReadHalf<'a> {
    Plain(tcp::ReadHalf<'a>),
    Tls(&'a Mutex<TlsSocket>),
}

/// The writing half of a [`Socket`].
pub(crate) enum WriteHalf<'a> {
    Plain(tcp::WriteHalf<'a>),
    Tls(&'a Mutex<TlsSocket>),
}

/// Calls a method of the stream inside.
macro_rules! each {
    ($type:ident, $self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            $type::Plain(socket) => {
                let $stream = Pin::new(socket);
                $call
            }
            $type::Tls(shared) => {
                let mut guard = lock(shared);
                let $stream = Pin::new(&mut *guard);
                $call
            }
        }
    };
}

macro_rules! reads {
    ($name:ty, $type:ident) => {
        impl AsyncRead for $name {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                each!($type, self, stream => stream.poll_read(cx, buf))
            }
        }
    };
}

macro_rules! writes {
    ($name:ty, $type:ident) => {
        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                each!($type, self, stream => stream.poll_write(cx, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                each!($type, self, stream => stream.poll_write_vectored(cx, bufs))
            }

            fn is_write_vectored(&self) -> bool {
                // Both kinds take slices.
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!($type, self, stream => stream.poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!($type, self, stream => stream.poll_shutdown(cx))
            }
        }
    };
}

reads!(Socket, Socket);
writes!(Socket, Socket);
reads!(ReadHalf<'_>, ReadHalf);
writes!(WriteHalf<'_>, WriteHalf);
