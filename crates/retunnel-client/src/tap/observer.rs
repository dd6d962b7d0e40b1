//! What an observer sees.

use std::fmt;

use tokio::time::Instant;

/// One of the two halves of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// From the visitor to the local service.
    Request,
    /// From the local service to the visitor.
    Response,
}

/// Sees the HTTP exchanges of a client's tunnels. It is called on the thread that moves the bytes, so it must neither block
/// nor do much work.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The head of a request to the local service of a tunnel: request line, headers and the empty line, in the form of
    /// HTTP/1.1. `began`: when its first byte was about to be sent. `None` ignores this exchange.
    fn request(&self, tunnel: &str, head: &[u8], began: Instant) -> Option<Box<dyn Exchange>>;
}

/// One request and its answer. It is dropped when both have ended, or the connection has: a side whose [`Exchange::end`]
/// was not called is incomplete.
pub trait Exchange: fmt::Debug + Send {
    /// The head of the answer, in the same form as the request's. Interim answers are left out, except 101.
    fn response(&mut self, head: &[u8]);

    /// Bytes of a body without its transfer coding, or of the connection after a 101.
    fn body(&mut self, side: Side, bytes: &[u8]);

    /// Whether [`Exchange::body`] needs more bytes of this side; if not, [`Exchange::passed`] may count them instead.
    fn wants(&self, side: Side) -> bool;

    /// The number of bytes that passed without [`Exchange::body`].
    fn passed(&mut self, side: Side, count: u64);

    /// A side is complete.
    fn end(&mut self, side: Side);

    /// The connection ended before this side was complete.
    fn cut(&mut self, side: Side);

    /// The local service accepted no connection. The request did not reach it, and the server answers the visitor.
    fn failed(&mut self, reason: &str);
}
