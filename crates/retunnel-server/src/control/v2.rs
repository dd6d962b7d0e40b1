//! Dialect 2 sessions: a control WebSocket, and one data WebSocket for each visitor's request
//! ([`crate::upstream::v2`], `docs/protocol.md`, dialect 2).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::SinkExt;
use retunnel_proto::{
    ClientId, TunnelId,
    dialect::v2,
    limits::{MAX_CONTROL_MESSAGE, V2_MAX_RESPONSE},
    message::{
        AuthResp, ClientMessage, ErrorResp, NewTunnel, Refusal, RefusalCode, ReqTunnel, ServerMessage, Token,
        TunnelProtocol, Welcome,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_websockets::{Message, WebSocketStream};
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    Control,
    session::{Credentials, Event, Session},
    websocket::{Counted, close, next_message},
};
use crate::{
    limits::Place,
    tunnel::{address::PublicAddress, upstream::Upstream},
    upstream::v2::{Answered, Pending, RelayError, Requests, V2Upstream},
};

/// Clients ping every 20 s; after this silence the session is gone.
const SILENCE: Duration = Duration::from_secs(50);
/// Time between WebSocket pings, which every client answers at once.
const PING_EVERY: Duration = Duration::from_secs(3);
/// A ping unanswered for this long means that the client is gone.
const PONG_WITHIN: Duration = Duration::from_secs(9);

/// The requests of all 2.x sessions, by the id that their data sockets present.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<ClientId, Arc<Requests>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, Arc<Requests>>> {
        self.0.lock().expect("no code panics while it holds the sessions")
    }

    fn find(&self, client_id: &ClientId) -> Option<Arc<Requests>> {
        self.lock().get(client_id).cloned()
    }
}

/// A session that data sockets can find, until it is dropped.
struct Listed {
    control: Arc<Control>,
    client_id: ClientId,
}

impl Listed {
    fn new(control: &Arc<Control>, client_id: ClientId, requests: Arc<Requests>) -> Self {
        control.v2_sessions.lock().insert(client_id.clone(), requests);
        Self { control: Arc::clone(control), client_id }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.control.v2_sessions.lock().remove(&self.client_id);
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
pub(super) async fn serve<IO>(
    control: Arc<Control>,
    (mut socket, first): (WebSocketStream<IO>, Bytes),
    token: Option<Token>,
    peer: SocketAddr,
    permit: Place,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let auth = match v2::decode_client(&first) {
        Ok(ClientMessage::Auth(auth)) => auth,
        Ok(_) => return refuse(socket, Refusal::new(RefusalCode::InvalidRequest, "expected Auth")).await,
        Err(error) => return refuse(socket, Refusal::new(RefusalCode::InvalidRequest, error.to_string())).await,
    };
    let token = auth.token.or(token);
    let session = match Session::enter(&control, Credentials::Token(token.as_ref()), peer).await {
        Ok(session) => session,
        Err(refusal) => return refuse(socket, refusal).await,
    };
    drop(permit);
    socket.limits_mut().set_max_payload_len(Some(MAX_CONTROL_MESSAGE));
    let client_id = ClientId::random();
    let account = session.account.email.clone();
    // Without the client's id: the data sockets of the published 2.0.0 show nothing else.
    let span = info_span!("session", %account, %peer, version = %auth.version);
    let welcome = Welcome { client_id: client_id.clone(), account, server_version: crate::version::VERSION.into() };
    if send(&mut socket, &ServerMessage::AuthResp(AuthResp { result: Ok(welcome) })).await.is_err() {
        return;
    }
    let (requests, queue) = Requests::new(session.account.id, peer.ip());
    let _listed = Listed::new(&control, client_id, Arc::clone(&requests));
    V2Session { session, requests, queue }.run(socket).instrument(span).await;
}

async fn refuse<IO>(mut socket: WebSocketStream<IO>, refusal: Refusal)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let _ = send(&mut socket, &ServerMessage::AuthResp(AuthResp { result: Err(refusal) })).await;
    close(socket).await;
}

struct V2Session {
    session: Session,
    requests: Arc<Requests>,
    /// Messages that visitors' requests cause.
    queue: mpsc::Receiver<ServerMessage>,
}

impl V2Session {
    async fn run<IO>(mut self, mut socket: WebSocketStream<IO>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        info!("2.x session started");
        let cause = self.serve(&mut socket).await;
        info!(cause, "2.x session ended");
        let Self { session, requests, mut queue } = self;
        drop(session);
        queue.close();
        requests.clear();
        close(socket).await;
    }

    async fn serve<IO>(&mut self, socket: &mut WebSocketStream<IO>) -> &'static str
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut tick = interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                            self.session.turn().await;
                            if let Some(answer) = self.message(message).await
                                && send(socket, &answer).await.is_err()
                            {
                                return "socket failed";
                            }
                        }
                        // Nothing in this dialect can carry the error; clients ignore unknown types as well.
                        Err(error) => debug!(%error, "message ignored"),
                    }
                }
                Some(message) = self.queue.recv() => {
                    if send(socket, &message).await.is_err() {
                        return "socket failed";
                    }
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    let is_late = |at: Instant| now.duration_since(at) > PONG_WITHIN;
                    if now.duration_since(heard) > SILENCE || unanswered.is_some_and(is_late) {
                        return "no sign of life";
                    }
                    unanswered.get_or_insert(now);
                    let ping = timeout(PONG_WITHIN, socket.send(Message::ping(Bytes::new())));
                    if !matches!(ping.await, Ok(Ok(()))) {
                        return "socket failed";
                    }
                    self.requests.ask_again();
                }
                event = self.session.event() => match event {
                    // The dialect carries neither reports nor the end of a tunnel.
                    Event::News => drop(self.session.news()),
                    Event::Draining => {}
                    Event::Revoked => return "the token was revoked",
                    Event::Stopping => return "the server has stopped",
                },
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
        // After a reconnect clients ask for the name that they were given, as a subdomain.
        if request.hostname.is_none() && request.subdomain.as_deref().is_some_and(|name| name.contains('.')) {
            request.hostname = request.subdomain.take();
        }
        let opened = if request.protocol == TunnelProtocol::Tcp {
            let message = "this client's protocol cannot carry TCP; use the `retunnel` program of this server";
            Err(Refusal::new(RefusalCode::InvalidRequest, message))
        } else {
            let requests = Arc::clone(&self.requests);
            let limit = self.session.control.config.limits.v2_response_timeout;
            let upstream = |id: &TunnelId, _: &PublicAddress, url: &str| {
                let upstream = V2Upstream::new(Arc::clone(&requests), id.clone(), url.to_owned(), limit);
                Box::new(upstream) as Box<dyn Upstream>
            };
            self.session.open(&request, &upstream).await
        };
        match opened {
            Ok(tunnel) => ServerMessage::NewTunnel(NewTunnel {
                request_id,
                tunnel_id: tunnel.id.clone(),
                protocol: tunnel.protocol,
                // Where they see this word the clients show another service's address instead. Host names have no case, so
                // in capitals the address stays right and is shown.
                url: tunnel.url.replace("localhost", "LOCALHOST"),
                subdomain: tunnel.address.name().unwrap_or_default().to_owned(),
                remote_port: tunnel.address.port(),
            }),
            Err(refusal) => ServerMessage::ErrorResp(ErrorResp { request_id: Some(request_id), refusal }),
        }
    }
}

/// Serves one data socket: one request, one answer.
pub(super) async fn serve_data_socket<IO>(
    control: Arc<Control>,
    (mut socket, first): (WebSocketStream<Counted<IO>>, Bytes),
    token: Option<Token>,
    peer: SocketAddr,
    permit: Place,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(ClientMessage::RegProxy(register)) = v2::decode_client(&first) else {
        debug!(%peer, "data socket with another first message");
        return close(socket).await;
    };
    let Some(requests) = control.v2_sessions.find(&register.client_id) else {
        debug!(%peer, "data socket for no session");
        return close(socket).await;
    };
    // A token that is sent must be right. The published 2.0.0 sends none: then the session's unguessable id counts, from the
    // session's own address, and only as long as the session has shown no token on a data socket.
    if token.is_none() && !requests.admits_without_token(peer.ip()) {
        info!(%peer, owner = %requests.account, "data socket without a token refused");
        return close(socket).await;
    }
    if let Some(token) = token {
        match control.authenticate(Some(&token), peer).await {
            Ok(account) if account.id == requests.account => requests.has_shown_token(),
            Ok(account) => {
                warn!(%peer, account = %account.email, owner = %requests.account, "data socket for another account's session refused");
                return close(socket).await;
            }
            Err(refusal) => {
                info!(%peer, code = %refusal.code, "data socket refused");
                return close(socket).await;
            }
        }
    }
    drop(permit);
    if let Some(pending) = requests.next() {
        socket.limits_mut().set_max_payload_len(Some(V2_MAX_RESPONSE));
        socket.get_mut().charge(control.waiting.share(requests.account));
        relay(&mut socket, pending).await;
        // The closing handshake is not part of an answer.
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
                    Ok(response) => Ok(Answered { response, charge: socket.get_mut().take_charge() }),
                    Err(error) => {
                        debug!(%error, "answer of a data socket is not valid");
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
        // The visitor is gone, or its request timed out.
        () = answer.closed() => {}
    }
}
