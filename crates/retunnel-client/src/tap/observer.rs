//! What an observer is shown.

use std::fmt;

/// One of the two halves of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// From the visitor to the local service.
    Request,
    /// From the local service to the visitor.
    Response,
}

/// Observes the HTTP exchanges of a client's tunnels. It is called on the thread that moves the bytes, so it must neither
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

    /// Bytes of a body without its transfer coding, or of the connection after a 101.
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
