//! A copy of what visitors and the local service say to each other, for whoever wants to look at it: the inspector.
//!
//! Without an observer there is no copy and no cost. With one, `TappedSocket` shows what it moves to a `Tap`, which finds
//! the exchanges in it. A dialect that does HTTP with the local service over a socket needs nothing else; one that has
//! requests and answers as values may call [`Observer`] and [`Exchange`] itself.
//!
//! A tap needs to see bytes before they are gone: whoever moves bytes past it (`splice`) asks `Tap::unseen` how many may go
//! unlooked at and reports them with `Tap::skip`.

mod http1;

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use retunnel_link::{MaybeTcp, Way};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub(crate) use http1::Tap;

use crate::transport::Socket;

/// One of the two halves of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// From the visitor to the local service.
    Request,
    /// From the local service to the visitor.
    Response,
}

/// Looks at the HTTP exchanges of a client's tunnels. It is called on the thread that moves the bytes, so it must neither
/// wait nor do much.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// A request's head went, or should go, to the local service of a tunnel: request line, headers and the empty line, as HTTP/1.1 has
    /// them. `None` does not look at this exchange.
    fn request(&self, tunnel: &str, head: &[u8]) -> Option<Box<dyn Exchange>>;
}

/// One request and its answer. It is dropped when both are over, or the connection is: a side whose [`Exchange::end`] was
/// not called was cut.
pub trait Exchange: fmt::Debug + Send {
    /// The head of the answer, in the same form as the request's. Interim answers are not shown, but 101 is.
    fn response(&mut self, head: &[u8]);

    /// Bytes of a body without its transfer coding, or of the connection behind a 101.
    fn body(&mut self, side: Side, bytes: &[u8]);

    /// Whether bytes of this side must still be shown; if not, they may be counted with [`Exchange::passed`] alone.
    fn wants(&self, side: Side) -> bool;

    /// So many bytes passed without being shown.
    fn passed(&mut self, side: Side, count: u64);

    /// A side has come to its proper end.
    fn end(&mut self, side: Side);

    /// The local service took no connection: the request did not reach it, and the server answers the visitor.
    fn failed(&mut self, reason: &str);
}

/// A connection to the local service whose bytes are shown to a tap, if there is one.
#[derive(Debug)]
pub(crate) struct TappedSocket {
    socket: Socket,
    tap: Option<Box<Tap>>,
}

impl TappedSocket {
    pub(crate) const fn new(socket: Socket, tap: Option<Box<Tap>>) -> Self {
        Self { socket, tap }
    }

    /// The connection is reset, not closed.
    pub(crate) fn abort(&self) {
        self.socket.abort();
    }

    /// What has arrived is acknowledged at once.
    pub(crate) fn acknowledge(&self) {
        self.socket.acknowledge();
    }
}

impl MaybeTcp for TappedSocket {
    fn tcp(&self) -> Option<&TcpStream> {
        self.socket.tcp()
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        self.socket.tcp_mut()
    }

    fn unseen(&self, way: Way) -> u64 {
        self.tap.as_ref().map_or(u64::MAX, |tap| tap.unseen(side(way)))
    }

    fn skip(&mut self, way: Way, count: u64) {
        if let Some(tap) = &mut self.tap {
            tap.skip(side(way), count);
        }
    }
}

const fn side(way: Way) -> Side {
    match way {
        Way::Read => Side::Response,
        Way::Written => Side::Request,
    }
}

impl AsyncRead for TappedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        if let Some(tap) = &mut self.tap {
            match &buf.filled()[before..] {
                [] => tap.closed(Side::Response),
                bytes => tap.seen(Side::Response, bytes),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TappedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        if let Some(tap) = &mut self.tap {
            tap.seen(Side::Request, &buf[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs))?;
        if let Some(tap) = &mut self.tap {
            let mut left = written;
            for buf in bufs {
                let taken = left.min(buf.len());
                tap.seen(Side::Request, &buf[..taken]);
                left -= taken;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        if let Some(tap) = &mut self.tap {
            tap.closed(Side::Request);
        }
        Poll::Ready(Ok(()))
    }
}
