//! Dialect 2 sessions: a control WebSocket, and one data WebSocket for each visitor's request.
//!
//! Data sockets carry neither tunnel nor request, so the requests of a session wait in one queue and each socket that
//! arrives takes the oldest. A socket serves one request and is closed (`docs/protocol.md`, dialect 2).

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::SinkExt;
use retunnel_proto::{
    ClientId, RequestId, TunnelId,
    dialect::v2,
    limits::{MAX_CONTROL_MESSAGE, V2_MAX_RESPONSE},
    message::{
        Auth, AuthResp, ClientMessage, NewTunnel, ProxyRequest, ProxyResponse, Refusal, RefusalCode, ReqTunnel,
        ServerMessage, StartProxy, Token, TunnelProtocol, Welcome,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, broadcast::Receiver, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_websockets::{Message, WebSocketStream};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::{
    auth::{Account, Revoked},
    control::{
        open::{Opening, open_tunnel},
        websocket::{Charge, Counted, close, next_message},
    },
    core::Core,
    limits::UnauthenticatedPermit,
    registry::Key,
    tunnel::{Tunnel, Upstream},
};

/// Requests of one session that wait for a data socket or an answer. The clients run 10 to 100 at a time.
const MAX_PENDING: usize = 256;
/// Control messages that wait to be sent.
const MAX_QUEUED: usize = 512;
/// Clients ping every 20 s; without a word for so long the session is gone.
const SILENCE: Duration = Duration::from_secs(50);
/// Time between WebSocket pings, which every client answers at once.
const PING_EVERY: Duration = Duration::from_secs(3);
/// Unanswered for so long, the client is gone.
const PONG_WITHIN: Duration = Duration::from_secs(9);
/// A request that got no data socket for so long asks again: clients lose a `ReqProxy` when their own connection limit
/// makes it wait too long.
const ASK_AGAIN: Duration = Duration::from_secs(12);

/// A request that waits for a data socket.
#[derive(Debug)]
struct Pending {
    start: StartProxy,
    request: ProxyRequest,
    answer: oneshot::Sender<Result<Answered, RelayError>>,
    asked_at: Instant,
}

/// An answer, and the room that it takes among all that wait.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: ProxyResponse,
    _charge: Option<Charge>,
}

/// Why a request over a 2.x session has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RelayError {
    /// The client closed the data socket without an answer: the local service cannot be reached.
    #[error("the client closed the data socket without an answer")]
    ClosedEarly,
    /// The answer cannot be understood.
    #[error("the client's answer is invalid")]
    Invalid,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The session ended.
    #[error("the client's session ended")]
    SessionEnded,
    /// Too many requests wait.
    #[error("too many requests wait for this client")]
    TooMany,
}

/// A session as the edge and the data sockets see it.
#[derive(Debug)]
pub(crate) struct V2Session {
    pub(crate) account: Account,
    pending: Mutex<VecDeque<Pending>>,
    in_flight: tokio::sync::Semaphore,
    control: mpsc::Sender<ServerMessage>,
}

impl V2Session {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.pending.lock().expect("no code panics while it holds the queue")
    }

    /// The oldest request whose visitor still waits.
    fn next_pending(&self) -> Option<Pending> {
        let mut pending = self.lock();
        while let Some(oldest) = pending.pop_front() {
            if !oldest.answer.is_closed() {
                return Some(oldest);
            }
        }
        None
    }

    /// Asks again for requests that starve.
    fn ask_again(&self) {
        let now = Instant::now();
        let mut pending = self.lock();
        pending.retain(|waiting| !waiting.answer.is_closed());
        for waiting in pending.iter_mut().filter(|waiting| now.duration_since(waiting.asked_at) >= ASK_AGAIN) {
            waiting.asked_at = now;
            let _ = self.control.try_send(ServerMessage::ReqProxy);
        }
    }
}

/// One tunnel of a 2.x session.
#[derive(Debug)]
pub(crate) struct V2Upstream {
    session: Arc<V2Session>,
    id: TunnelId,
}

impl V2Upstream {
    /// Sends a request and waits for its answer, at most for `patience`.
    ///
    /// # Errors
    /// [`RelayError`].
    pub(crate) async fn send(
        &self,
        public_url: &str,
        visitor: SocketAddr,
        request: ProxyRequest,
        patience: Duration,
    ) -> Result<Answered, RelayError> {
        let _permit = self.session.in_flight.try_acquire().map_err(|_| RelayError::TooMany)?;
        let (answer, answered) = oneshot::channel();
        let start = StartProxy {
            // The clients look for the tunnel's id anywhere in this text.
            url: format!("{public_url}#{}", self.id),
            client_addr: visitor.to_string(),
            request_id: RequestId::random(),
        };
        self.session.lock().push_back(Pending { start, request, answer, asked_at: Instant::now() });
        self.session.control.send(ServerMessage::ReqProxy).await.map_err(|_| RelayError::SessionEnded)?;
        match timeout(patience, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RelayError::SessionEnded),
            Err(_) => Err(RelayError::Timeout),
        }
    }
}

async fn send<IO>(socket: &mut WebSocketStream<IO>, message: &ServerMessage) -> Result<(), tokio_websockets::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match v2::encode_server(message) {
        Some(bytes) => socket.send(Message::binary(Bytes::from(bytes))).await,
        None => Ok(()),
    }
}

/// Serves one control socket until it ends. `token` comes from the handshake's `Authorization` header.
pub(super) async fn serve_control<IO>(
    core: Arc<Core>,
    (mut socket, first): (WebSocketStream<IO>, Bytes),
    token: Option<Token>,
    peer: SocketAddr,
    permit: UnauthenticatedPermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let auth = match v2::decode_client(&first) {
        Ok(ClientMessage::Auth(auth)) => auth,
        Ok(_) => return refuse(socket, Refusal::new(RefusalCode::InvalidRequest, "expected Auth")).await,
        Err(error) => return refuse(socket, Refusal::new(RefusalCode::InvalidRequest, error.to_string())).await,
    };
    // Taken before the token is checked, so that no revocation falls between.
    let revoked = core.auth.revocations();
    let (account, _guard) = match enter(&core, &auth, token, peer).await {
        Ok(entered) => entered,
        Err(refusal) => {
            info!(%peer, code = %refusal.code, "2.x session refused");
            return refuse(socket, refusal).await;
        }
    };
    drop(permit);
    socket.limits_mut().set_max_payload_len(Some(MAX_CONTROL_MESSAGE));
    let client_id = ClientId::random();
    let welcome =
        Welcome { client_id: client_id.clone(), account: account.email.clone(), server_version: crate::VERSION.into() };
    if send(&mut socket, &ServerMessage::AuthResp(AuthResp { result: Ok(welcome) })).await.is_err() {
        return;
    }
    let (control, queue) = mpsc::channel(MAX_QUEUED);
    let shared = Arc::new(V2Session {
        account,
        pending: Mutex::default(),
        in_flight: tokio::sync::Semaphore::new(MAX_PENDING),
        control,
    });
    core.registry.add_v2_session(client_id.clone(), Arc::clone(&shared));
    let span =
        info_span!("session", client = %client_id, account = %shared.account.email, %peer, version = %auth.version);
    let session =
        ControlSession { core: Arc::clone(&core), shared, tunnels: HashMap::new(), changed: Arc::default(), queue };
    session.run(socket, revoked).instrument(span).await;
    core.registry.remove_v2_session(&client_id);
}

async fn enter(
    core: &Arc<Core>,
    auth: &Auth,
    header: Option<Token>,
    peer: SocketAddr,
) -> Result<(Account, crate::registry::SessionGuard), Refusal> {
    let token = auth.token.clone().or(header);
    let account = core.authenticate(token.as_ref(), peer).await?;
    let guard = core.registry.enter_session(account.id)?;
    Ok((account, guard))
}

async fn refuse<IO>(mut socket: WebSocketStream<IO>, refusal: Refusal)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let _ = send(&mut socket, &ServerMessage::AuthResp(AuthResp { result: Err(refusal) })).await;
    close(socket).await;
}

struct ControlSession {
    core: Arc<Core>,
    shared: Arc<V2Session>,
    tunnels: HashMap<TunnelId, Arc<Tunnel>>,
    changed: Arc<Notify>,
    queue: mpsc::Receiver<ServerMessage>,
}

impl Drop for ControlSession {
    /// Also when a panic ended it.
    fn drop(&mut self) {
        self.lose_tunnels();
    }
}

impl ControlSession {
    fn lose_tunnels(&mut self) {
        self.tunnels.drain().for_each(|(_, tunnel)| self.core.registry.lose(&tunnel));
    }

    async fn run<IO>(mut self, mut socket: WebSocketStream<IO>, revoked: Receiver<Revoked>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        info!("2.x session started");
        let cause = self.serve(&mut socket, revoked).await;
        info!(cause, "2.x session ended");
        self.lose_tunnels();
        self.queue.close();
        // Visitors that wait learn at once that nobody will answer.
        self.shared.lock().clear();
        close(socket).await;
    }

    async fn serve<IO>(&mut self, socket: &mut WebSocketStream<IO>, mut revoked: Receiver<Revoked>) -> &'static str
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut tick = interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.changed);
        let stopping = self.core.stopping.clone();
        let mut heard = Instant::now();
        let mut unanswered: Option<Instant> = None;
        loop {
            // Every arm is cancel-safe: sockets are read frame by frame and written in arm bodies.
            tokio::select! {
                message = next_message(socket) => {
                    let Some(message) = message else { return "socket closed" };
                    heard = Instant::now();
                    unanswered = None;
                    if message.is_text() || message.is_close() {
                        return "closed by the client";
                    }
                    if !message.is_binary() {
                        continue;
                    }
                    match v2::decode_client(message.as_payload()) {
                        Ok(message) => {
                            if let Some(answer) = self.message(message).await
                                && send(socket, &answer).await.is_err()
                            {
                                return "socket failed";
                            }
                        }
                        Err(error) => {
                            // Nothing in this dialect can carry the error; clients ignore unknown types as well.
                            debug!(%error, "message ignored");
                        }
                    }
                }
                Some(message) = self.queue.recv() => {
                    if send(socket, &message).await.is_err() {
                        return "socket failed";
                    }
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    if now.duration_since(heard) > SILENCE || unanswered.is_some_and(|at| now.duration_since(at) > PONG_WITHIN) {
                        return "no sign of life";
                    }
                    unanswered.get_or_insert(now);
                    if timeout(PONG_WITHIN, socket.send(Message::ping(Bytes::new()))).await.map_or(true, |sent| sent.is_err()) {
                        return "socket failed";
                    }
                    self.shared.ask_again();
                }
                () = changed.notified() => {
                    self.tunnels.retain(|id, tunnel| {
                        let _ = tunnel.activity.take(id);
                        tunnel.refusal.get().is_none()
                    });
                }
                revocation = revoked.recv() => {
                    let concerned = revocation.map_or(true, |revoked| revoked.concerns(&self.shared.account));
                    if concerned && !self.core.auth.is_valid(&self.shared.account).await {
                        return "the token was revoked";
                    }
                }
                () = stopping.cancelled() => return "the server has stopped",
            }
        }
    }

    async fn message(&mut self, message: ClientMessage) -> Option<ServerMessage> {
        match message {
            ClientMessage::Ping => Some(ServerMessage::Pong),
            ClientMessage::ReqTunnel(request) => Some(self.open(request).await),
            ClientMessage::Pong | ClientMessage::Heartbeat(_) => None,
            _ => {
                debug!("message not expected in this state");
                None
            }
        }
    }

    async fn open(&mut self, mut request: ReqTunnel) -> ServerMessage {
        let request_id = request.request_id.clone();
        // After a reconnect clients ask for whatever name they were given, as a subdomain.
        if request.hostname.is_none() && request.subdomain.as_deref().is_some_and(|name| name.contains('.')) {
            request.hostname = request.subdomain.take();
        }
        let opened = if request.protocol == TunnelProtocol::Tcp {
            let message = "this client's protocol cannot carry TCP; use the `retunnel` program of this server";
            Err(Refusal::new(RefusalCode::InvalidRequest, message))
        } else {
            let session = Arc::clone(&self.shared);
            let open_here = |id: &TunnelId| self.tunnels.contains_key(id);
            let upstream =
                |id: &TunnelId, _: &Key| Upstream::V2(V2Upstream { session: Arc::clone(&session), id: id.clone() });
            let account = self.shared.account.clone();
            let opening =
                Opening { account: &account, changed: &self.changed, open_here: &open_here, upstream: &upstream };
            open_tunnel(&self.core, &request, opening).await
        };
        match opened {
            Ok(tunnel) => {
                let answer = NewTunnel {
                    request_id,
                    tunnel_id: tunnel.id.clone(),
                    protocol: tunnel.protocol,
                    // Where they see this word the clients show an address of somebody else's service instead. Host
                    // names have no case, so written in capitals the address stays right and is shown.
                    url: tunnel.url.replace("localhost", "LOCALHOST"),
                    subdomain: tunnel.key.name().unwrap_or_default().to_owned(),
                    remote_port: tunnel.key.port(),
                };
                self.tunnels.insert(tunnel.id.clone(), tunnel);
                ServerMessage::NewTunnel(answer)
            }
            Err(refusal) => {
                info!(code = %refusal.code, "tunnel refused");
                ServerMessage::ErrorResp(retunnel_proto::message::ErrorResp { request_id: Some(request_id), refusal })
            }
        }
    }
}

/// Serves one data socket: one request, one answer.
pub(super) async fn serve_proxy<IO>(
    core: Arc<Core>,
    (mut socket, first): (WebSocketStream<Counted<IO>>, Bytes),
    token: Option<Token>,
    peer: SocketAddr,
    permit: UnauthenticatedPermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(ClientMessage::RegProxy(register)) = v2::decode_client(&first) else {
        debug!(%peer, "data socket with another first message");
        return close(socket).await;
    };
    let Some(session) = core.registry.v2_session(&register.client_id) else {
        debug!(%peer, "data socket for no session");
        return close(socket).await;
    };
    // The published 2.0.0 sends no token here; the session's id is unguessable. A token that is sent must be right.
    if let Some(token) = token {
        match core.authenticate(Some(&token), peer).await {
            Ok(account) if account.id == session.account.id => {}
            Ok(account) => {
                warn!(%peer, account = %account.email, owner = %session.account.email, "data socket for another account's session refused");
                return close(socket).await;
            }
            Err(refusal) => {
                info!(%peer, code = %refusal.code, "data socket refused");
                return close(socket).await;
            }
        }
    }
    drop(permit);
    if let Some(pending) = session.next_pending() {
        socket.limits_mut().set_max_payload_len(Some(V2_MAX_RESPONSE));
        socket.get_mut().charge(Arc::clone(&core.waiting));
        relay(&mut socket, pending).await;
        // The closing handshake is nobody's answer.
        socket.get_mut().take_charge();
    }
    close(socket).await;
}

async fn relay<IO>(socket: &mut WebSocketStream<Counted<IO>>, pending: Pending)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Pending { start, request, mut answer, .. } = pending;
    let exchange = async {
        send(socket, &ServerMessage::StartProxy(start)).await.map_err(|_| RelayError::ClosedEarly)?;
        let request = Message::binary(Bytes::from(v2::encode_request(&request)));
        socket.send(request).await.map_err(|_| RelayError::ClosedEarly)?;
        loop {
            let Some(message) = next_message(socket).await else {
                let is_refused = socket.get_ref().is_refused();
                return Err(if is_refused { RelayError::TooMany } else { RelayError::ClosedEarly });
            };
            if message.is_binary() {
                return match v2::decode_response(&Bytes::from(message.into_payload())) {
                    Ok(response) => Ok(Answered { response, _charge: socket.get_mut().take_charge() }),
                    Err(error) => {
                        debug!(%error, "answer of a data socket");
                        Err(RelayError::Invalid)
                    }
                };
            }
            if message.is_close() || message.is_text() {
                return Err(RelayError::ClosedEarly);
            }
        }
    };
    tokio::select! {
        result = exchange => {
            let _ = answer.send(result);
        }
        // The visitor went away or ran out of patience.
        () = answer.closed() => {}
    }
}
