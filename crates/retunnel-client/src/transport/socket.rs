//! A connection to the server or to a local service, with all its layers.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use retunnel_link::{Lane, MaybeTcp, TlsSocket, last_bytes_sent};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::listener::LocalStream;

/// Bytes in both directions over something other than a connection of the system, for example messages of a WebSocket.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {
    /// The TCP connection below.
    fn below(&self) -> Option<&TcpStream>;

    /// Makes the end of the bytes an error for the other side, where no TCP connection is below.
    fn abort(&self) {}
}

impl ByteStream for LocalStream {
    fn below(&self) -> Option<&TcpStream> {
        None
    }

    fn abort(&self) {
        Self::abort(self);
    }
}

/// A connection to the server or to a local service.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsSocket>),
    /// TLS with the server within TLS with a proxy.
    Nested(Box<TlsSocket<Self>>),
    /// Bytes that came with the answer to the upgrade are read first.
    Prefixed(Bytes, Box<Self>),
    /// Anything else that carries bytes.
    Other(Box<dyn ByteStream>),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

impl MaybeTcp for Socket {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            _ => None,
        }
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            _ => None,
        }
    }
}

impl From<Socket> for Lane {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Plain(socket) => Self::tcp(socket),
            other => Self::other(other),
        }
    }
}

impl Socket {
    /// The TCP connection below all layers.
    pub(super) fn below(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => Some(stream.get_ref()),
            Self::Nested(stream) => stream.get_ref().below(),
            Self::Prefixed(_, inner) => inner.below(),
            Self::Other(stream) => stream.below(),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }

    /// Makes the end of the connection a reset instead of a clean end.
    pub(crate) fn abort(&self) {
        if let Some(socket) = self.below() {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        } else if let Self::Other(stream) = self {
            stream.abort();
        }
    }

    /// Waits until what was written is sent, within a limit of time. [`Self::abort`] would destroy the rest.
    pub(crate) fn last_bytes_sent(&self) -> impl Future<Output = ()> + use<> {
        let sent = self.below().map(last_bytes_sent);
        async {
            if let Some(sent) = sent {
                sent.await;
            }
        }
    }

    /// Acknowledges what has arrived at once, on systems that have an option for it.
    pub(crate) fn acknowledge(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(socket) = self.below() {
            let _ = SockRef::from(socket).set_tcp_quickack(true);
        }
    }
}

macro_rules! each {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Plain($socket) => $call,
            Socket::Tls($socket) => $call,
            Socket::Nested($socket) => $call,
            Socket::Prefixed(_, $socket) => $call,
            Socket::Other($socket) => $call,
            #[cfg(unix)]
            Socket::Unix($socket) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Self::Prefixed(prefix, _) = &mut *self
            && !prefix.is_empty()
        {
            let len = prefix.len().min(buf.remaining());
            buf.put_slice(&prefix[..len]);
            prefix.advance(len);
            return Poll::Ready(Ok(()));
        }
        each!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(socket) => socket.is_write_vectored(),
            Self::Nested(socket) => socket.is_write_vectored(),
            Self::Prefixed(_, socket) => socket.is_write_vectored(),
            Self::Other(socket) => socket.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
