//! Visitors that speak HTTP/1.1: reads heads, routes them, and is one side of the exchange ([`Downstream`]), until the
//! connection ends.

mod answer;
mod body;

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use retunnel_proto::http1::request::{self, RequestHead};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::sync::WaitForCancellationFuture;
use tracing::{debug, info};

use self::{answer::Http1Answer, body::Http1Body};
use super::{Edge, downstream::Downstream, exchange, page::EdgeError, route::Route};
use crate::{
    limits::Place,
    net::{
        buffer::{self, BUFFER, Buffer},
        handover::ApiRequest,
        socket::Socket,
        tls::Arrived,
    },
    tunnel::upstream::{ConnectionId, Upgraded},
};

/// How long a peer may take to read the answer before its connection is closed.
const LINGER: Duration = Duration::from_secs(2);
/// The same while it sends the rest of a request that was answered early: many visitors read only after it.
const LINGER_SENDING: Duration = Duration::from_secs(30);

/// A visitor's socket and what was read of the next request.
#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    socket: Socket,
    peer: SocketAddr,
    received: BytesMut,
    /// How long a visitor may send nothing of a body.
    body_timeout: Duration,
}

/// What the wait for a head ended with.
enum Arrival {
    Request(Box<RequestHead>, Bytes),
    /// The connection ends.
    End,
}

impl Connection {
    fn new(socket: Socket, peer: SocketAddr, body_timeout: Duration) -> Self {
        Self { id: ConnectionId::next(), socket, peer, received: BytesMut::new(), body_timeout }
    }
}

/// The connection after its handshake, where the server has a certificate.
async fn secured(edge: &Edge, socket: Socket, peer: SocketAddr) -> Option<Socket> {
    let Some(tls) = &edge.tls else { return Some(socket) };
    let permit = edge.gate.enter(peer.ip(), edge.is_trusted(peer.ip()))?;
    let limits = &edge.config.limits;
    match Box::pin(tls.accept(socket, peer, permit, limits.header_timeout, &edge.running.draining)).await {
        Arrived::Secure(socket) => return Some(socket),
        Arrived::Unencrypted(socket) => {
            debug!(%peer, "request without TLS");
            let mut connection = Connection::new(socket, peer, limits.body_timeout);
            Box::pin(connection.close_with(&EdgeError::HttpsRequired)).await;
        }
        Arrived::Nothing => {}
    }
    None
}

/// Serves a connection until it ends or a request is for the base domain. The task's size is the cost of an idle visitor,
/// so that everything but the wait for the next head is in a box.
pub(super) async fn serve(edge: &Edge, socket: Socket, peer: SocketAddr, place: &Place) -> Option<ApiRequest> {
    let socket = secured(edge, socket, peer).await?;
    let mut connection = Connection::new(socket, peer, edge.config.limits.body_timeout);
    let mut limit = edge.config.limits.header_timeout;
    // One timer and two signals for all requests of a connection: registering them for each costs more than parsing.
    let mut timer = pin!(sleep_until(Instant::now() + limit));
    let mut draining = pin!(edge.running.draining.cancelled());
    let mut stopping = pin!(edge.running.stopping.cancelled());
    loop {
        let now = Instant::now();
        timer.as_mut().reset(now + limit);
        place.set_idle(now);
        let ends = Ends { timer: timer.as_mut(), draining: draining.as_mut(), stopping: stopping.as_mut(), place };
        let (head, received) = match connection.next_head(edge, ends).await {
            Ok(Arrival::Request(head, received)) => (head, received),
            Ok(Arrival::End) => return None,
            Err(error) => {
                debug!(%peer, code = error.code(), "request refused");
                if edge.config.access_log {
                    info!(target: "retunnel::access", visitor = %peer.ip(), status = error.status(), error = error.code());
                }
                Box::pin(connection.close_with(&error)).await;
                return None;
            }
        };
        place.set_busy();
        let route = Route::of(&head.host, &edge.config.domain);
        if route == Route::Api {
            let visitor = SocketAddr::new(edge.visitor_of(&head, peer).0, peer.port());
            return Some(ApiRequest { socket: connection.socket, head, received, visitor });
        }
        if place.is_reserve() {
            Box::pin(connection.close_with(&EdgeError::TooManyConnections)).await;
            return None;
        }
        connection.received = match received.slice(head.len..) {
            rest if rest.is_empty() => BytesMut::new(),
            rest => BytesMut::from(rest),
        };
        drop(received);
        if !Box::pin(exchange::serve(edge, &mut connection, &head, route)).await {
            if connection.socket.is_aborted() {
                // What the visitor was sent arrives before the reset.
                tokio::select! {
                    () = Box::pin(connection.socket.last_bytes_sent()) => {}
                    () = &mut stopping => {}
                }
                return None;
            }
            Box::pin(connection.linger()).await;
            return None;
        }
        limit = edge.config.limits.keep_alive_timeout;
    }
}

/// What ends the wait for a head.
struct Ends<'a, 'edge> {
    timer: Pin<&'a mut Sleep>,
    draining: Pin<&'a mut WaitForCancellationFuture<'edge>>,
    stopping: Pin<&'a mut WaitForCancellationFuture<'edge>>,
    place: &'a Place,
}

impl Connection {
    /// Waits for the next head. The connection owns no buffer while nothing has arrived.
    async fn next_head(&mut self, edge: &Edge, mut ends: Ends<'_, '_>) -> Result<Arrival, EdgeError> {
        let limits = edge.config.limits.request_head();
        let mut scanned = 0;
        let mut begun = false;
        loop {
            while self.received.starts_with(b"\r\n") {
                // RFC 9112, 2.2: an empty line before a request is ignored.
                self.received.advance(2);
                scanned = 0;
            }
            if self.received.is_empty() {
                self.received = BytesMut::new();
            } else {
                if let Some(end) = request::find_end(&self.received, &mut scanned, limits)? {
                    let bytes = std::mem::take(&mut self.received).freeze();
                    return Ok(Arrival::Request(Box::new(request::parse(bytes.slice(..end), limits)?), bytes));
                }
                if !begun {
                    begun = true;
                    ends.timer.as_mut().reset(Instant::now() + edge.config.limits.header_timeout);
                }
            }
            // Every arm is cancel-safe.
            tokio::select! {
                biased;
                read = buffer::read_into(&mut self.socket, &mut self.received) => {
                    if matches!(read, Ok(0) | Err(_)) {
                        return Ok(Arrival::End);
                    }
                }
                () = &mut ends.timer => {
                    return if begun { Err(EdgeError::RequestTimeout) } else { Ok(Arrival::End) };
                }
                () = &mut ends.draining, if !begun => return Ok(Arrival::End),
                () = &mut ends.stopping => return Ok(Arrival::End),
                () = poll_fn(|cx| ends.place.poll_evicted(cx)) => return Ok(Arrival::End),
            }
        }
    }

    /// Answers with a page as text, and closes.
    async fn close_with(&mut self, error: &EdgeError) {
        self.answer(error, b"", false, true).await;
        self.linger().await;
    }

    async fn answer(&mut self, error: &EdgeError, accept: &[u8], to_head: bool, close: bool) -> bool {
        let page = error.render(accept, to_head, close);
        matches!(timeout(LINGER, self.socket.write_all(&page)).await, Ok(Ok(())))
    }

    /// Closes so that the peer can read the answer: bytes it still sends would otherwise turn the end into a reset.
    async fn linger(&mut self) {
        if self.socket.is_aborted() {
            return;
        }
        let _ = timeout(LINGER_SENDING, async {
            if !matches!(timeout(LINGER, self.socket.shutdown()).await, Ok(Ok(()))) {
                return;
            }
            while let Ok(Ok((_, 1..))) = timeout(LINGER, Buffer::read(&mut self.socket, 0..BUFFER)).await {}
        })
        .await;
    }
}

impl Downstream for Connection {
    type Body<'a> = Http1Body<'a>;
    type Answer<'a> = Http1Answer<'a>;

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn connection(&self) -> ConnectionId {
        self.id
    }

    fn is_encrypted(&self) -> bool {
        self.socket.is_encrypted()
    }

    fn split<'a>(&'a mut self, request: &'a RequestHead) -> (Http1Body<'a>, Http1Answer<'a>) {
        let (from_visitor, to_visitor) = self.socket.split();
        let body = Http1Body::new(request.body, from_visitor, &mut self.received, self.body_timeout);
        (body, Http1Answer::new(to_visitor, request.is_http_11))
    }

    fn upgraded(&mut self) -> Upgraded<'_> {
        Upgraded { socket: &mut self.socket, received: std::mem::take(&mut self.received) }
    }

    async fn refuse(&mut self, error: &EdgeError, request: &RequestHead, keep_alive: bool) -> bool {
        let accept = request.header("accept").unwrap_or_default();
        self.answer(error, accept, request.is_head(), !keep_alive).await
    }

    fn cut(&mut self) {
        self.socket.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F>(_: impl FnOnce(&'a Edge, Socket, SocketAddr, &'a Place) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_visitor_costs_little() {
        let size = size_of_future(serve);
        assert!(size <= 1024, "{size}");
    }
}
