//! Sockets whose bytes the kernel may move.

use tokio::net::TcpStream;

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
