//! Where clients arrive: requests for the base domain that open a session. What a session is, whatever its client speaks, is
//! in [`session`]; each dialect is a wire and a mapping.

mod lanes;
mod native;
mod session;
mod v2;
mod v3;
mod websocket;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use retunnel_link::{Budget, Lane, limit_unsent, use_bbr};
use retunnel_proto::{
    dialect::v3::is_dialect_3,
    http1::{request::RequestHead, tokens},
    message::{Refusal, RefusalCode, Token},
    native::SUBPROTOCOL,
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::{debug, error};

use self::lanes::LaneDesk;
use crate::{
    auth::{Account, Auth, AuthError},
    config::{Registration, ServerConfig},
    hostnames::Hostnames,
    limits::{Places, RateLimits, waiting::Waiting},
    net::{handover::ApiRequest, rewind::Rewind, socket::Socket},
    registry::Registry,
    running::{Running, guarded},
};

/// Bytes of a link that may wait in its socket. More would delay small streams after large ones; they wait in the link's
/// own queues, where streams take turns.
const NOTSENT_LOWAT: u32 = 32 * 1024;
/// How long the WebSocket handshake of a lane may take.
const LANE_WITHIN: Duration = Duration::from_secs(10);

const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\n\r\n";

const NO_SUCH_LANE: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/json\r\n\
    Content-Length: 75\r\n\r\n{\"detail\":\"the lane is unknown, used or too late\",\"code\":\"lane_unavailable\"}";

/// What clients' sessions share.
#[derive(Debug)]
pub(crate) struct Control {
    config: Arc<ServerConfig>,
    /// Where the server listens.
    address: SocketAddr,
    registry: Arc<Registry>,
    running: Arc<Running>,
    auth: Auth,
    hostnames: Arc<Hostnames>,
    rates: Arc<RateLimits>,
    gate: Places,
    /// Connections that sessions wait for.
    lanes: LaneDesk,
    v2_sessions: v2::Sessions,
    /// Received bytes that wait for their readers, over all links.
    budget: Arc<Budget>,
    /// The same over all sessions of the published dialects.
    waiting: Arc<Waiting>,
}

/// What [`Control`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) address: SocketAddr,
    pub(crate) registry: Arc<Registry>,
    pub(crate) running: Arc<Running>,
    pub(crate) auth: Auth,
    pub(crate) hostnames: Arc<Hostnames>,
    pub(crate) rates: Arc<RateLimits>,
    pub(crate) gate: Places,
}

/// What a request for the base domain opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opens {
    /// A link over the bare connection.
    Link,
    /// A link in WebSocket messages.
    LinkInMessages,
    /// A session of a published dialect.
    Session,
    /// A data socket of a 2.x session.
    DataSocket,
}

impl Opens {
    fn of(head: &RequestHead) -> Option<Self> {
        let upgrade = head.upgrade.as_deref().unwrap_or_default();
        // A server address that ends in a slash gives the published clients a path that starts with two.
        let path = head.path();
        let path = path.strip_prefix(b"/").filter(|rest| rest.starts_with(b"/")).unwrap_or(path);
        let is_websocket = upgrade.eq_ignore_ascii_case(b"websocket");
        match path {
            b"/api/v1/link" if upgrade.eq_ignore_ascii_case(b"retunnel") => Some(Self::Link),
            b"/api/v1/link" if is_websocket && offers_link(head) => Some(Self::LinkInMessages),
            b"/api/v1/ws/tunnel" if is_websocket => Some(Self::Session),
            b"/api/v1/ws/proxy" if is_websocket => Some(Self::DataSocket),
            _ => None,
        }
    }
}

impl Control {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { config, address, registry, running, auth, hostnames, rates, gate } = parts;
        let max_buffered = config.limits.max_buffered;
        Self {
            config,
            address,
            registry,
            running,
            auth,
            hostnames,
            rates,
            gate,
            lanes: LaneDesk::default(),
            v2_sessions: v2::Sessions::default(),
            budget: Arc::new(Budget::new(max_buffered)),
            waiting: Arc::new(Waiting::new(max_buffered)),
        }
    }

    /// Opens what the request asks for, in a task of its own. Returns a request that opens nothing.
    pub(crate) async fn serve(self: &Arc<Self>, request: ApiRequest) -> Option<ApiRequest> {
        let Some(opens) = Opens::of(&request.head) else { return Some(request) };
        let ApiRequest { mut socket, head, received, visitor: peer } = request;
        if let (Opens::Link | Opens::LinkInMessages, Some(nonce)) = (opens, authorization(&head, "lane")) {
            let messages = (opens == Opens::LinkInMessages).then_some(received);
            self.lane(socket, messages, &nonce, peer).await;
            return None;
        }
        let permit = self.gate.enter(peer.ip(), false)?;
        let token = authorization(&head, "bearer");
        tune(&socket);
        let this = Arc::clone(self);
        let tasks = &self.running.tasks;
        let deadline = self.config.limits.unauthenticated_deadline;
        match opens {
            Opens::Link => {
                let rest = received.slice(head.len..);
                if socket.write_all(SWITCHING).await.is_ok() {
                    let session = native::serve(this, Rewind::new(rest, socket), token, peer, permit);
                    tasks.spawn(guarded("link", peer, session));
                }
            }
            Opens::LinkInMessages => {
                let io = Rewind::new(received, socket);
                tasks.spawn(guarded("link", peer, async move {
                    if let Some(Some(io)) = permit.within(deadline, websocket::link(io)).await {
                        native::serve(this, io, token, peer, permit).await;
                    }
                }));
            }
            Opens::Session | Opens::DataSocket => {
                let io = Rewind::new(received, socket);
                tasks.spawn(guarded("WebSocket", peer, async move {
                    let Some((socket, first)) = websocket::accept(io, &permit, deadline).await else {
                        debug!(%peer, ?opens, "WebSocket without a first message");
                        return;
                    };
                    match opens {
                        Opens::DataSocket => v2::serve_data_socket(this, (socket, first), token, peer, permit).await,
                        _ if is_dialect_3(&first) => v3::serve(this, (socket, first), peer, permit).await,
                        _ => v2::serve(this, (socket, first), token, peer, permit).await,
                    }
                }));
            }
        }
        None
    }

    /// Accepts a connection for one bulk stream of a session. Its nonce came over the session's link. `messages`: its bytes
    /// travel in a WebSocket, whose handshake this is.
    async fn lane(&self, mut socket: Socket, messages: Option<Bytes>, nonce: &Token, peer: SocketAddr) {
        let Some(place) = self.lanes.take(nonce) else {
            debug!(%peer, "unknown lane");
            let _ = socket.write_all(NO_SUCH_LANE).await;
            return;
        };
        socket.with(use_bbr);
        if let Some(handshake) = messages {
            if let Ok(Some(socket)) = timeout(LANE_WITHIN, websocket::link(Rewind::new(handshake, socket))).await {
                place.fill(Lane::other(socket));
            }
        } else if socket.write_all(SWITCHING).await.is_ok() {
            place.fill(socket.into());
        }
    }

    /// Forgets what is overdue. Called once a second.
    pub(crate) fn sweep(&self) {
        self.lanes.sweep();
    }

    /// The account of a token. Failures count against the peer's address.
    ///
    /// # Errors
    /// The refusal to send.
    async fn authenticate(&self, token: Option<&Token>, peer: SocketAddr) -> Result<Account, Refusal> {
        let Some(token) = token else {
            let message = "this server requires a token: register, or save one with `retunnel authtoken`";
            return Err(Refusal::new(RefusalCode::AuthRequired, message));
        };
        match self.auth.authenticate(token).await {
            Ok(account) => Ok(account),
            Err(AuthError::Invalid) => {
                if let Err(seconds) = self.rates.failed_authentication(peer.ip()) {
                    let message = "too many failed authentications from this address; wait before the next attempt";
                    return Err(Refusal::new(RefusalCode::RateLimited, message).after(seconds));
                }
                let message = "the token is unknown, revoked or expired; save a valid one with `retunnel authtoken`";
                Err(Refusal::new(RefusalCode::Unauthorized, message))
            }
            Err(cause) => {
                error!(%cause, "accounts cannot be read");
                Err(Refusal::new(RefusalCode::Internal, "the server cannot read its accounts now").after(2))
            }
        }
    }

    /// An account for a client that has no token and cannot ask for one, such as the published 3.0.0 and 3.0.1: only where
    /// registration is open, and counted as a registration.
    ///
    /// # Errors
    /// The refusal to send.
    async fn anonymous(&self, peer: SocketAddr) -> Result<Account, Refusal> {
        if self.config.registration != Registration::Open {
            return self.authenticate(None, peer).await;
        }
        if let Err(seconds) = self.rates.registration(peer.ip()) {
            let message = "too many registrations from this address";
            return Err(Refusal::new(RefusalCode::RateLimited, message).after(seconds));
        }
        let email = format!("anon-{}@retunnel.com", retunnel_proto::random_text(12));
        match self.auth.register(&email, None).await {
            Ok((_, token)) => self.authenticate(Some(&token), peer).await,
            Err(cause) => {
                error!(%cause, "account not created");
                Err(Refusal::new(RefusalCode::Internal, "the server cannot create an account now").after(2))
            }
        }
    }
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

/// Sets options of a connection that carries many visitors. All are best effort: a system without one works as well.
fn tune(socket: &Socket) {
    socket.with(|socket| {
        limit_unsent(socket, NOTSENT_LOWAT);
        use_bbr(socket);
    });
}
