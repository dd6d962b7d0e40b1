//! A connection whose bytes are shown to a tap.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use retunnel_link::{Direction, MaybeTcp};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{http1::Tap, observer::Side};
use crate::transport::Socket;

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

    /// Makes the end of the connection a reset.
    pub(crate) fn abort(&self) {
        self.socket.abort();
    }

    /// Waits until what was written is sent, within a limit of time.
    pub(crate) fn last_bytes_sent(&self) -> impl Future<Output = ()> + use<> {
        self.socket.last_bytes_sent()
    }

    /// Acknowledges what has arrived at once.
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

    fn unseen(&self, direction: Direction) -> u64 {
        self.tap.as_ref().map_or(u64::MAX, |tap| tap.unseen(side(direction)))
    }

    fn skip(&mut self, direction: Direction, count: u64) {
        if let Some(tap) = &mut self.tap {
            tap.skip(side(direction), count);
        }
    }
}

const fn side(direction: Direction) -> Side {
    match direction {
        Direction::Read => Side::Response,
        Direction::Write => Side::Request,
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
