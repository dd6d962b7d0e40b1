//! Sockets whose bytes the kernel may move.

use tokio::net::TcpStream;

/// A socket that may be plain TCP: then the kernel can move its bytes.
pub trait MaybeTcp {
    /// The socket itself, when nothing stands between it and the bytes.
    fn tcp(&self) -> Option<&TcpStream>;

    /// The same, where it may be replaced by another handle to the same connection.
    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        None
    }

    /// Bytes that may be read, or written, without anybody looking at them. Default: all.
    fn unseen(&self, _: Way) -> u64 {
        u64::MAX
    }

    /// So many were.
    fn skip(&mut self, _: Way, _count: u64) {}
}

/// What is done with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Bytes are read from it.
    Read,
    /// Bytes are written to it.
    Written,
}

impl MaybeTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        Some(self)
    }
}
