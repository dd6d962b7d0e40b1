//! One visitor's connection: reads heads, routes them, answers or passes them on, until it ends.

use std::{
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use retunnel_proto::{PageCode, message::RequestSummary};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::sync::WaitForCancellationFuture;
use tracing::{debug, info};

use crate::{
    control,
    core::Core,
    edge::{
        accept::unix_millis,
        buffer::{self, BUFFER, Buffer},
        exchange::{self, Outcome},
        host::Route,
        http1::{
            Framing,
            request::{self, RequestHead},
        },
        page::EdgeError,
        socket::Socket,
        tls::Arrived,
    },
    registry::{Found, Key},
    tunnel::Tunnel,
};

/// How long an answer may take to be read by a peer that is to be closed.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes thrown away while lingering.
const LINGER_BYTES: usize = 32 * 1024 * 1024;
/// Longest part of a request target in a report.
const REPORTED_TARGET: usize = 256;
/// How often a request whose client was lost before it answered is passed to the client's next session.
const TRIES: usize = 3;

/// A visitor's socket and what was read of the next request.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    pub(crate) peer: SocketAddr,
    pub(crate) received: BytesMut,
}

/// What a head is about.
enum Arrival {
    Request(Box<RequestHead>, Bytes),
    /// Nothing more comes.
    End,
}

/// Answers a connection that is one too many.
pub(crate) async fn turn_away(core: &Core, socket: Socket, peer: SocketAddr) {
    if let Some(socket) = secured(core, socket, peer).await {
        Connection { socket, peer, received: BytesMut::new() }.refuse(&EdgeError::TooManyConnections).await;
    }
}

/// The connection behind its handshake, where the server has a certificate.
async fn secured(core: &Core, socket: Socket, peer: SocketAddr) -> Option<Socket> {
    let Some(tls) = &core.tls else { return Some(socket) };
    match Box::pin(tls.accept(core, socket, peer)).await {
        Arrived::Secure(socket) => return Some(socket),
        Arrived::Unencrypted(socket) => {
            debug!(%peer, "request without TLS");
            let mut connection = Connection { socket, peer, received: BytesMut::new() };
            Box::pin(connection.refuse(&EdgeError::HttpsRequired)).await;
        }
        Arrived::Nothing => {}
    }
    None
}

/// [`serve`] with a share of its own.
pub(crate) async fn serve_owned(core: Arc<Core>, socket: Socket, peer: SocketAddr) {
    serve(&core, socket, peer).await;
}

/// Serves a connection until it ends. The task's size is what an idle visitor costs, so that everything but the wait for
/// the next head is in a box of its own.
pub(crate) async fn serve(core: &Arc<Core>, socket: Socket, peer: SocketAddr) {
    let Some(socket) = secured(core, socket, peer).await else { return };
    let mut connection = Connection { socket, peer, received: BytesMut::new() };
    let mut patience = core.config.limits.header_timeout;
    // One timer and two signals for all requests of a connection: to wait for them anew each time costs more than to parse.
    let mut timer = pin!(sleep_until(Instant::now() + patience));
    let mut draining = pin!(core.draining.cancelled());
    let mut stopping = pin!(core.stopping.cancelled());
    loop {
        timer.as_mut().reset(Instant::now() + patience);
        let ends = Ends { timer: timer.as_mut(), draining: draining.as_mut(), stopping: stopping.as_mut() };
        let (head, bytes) = match connection.next_head(core, ends).await {
            Ok(Arrival::Request(head, bytes)) => (head, bytes),
            Ok(Arrival::End) => return,
            Err(error) => {
                debug!(%peer, code = error.code(), "request refused");
                if core.config.access_log {
                    info!(target: "retunnel::access", visitor = %peer.ip(), status = error.status(), error = error.code());
                }
                return Box::pin(connection.refuse(&error)).await;
            }
        };
        let route = head.host.route(&core.config.domain);
        if route == Route::Api {
            let visitor = SocketAddr::new(visitor_address(core, &head, peer).0, peer.port());
            return Box::pin(control::serve(core, connection.socket, &head, bytes, visitor)).await;
        }
        connection.received = match bytes.slice(head.len..) {
            rest if rest.is_empty() => BytesMut::new(),
            rest => BytesMut::from(rest),
        };
        drop(bytes);
        if !Box::pin(connection.request(core, &head, route)).await {
            return Box::pin(connection.linger()).await;
        }
        patience = core.config.limits.keep_alive_timeout;
    }
}

/// What ends the wait for a head.
struct Ends<'a, 'core> {
    timer: Pin<&'a mut Sleep>,
    draining: Pin<&'a mut WaitForCancellationFuture<'core>>,
    stopping: Pin<&'a mut WaitForCancellationFuture<'core>>,
}

impl Connection {
    /// Waits for the next head. The connection owns no buffer while nothing has arrived.
    async fn next_head(&mut self, core: &Core, mut ends: Ends<'_, '_>) -> Result<Arrival, EdgeError> {
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
                if let Some(end) = request::find_end(&self.received, &mut scanned)? {
                    let bytes = std::mem::take(&mut self.received).freeze();
                    return Ok(Arrival::Request(Box::new(request::parse(bytes.slice(..end))?), bytes));
                }
                if !begun {
                    begun = true;
                    ends.timer.as_mut().reset(Instant::now() + core.config.limits.header_timeout);
                }
            }
            // Every arm is cancel-safe.
            tokio::select! {
                biased;
                read = buffer::read_behind(&mut self.socket, &mut self.received) => {
                    if matches!(read, Ok(0) | Err(_)) {
                        return Ok(Arrival::End);
                    }
                }
                () = &mut ends.timer => {
                    return if begun { Err(EdgeError::RequestTimeout) } else { Ok(Arrival::End) };
                }
                () = &mut ends.draining, if !begun => return Ok(Arrival::End),
                () = &mut ends.stopping => return Ok(Arrival::End),
            }
        }
    }

    /// Serves one request; says whether another may follow.
    async fn request(&mut self, core: &Arc<Core>, head: &RequestHead, route: Route) -> bool {
        let started = Instant::now();
        let visitor = visitor_address(core, head, self.peer);
        let (outcome, tunnel) = self.pass_on(core, head, route, visitor, started).await;
        let keep_alive = self.finish(&outcome, head).await;
        let status = outcome.status();
        let error = match &outcome.error {
            Some(error) => error.code(),
            None if outcome.host_refused => PageCode::HostNotAllowed.as_str(),
            None => "",
        };
        if let Some(tunnel) = tunnel {
            tunnel.activity.record(|| RequestSummary {
                method: String::from_utf8_lossy(&head.method).into_owned(),
                path: shortened(&head.target),
                status,
                duration_ms: u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX),
                bytes_out: outcome.bytes_out,
                bytes_in: outcome.bytes_in,
                started_ms: unix_millis().saturating_sub(milliseconds(started)),
                visitor: visitor.0.to_string(),
                error: error.to_owned(),
            });
        }
        if core.config.access_log {
            info!(
                target: "retunnel::access",
                host = %String::from_utf8_lossy(&head.authority),
                visitor = %visitor.0,
                method = %String::from_utf8_lossy(&head.method),
                path = %shortened(head.path()),
                status,
                bytes_in = outcome.bytes_in,
                bytes_out = outcome.bytes_out,
                ms = milliseconds(started),
                error,
                truncated = outcome.cut,
            );
        }
        keep_alive && !core.draining.is_cancelled()
    }

    /// Passes a request on to the tunnel it names, if there is one that admits it.
    async fn pass_on(
        &mut self,
        core: &Arc<Core>,
        head: &RequestHead,
        route: Route,
        visitor: (IpAddr, bool),
        now: Instant,
    ) -> (Outcome, Option<Arc<Tunnel>>) {
        // A refused request's body is not read; without one the connection can stay open.
        let refused =
            |error| Outcome { error: Some(error), keep_alive: head.body == Framing::None, ..Outcome::default() };
        let key = match route {
            Route::Tunnel(name) => Key::Name(name),
            Route::Foreign(hostname) => Key::Host(hostname),
            Route::Api => return (refused(EdgeError::TunnelNotFound), None),
        };
        let (mut tries, mut now) = (0, now);
        loop {
            tries += 1;
            let tunnel = match core.registry.find(&key, now, core.config.limits.hold_visitors).await {
                Found::Live(tunnel) => tunnel,
                Found::Held(until) => {
                    let seconds = until.saturating_duration_since(Instant::now()).as_secs().max(1);
                    return (refused(EdgeError::TunnelOffline(seconds)), None);
                }
                Found::Free => return (refused(EdgeError::TunnelNotFound), None),
            };
            if let Some(access) = &tunnel.access
                && !access.admits(&head.headers)
            {
                return (refused(EdgeError::Unauthorized), Some(tunnel));
            }
            let outcome = exchange::exchange(core, self, head, &tunnel, visitor).await;
            if !outcome.retry || tries == TRIES {
                return (outcome, Some(tunnel));
            }
            debug!(tunnel = %key, "client lost before it answered; request passed on again");
            now = Instant::now();
        }
    }

    /// Ends what an exchange left: an error page, a reset, or nothing.
    async fn finish(&mut self, outcome: &Outcome, head: &RequestHead) -> bool {
        if outcome.cut {
            // A truncated answer must never look complete.
            self.socket.abort();
            return false;
        }
        match &outcome.error {
            Some(error) => {
                let keep_alive = head.keep_alive && outcome.keep_alive;
                let accept = head.header("accept").unwrap_or_default();
                self.answer(error, accept, head.is_head(), !keep_alive).await && keep_alive
            }
            None => outcome.keep_alive,
        }
    }

    /// Says what is wrong, as text, and closes.
    async fn refuse(&mut self, error: &EdgeError) {
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
        let _ = timeout(LINGER, async {
            if self.socket.shutdown().await.is_err() {
                return;
            }
            let mut thrown_away = 0;
            while thrown_away < LINGER_BYTES {
                match Buffer::read(&mut self.socket, 0..BUFFER).await {
                    Ok((_, 0)) | Err(_) => return,
                    Ok((_, count)) => thrown_away += count,
                }
            }
        })
        .await;
    }
}

/// Who the visitor is: the connection's peer, or what a trusted proxy says about its own peer.
fn visitor_address(core: &Core, head: &RequestHead, peer: SocketAddr) -> (IpAddr, bool) {
    let trusted = |address: IpAddr| core.config.trusted_proxies.iter().any(|net| net.contains(&address));
    if !trusted(peer.ip()) {
        return (peer.ip(), false);
    }
    let chain: Vec<&[u8]> = super::http1::tokens(head.headers.all("x-forwarded-for")).collect();
    let told = chain
        .iter()
        .rev()
        .map_while(|entry| std::str::from_utf8(entry).ok()?.parse::<IpAddr>().ok())
        .find(|address| !trusted(*address));
    (told.unwrap_or_else(|| peer.ip()), true)
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn shortened(target: &[u8]) -> String {
    String::from_utf8_lossy(&target[..target.len().min(REPORTED_TARGET)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F>(_: impl FnOnce(&'a Arc<Core>, Socket, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_visitor_costs_little() {
        let size = size_of_future(serve);
        assert!(size <= 1024, "{size}");
    }
}
