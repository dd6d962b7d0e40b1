//! Where clients arrive: requests for the base domain. A request that opens a session becomes a task of its own, all
//! others are answered by the REST API.

pub(crate) mod lanes;
pub(crate) mod native;
pub(crate) mod open;
pub(crate) mod v2;
pub(crate) mod v3;
mod websocket;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use retunnel_link::Lane;
use retunnel_proto::{dialect::v3::is_dialect_3, message::Token, native::SUBPROTOCOL};
use socket2::SockRef;
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::debug;

use crate::{
    core::Core,
    edge::{
        http1::{request::RequestHead, tokens},
        rewind::Rewind,
        socket::Socket,
    },
    guarded::guarded,
    rest::PeerAddr,
};

/// Bytes of a link that may wait in its socket. More would delay small streams behind big ones; they wait in the
/// link's own queues, where streams take turns.
const NOTSENT_LOWAT: u32 = 32 * 1024;
/// How long a REST request may take to arrive.
const REST_WITHIN: Duration = Duration::from_secs(10);

/// How long the WebSocket's handshake of a lane may take.
const LANE_WITHIN: Duration = Duration::from_secs(10);

const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\n\r\n";

/// Serves a request for the base domain. `received` holds the request's head and whatever came behind it.
pub(crate) async fn serve(core: &Arc<Core>, mut socket: Socket, head: &RequestHead, received: Bytes, peer: SocketAddr) {
    let upgrade = head.upgrade.as_deref().unwrap_or_default();
    // A server address with a slash at its end gives the published clients a path with two in front.
    let path = head.path();
    let path = path.strip_prefix(b"/").filter(|rest| rest.starts_with(b"/")).unwrap_or(path);
    let is_websocket = upgrade.eq_ignore_ascii_case(b"websocket");
    let in_messages = is_websocket && offers_link(head);
    let wants_link = path == b"/api/v1/link" && (in_messages || upgrade.eq_ignore_ascii_case(b"retunnel"));
    let wants_socket = matches!(path, b"/api/v1/ws/tunnel" | b"/api/v1/ws/proxy") && is_websocket;
    if !wants_link && !wants_socket {
        return rest(core, Rewind::new(received, socket), peer).await;
    }
    if wants_link && let Some(nonce) = authorization(head, "lane") {
        let messages = in_messages.then_some(received);
        return lane(core, socket, messages, &nonce, peer).await;
    }
    let permit = core.gate.enter(peer.ip());
    let token = authorization(head, "bearer");
    tune(&socket);
    let this = Arc::clone(core);
    if in_messages && wants_link {
        let io = Rewind::new(received, socket);
        core.tasks.spawn(guarded("link", peer, async move {
            let deadline = this.config.limits.unauthenticated_deadline;
            if let Some(Some(io)) = permit.within(deadline, websocket::link(io)).await {
                native::serve(this, io, token, peer, permit).await;
            }
        }));
        return;
    }
    if wants_link {
        let rest_of_it = received.slice(head.len..);
        if socket.write_all(SWITCHING).await.is_ok() {
            let session = native::serve(this, Rewind::new(rest_of_it, socket), token, peer, permit);
            core.tasks.spawn(guarded("link", peer, session));
        }
        return;
    }
    let is_control = path == b"/api/v1/ws/tunnel";
    let io = Rewind::new(received, socket);
    core.tasks.spawn(guarded("WebSocket", peer, async move {
        let deadline = this.config.limits.unauthenticated_deadline;
        let Some((socket, first)) = websocket::accept(io, &permit, deadline).await else {
            debug!(%peer, is_control, "WebSocket without a first message");
            return;
        };
        match is_control {
            true if is_dialect_3(&first) => v3::serve(this, (socket, first), peer, permit).await,
            true => v2::serve_control(this, (socket, first), token, peer, permit).await,
            false => v2::serve_proxy(this, (socket, first), token, peer, permit).await,
        }
    }));
}

/// Whether a WebSocket is meant to carry a link.
fn offers_link(head: &RequestHead) -> bool {
    tokens(head.headers.all("sec-websocket-protocol")).any(|offer| offer == SUBPROTOCOL.as_bytes())
}

/// The secret of an `Authorization` header with this scheme.
fn authorization(head: &RequestHead, wanted: &str) -> Option<Token> {
    let value = head.header("authorization")?;
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| Token::new(token.trim()))
}

/// A connection for one bulk stream of a session. Its nonce came over the session's link. `messages`: its bytes ride in a
/// WebSocket, whose handshake this is.
async fn lane(core: &Core, mut socket: Socket, messages: Option<Bytes>, nonce: &Token, peer: SocketAddr) {
    let Some(place) = core.lanes.take(nonce) else {
        debug!(%peer, "unknown lane");
        let _ = socket.write_all(NO_SUCH_LANE).await;
        return;
    };
    socket.with(|socket| drop(SockRef::from(socket).set_tcp_congestion(b"bbr")));
    if let Some(handshake) = messages {
        if let Ok(Some(socket)) = timeout(LANE_WITHIN, websocket::link(Rewind::new(handshake, socket))).await {
            place.fill(Lane::other(socket));
        }
    } else if socket.write_all(SWITCHING).await.is_ok() {
        place.fill(socket.into());
    }
}

const NO_SUCH_LANE: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/json\r\n\
    Content-Length: 75\r\n\r\n{\"detail\":\"the lane is unknown, used or too late\",\"code\":\"lane_unavailable\"}";

/// Socket options of a connection that carries many visitors. Each is a wish: a system that lacks one works without.
fn tune(socket: &Socket) {
    socket.with(|socket| {
        let socket = SockRef::from(socket);
        let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT);
        let _ = socket.set_tcp_congestion(b"bbr");
    });
}

/// One REST request. The connection is closed behind it, so that a later request cannot name another host.
async fn rest(core: &Arc<Core>, io: Rewind, peer: SocketAddr) {
    let router = TowerToHyperService::new(core.rest.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddr(peer));
        let router = router.clone();
        async move {
            Ok::<_, Infallible>(
                hyper::service::Service::call(&router, request).await.unwrap_or_else(|never| match never {}),
            )
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REST_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    tokio::select! {
        result = serving => if let Err(error) = result {
            debug!(%peer, %error, "REST connection failed");
        },
        () = core.stopping.cancelled() => {}
    }
}
