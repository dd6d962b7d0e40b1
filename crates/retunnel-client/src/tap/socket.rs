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
    time::Instant,
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

    /// The time for what is written next. A busy machine may let the local service answer before this thread goes on after
    /// the write, so the time is taken before.
    fn before_write(&self) -> Option<Instant> {
        self.tap.as_ref().map(|_| Instant::now())
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
                bytes => tap.seen(Side::Response, bytes, Instant::now()),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TappedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let before = self.before_write();
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        if let (Some(tap), Some(before)) = (&mut self.tap, before) {
            tap.seen(Side::Request, &buf[..written], before);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = self.before_write();
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs))?;
        if let (Some(tap), Some(before)) = (&mut self.tap, before) {
            let mut left = written;
            for buf in bufs {
                let taken = left.min(buf.len());
                tap.seen(Side::Request, &buf[..taken], before);
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::Mutex, time::Duration};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        tap::{Exchange, Observer},
        transport::socket::ByteStream,
    };

    /// A local service that answers while the thread that writes to it has not gone on yet.
    #[derive(Debug, Default)]
    struct Quick {
        answered: bool,
    }

    impl ByteStream for Quick {
        fn below(&self) -> Option<&TcpStream> {
            None
        }
    }

    const BUSY: Duration = Duration::from_millis(20);

    impl AsyncRead for Quick {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !std::mem::replace(&mut self.answered, true) {
                buf.put_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Quick {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let began = Instant::now();
            while began.elapsed() < BUSY {
                std::hint::spin_loop();
            }
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// How long each exchange took until its answer began.
    #[derive(Debug, Clone, Default)]
    struct Times(Arc<Mutex<Vec<Duration>>>);

    #[derive(Debug)]
    struct Timed(Times, Instant);

    impl Observer for Times {
        fn request(&self, _: &str, _: &[u8], began: Instant) -> Option<Box<dyn Exchange>> {
            Some(Box::new(Timed(self.clone(), began)))
        }
    }

    impl Exchange for Timed {
        fn response(&mut self, _: &[u8]) {
            self.0.0.lock().expect("not poisoned").push(self.1.elapsed());
        }

        fn body(&mut self, _: Side, _: &[u8]) {}

        fn wants(&self, _: Side) -> bool {
            true
        }

        fn passed(&mut self, _: Side, _: u64) {}

        fn end(&mut self, _: Side) {}

        fn cut(&mut self, _: Side) {}

        fn failed(&mut self, _: &str) {}
    }

    #[tokio::test]
    async fn the_time_of_a_request_includes_the_sending_of_its_first_byte() {
        let times = Times::default();
        let tap = Box::new(Tap::new(Arc::new(times.clone()), "web".into()));
        let mut socket = TappedSocket::new(Socket::Other(Box::new(Quick::default())), Some(tap));
        socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        socket.read_to_end(&mut Vec::new()).await.expect("read");
        let times = times.0.lock().expect("not poisoned").clone();
        assert!(times.len() == 1 && times[0] >= BUSY, "{times:?}");
    }
}
