//! A connection whose first request is not for a visitor's protocol, on its way to the part that serves it.

use std::net::SocketAddr;

use bytes::Bytes;
use retunnel_proto::http1::request::RequestHead;

use super::socket::Socket;

/// A request for the base domain: the REST API, or a client's session.
#[derive(Debug)]
pub(crate) struct ApiRequest {
    pub(crate) socket: Socket,
    pub(crate) head: Box<RequestHead>,
    /// The request's head as received, and what came after it.
    pub(crate) received: Bytes,
    /// Who asks, also behind trusted proxies.
    pub(crate) visitor: SocketAddr,
}
