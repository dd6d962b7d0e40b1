//! Lanes: dedicated connections for bulk streams.
//!
//! Short transfers stay on the link, where one system call carries many streams. A stream that has moved
//! [`crate::LinkConfig::lane_after`] bytes is worth a connection: the kernel can move its bytes, and other streams do not
//! wait for them. The server offers a lane (`Move`), the client switches its direction and sends the offset of the first
//! byte on the lane (`Moved`), then the server does the same. Half-closes (`End`, with the count of all bytes) and resets
//! stay on the link, so that a lane that is cut is never taken for an end. A side that resets a stream ends its direction of
//! the lane, so that the peer knows the last byte before the reset. Without a lane the stream stays on the link.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Mutex, MutexGuard, OnceLock, RwLock},
    task::{Context, Poll, ready},
};

#[cfg(target_os = "linux")]
use std::sync::RwLockReadGuard;

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
};

use crate::chunk::Chunk;

/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 16;
const NO_PANIC: &str = "no code panics while it polls a lane";

/// Anything that is read and written like a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection for one bulk stream.
pub struct Lane(Kind);

enum Kind {
    /// The lock is held for writing only while the socket moves to a bulk thread, which only Linux has.
    Tcp(
        RwLock<TcpStream>,
        #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "bulk threads"))] OnceLock<&'static Handle>,
    ),
    Other(Mutex<Box<dyn Duplex>>),
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Tcp(..) => "Lane::tcp",
            Kind::Other(_) => "Lane::other",
        })
    }
}

impl Lane {
    /// A lane over plain TCP. If the other side of the relay is plain TCP too, the kernel moves the bytes.
    #[must_use]
    pub const fn tcp(socket: TcpStream) -> Self {
        Self(Kind::Tcp(RwLock::new(socket), OnceLock::new()))
    }

    /// A lane over TLS or anything else.
    #[must_use]
    pub fn other(connection: impl Duplex + 'static) -> Self {
        Self(Kind::Other(Mutex::new(Box::new(connection))))
    }

    /// The bulk thread that moves the lane's bytes, if it can. The first call registers the socket with that thread: tasks
    /// that waited for the socket must poll it again.
    #[cfg(target_os = "linux")]
    pub(crate) fn thread(&self) -> Option<&'static Handle> {
        let Kind::Tcp(socket, thread) = &self.0 else { return None };
        if thread.get().is_none() {
            let mut socket = socket.write().expect(NO_PANIC);
            if thread.get().is_none() {
                let home = crate::bulk::thread()?;
                *socket = crate::bulk::twin(&socket, home).ok()?;
                let _ = thread.set(home);
            }
        }
        thread.get().copied()
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn socket(&self) -> Option<RwLockReadGuard<'_, TcpStream>> {
        match &self.0 {
            Kind::Tcp(socket, _) => Some(socket.read().expect(NO_PANIC)),
            Kind::Other(_) => None,
        }
    }

    fn locked(connection: &Mutex<Box<dyn Duplex>>) -> MutexGuard<'_, Box<dyn Duplex>> {
        connection.lock().expect(NO_PANIC)
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            Kind::Tcp(socket, _) => socket.read().expect(NO_PANIC).poll_read_ready(cx).map(|_| ()),
            // Only a read shows it.
            Kind::Other(_) => Poll::Ready(()),
        }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Kind::Tcp(socket, _) => loop {
                let socket = socket.read().expect(NO_PANIC);
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
            Kind::Other(connection) => match Pin::new(&mut *Self::locked(connection)).poll_read(cx, buf) {
                // TLS without close_notify. As on plain TCP, the counts on the link show whether bytes are missing.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                polled => polled,
            },
        }
    }

    /// Ends our direction after what was written, and discards what still arrives: closing a connection with unread bytes
    /// destroys those that are under way to the peer. Ready when the peer has ended its direction too.
    pub(crate) fn poll_leave(&self, cx: &mut Context<'_>) -> Poll<()> {
        let shut = match &self.0 {
            Kind::Tcp(socket, _) => Pin::new(&mut *socket.write().expect(NO_PANIC)).poll_shutdown(cx),
            Kind::Other(connection) => Pin::new(&mut *Self::locked(connection)).poll_shutdown(cx),
        };
        if ready!(shut).is_err() {
            return Poll::Ready(());
        }
        let mut chunk = Chunk::lend();
        for _ in 0..READS_PER_POLL {
            let mut buf = ReadBuf::new(chunk.space());
            if ready!(self.poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &self.0 {
            Kind::Tcp(socket, _) => loop {
                let socket = socket.read().expect(NO_PANIC);
                ready!(socket.poll_write_ready(cx))?;
                match socket.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            },
            Kind::Other(connection) => Pin::new(&mut *Self::locked(connection)).poll_write(cx, bytes),
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Kind::Tcp(..) => Poll::Ready(Ok(())),
            Kind::Other(connection) => Pin::new(&mut *Self::locked(connection)).poll_flush(cx),
        }
    }
}
