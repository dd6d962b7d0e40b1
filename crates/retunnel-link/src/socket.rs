//! Sockets whose bytes the kernel may move.

use std::{future::Future, io, time::Duration};

use tokio::{net::TcpStream, time::timeout};

/// How long the last bytes before a reset may take. A slow peer needs some time for what the system has buffered.
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Bounds the bytes that wait in the socket and were not sent: others wait where streams take turns. Best effort; Linux only.
pub fn limit_unsent(socket: &TcpStream, bytes: u32) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(bytes);
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, bytes);
}

/// Chooses BBR, which keeps its rate over lossy paths. Best effort; Linux only.
pub fn use_bbr(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_congestion(b"bbr");
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// Waits until the system has sent what was written to the socket, within a limit of time. A reset that came earlier would
/// destroy the rest. Systems other than Linux do not wait.
pub fn last_bytes_sent(socket: &TcpStream) -> impl Future<Output = ()> + use<> {
    let twin = twin_writable_once_sent(socket);
    async move {
        if let Ok(twin) = twin {
            let _ = timeout(SENT_WITHIN, twin.writable()).await;
        }
    }
}

#[cfg(target_os = "linux")]
fn twin_writable_once_sent(socket: &TcpStream) -> io::Result<TcpStream> {
    // From now on the socket counts as writable while nothing waits to be sent. Only a new registration asks again.
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(1)?;
    crate::bulk::twin(socket, &tokio::runtime::Handle::current())
}

#[cfg(not(target_os = "linux"))]
fn twin_writable_once_sent(_: &TcpStream) -> io::Result<TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A socket that may be plain TCP. If it is, the kernel can move its bytes.
pub trait MaybeTcp {
    /// The TCP socket, if bytes pass through it unchanged.
    fn tcp(&self) -> Option<&TcpStream>;

    /// The same, if it may be replaced by another handle to the same connection.
    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        None
    }

    /// Bytes that may be moved in this direction without being inspected. Default: all.
    fn unseen(&self, _: Direction) -> u64 {
        u64::MAX
    }

    /// Reports that `_count` bytes were moved without being inspected.
    fn skip(&mut self, _: Direction, _count: u64) {}
}

/// Direction of bytes through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Bytes are read from it.
    Read,
    /// Bytes are written to it.
    Write,
}

impl MaybeTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        Some(self)
    }
}
