//! A session with a server that speaks dialect 3: one WebSocket carries everything. The server opens a stream for each
//! visitor. A stream is a task that exchanges frames with the session through bounded queues ([`stream`]).

mod http;
mod socket;
mod stream;
mod tcp;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use retunnel_link::LinkError;
use retunnel_proto::{
    RequestId, TunnelId, TunnelProtocol,
    dialect::v3::{
        FromClient, FromServer, StreamEvent, StreamFrame, StreamMode, StreamOpen, TunnelCreate, TunnelCreated,
        WireVersion, refusal_code,
    },
    limits::{V3_MAX_FRAME, V3_MAX_STREAMS},
    message::{Auth, NewTunnel, Refusal, RefusalCode},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tokio_websockets::Message;
use tracing::{debug, warn};

use self::stream::{Entrance, Load, Outbox, Stream};
use super::super::{
    timing::{AUTH_WITHIN, SILENCE, TICK},
    tunnels::Tunnels,
};
use crate::{
    dialect::Dialect,
    error::ConnectError,
    event::SessionInfo,
    state::Command,
    transport::{
        Dialer,
        dialer::CLOSE_WITHIN,
        websocket::{self, WRITE_WITHIN, WebSocket},
    },
};

/// Messages that may wait to be written; most are chunks of 64 KiB.
const OUTGOING: usize = 64;
/// Answers to heartbeats, pings and resets that may wait; they are written first.
const URGENT: usize = 256;
/// How long the server may take to answer a request for a tunnel.
const TUNNEL_WITHIN: Duration = Duration::from_secs(20);
/// An answer to a heartbeat lets the server send more. It is delayed while a stream has much to process, but not longer
/// than this: the other streams' frames wait as well.
const ACK_WITHIN: Duration = Duration::from_secs(2);
/// How often a stream that has much to process is checked.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// An established session.
pub(crate) struct Session {
    socket: WebSocket,
    version: WireVersion,
}

/// Connects and authenticates.
pub(super) async fn establish(dialer: &Dialer, auth: Auth) -> Result<(Session, SessionInfo), ConnectError> {
    let endpoint = || dialer.endpoint.clone();
    let lost = |source| ConnectError::Lost { endpoint: endpoint(), source };
    let other = |answer: &str| ConnectError::NotAServer { endpoint: endpoint(), answer: answer.to_owned() };
    let mut socket = dialer.websocket("/api/v1/ws/tunnel", None, V3_MAX_FRAME).await?;
    let hello = FromClient::Auth { token: auth.token, version: WireVersion::Two };
    websocket::send(&mut socket, Message::binary(hello.encode())).await.map_err(lost)?;
    let answer = match timeout(AUTH_WITHIN, websocket::next(&mut socket)).await {
        Ok(answer) => answer.map_err(lost)?,
        Err(_) => return Err(dialer.too_slow(AUTH_WITHIN)),
    };
    match FromServer::decode(&answer) {
        Ok(FromServer::HeartbeatAck { version }) => {
            let info = SessionInfo {
                account: String::new(),
                client_id: String::new(),
                server: dialer.endpoint.to_string(),
                server_version: String::new(),
                dialect: Dialect::V3,
            };
            Ok((Session { socket, version }, info))
        }
        Ok(FromServer::Error { code, message }) => {
            websocket::close(socket).await;
            let refusal = Refusal::new(refusal_code(&code), message);
            Err(ConnectError::Refused { endpoint: endpoint(), refusal })
        }
        Ok(_) => Err(other("another message than HeartbeatAck")),
        Err(error) => Err(other(&error.to_string())),
    }
}

/// Writes queued messages, all that are ready at once, urgent ones first. Ends when the queues are closed.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut urgent: mpsc::Receiver<Message>,
    mut queue: mpsc::Receiver<Message>,
) -> LinkError {
    let written = async {
        loop {
            let mut next = tokio::select! {
                biased;
                Some(message) = urgent.recv() => Some(message),
                Some(message) = queue.recv() => Some(message),
                else => break,
            };
            while let Some(message) = next {
                within(sink.feed(message)).await?;
                next = urgent.try_recv().or_else(|_| queue.try_recv()).ok();
            }
            within(sink.flush()).await?;
        }
        within(sink.close()).await
    };
    match written.await {
        Ok(()) => LinkError::Dropped,
        Err(error) => error,
    }
}

async fn within(writing: impl Future<Output = Result<(), tokio_websockets::Error>>) -> Result<(), LinkError> {
    match timeout(WRITE_WITHIN, writing).await {
        Ok(written) => written.map_err(websocket::failed),
        Err(_) => Err(LinkError::Silent(WRITE_WITHIN)),
    }
}

impl Session {
    /// Serves until the WebSocket ends, and returns the cause.
    pub(crate) async fn run(self, tunnels: Tunnels, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        let (sink, mut source) = self.socket.split();
        let (urgent, urgent_queue) = mpsc::channel(URGENT);
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let mut writer = JoinSet::new();
        writer.spawn(write(sink, urgent_queue, queue));
        let closing = tunnels.shared.closing.clone();
        let mut running = Running {
            tunnels,
            version: self.version,
            urgent,
            outgoing,
            wanted: VecDeque::new(),
            creating: None,
            streams: HashMap::new(),
            load: Arc::default(),
            relays: JoinSet::new(),
            owed: VecDeque::new(),
        };
        let cause = tokio::select! {
            cause = running.serve(&mut source, commands) => cause,
            Some(ended) = writer.join_next() => ended.unwrap_or(LinkError::Dropped),
            () = closing.cancelled() => LinkError::Dropped,
        };
        // The streams notice that the session has ended and reset their local connections.
        running.streams.clear();
        let Running { urgent, outgoing, mut relays, .. } = running;
        drop((urgent, outgoing));
        let closed = async {
            while relays.join_next().await.is_some() {}
            while writer.join_next().await.is_some() {}
            while let Some(Ok(_)) = source.next().await {}
        };
        let _ = timeout(CLOSE_WITHIN, closed).await;
        cause
    }
}

/// A request for a tunnel that waits for its answer.
struct Creating {
    request_id: RequestId,
    protocol: TunnelProtocol,
    hostname: Option<String>,
    deadline: Instant,
}

struct Running {
    tunnels: Tunnels,
    version: WireVersion,
    urgent: mpsc::Sender<Message>,
    outgoing: mpsc::Sender<Message>,
    /// Tunnels to request, one after the other.
    wanted: VecDeque<u64>,
    creating: Option<Creating>,
    streams: HashMap<u64, Entrance>,
    /// Bytes in the queues of all streams.
    load: Arc<Load>,
    relays: JoinSet<u64>,
    /// Arrival times of heartbeats that are not answered yet.
    owed: VecDeque<Instant>,
}

impl Running {
    async fn serve(
        &mut self,
        source: &mut SplitStream<WebSocket>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> LinkError {
        self.wanted.extend(self.tunnels.wanted(commands));
        self.tunnels.connected();
        let mut tick = interval(TICK);
        let mut check = interval(CHECK_EVERY);
        let mut heard = Instant::now();
        loop {
            if let Err(error) = self.create_next().await {
                return error;
            }
            if let Err(error) = self.answer_heartbeats().await {
                return error;
            }
            // Every arm is cancel-safe.
            tokio::select! {
                message = source.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) if message.is_binary() => {
                            if let Err(error) = self.message(&message.into_payload().into()).await {
                                return error;
                            }
                        }
                        Some(Ok(message)) if message.is_close() => {
                            return LinkError::Io(Arc::new(websocket::close_reason(&message)));
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return websocket::failed(error),
                        None => return LinkError::ClosedByPeer,
                    }
                }
                Some(command) = commands.recv() => match command {
                    Command::Open(key) => self.wanted.push_back(key),
                    // The dialect has no message for it: visitors of the tunnel are reset from now on.
                    Command::Close(key) => drop(self.tunnels.close(key)),
                },
                key = self.tunnels.due() => self.wanted.push_back(key),
                Some(done) = self.relays.join_next() => {
                    if let Ok(stream_id) = done {
                        self.streams.remove(&stream_id);
                    }
                }
                _ = check.tick(), if !self.owed.is_empty() => {}
                now = tick.tick() => {
                    if now.duration_since(heard) > SILENCE {
                        return LinkError::Silent(now.duration_since(heard));
                    }
                    if self.creating.as_ref().is_some_and(|creating| creating.deadline < now) {
                        let message = format!("the server did not answer within {} s", TUNNEL_WITHIN.as_secs());
                        return self.refused(Refusal::new(RefusalCode::Internal, message));
                    }
                    if self.urgent.send(Message::ping(Bytes::new())).await.is_err() {
                        return LinkError::Dropped;
                    }
                }
            }
        }
    }

    async fn send(&self, message: FromClient) -> Result<(), LinkError> {
        self.urgent.send(Message::binary(message.encode())).await.map_err(|_| LinkError::Dropped)
    }

    async fn reset(&self, stream_id: u64, reason: &str) -> Result<(), LinkError> {
        let event = StreamEvent::Reset { reason: reason.to_owned() };
        self.send(FromClient::Stream(StreamFrame { stream_id, event })).await
    }

    /// Requests the next tunnel when the one before is answered.
    async fn create_next(&mut self) -> Result<(), LinkError> {
        while self.creating.is_none() {
            let Some(key) = self.wanted.pop_front() else { return Ok(()) };
            let Some(request) = self.tunnels.request(key) else { continue };
            let Some((spec, before)) = self.tunnels.entry(key) else { continue };
            self.creating = Some(Creating {
                request_id: request.request_id,
                protocol: spec.protocol,
                hostname: spec.hostname.clone(),
                deadline: Instant::now() + TUNNEL_WITHIN,
            });
            let subdomain = match &spec.hostname {
                Some(_) => None,
                None => before.map(|info| info.subdomain).filter(|name| !name.is_empty()).or(spec.subdomain),
            };
            let create = TunnelCreate {
                protocol: spec.protocol,
                subdomain,
                path: None,
                // As the user wrote it: servers remember a port by the name that came with it.
                remote_port: spec.remote_port,
                hostname: spec.hostname,
            };
            self.send(FromClient::TunnelCreate(create)).await?;
        }
        Ok(())
    }

    async fn message(&mut self, payload: &Bytes) -> Result<(), LinkError> {
        match FromServer::decode(payload) {
            Ok(FromServer::Stream(frame)) => self.frame(frame),
            Ok(FromServer::StreamOpen(open)) => self.open(open).await?,
            Ok(FromServer::Heartbeat) => self.owed.push_back(Instant::now()),
            Ok(FromServer::TunnelCreated(created)) => {
                if let Some(error) = self.created(created) {
                    return Err(error);
                }
            }
            Ok(FromServer::Error { code, message }) => {
                let refusal = Refusal::new(refusal_code(&code), message);
                if self.creating.is_some() {
                    return Err(self.refused(refusal));
                }
                // An error for a name that is open: its session has just lost it.
                let is_displaced = refusal.code == RefusalCode::Other("SUBDOMAIN_TAKEN".into());
                if !is_displaced || !self.tunnels.superseded(refusal.message.clone()) {
                    warn!(%refusal, "the server reports an error");
                }
            }
            Ok(FromServer::HeartbeatAck { .. }) => {}
            Err(error) => debug!(%error, "message ignored"),
        }
        Ok(())
    }

    fn created(&mut self, created: TunnelCreated) -> Option<LinkError> {
        let creating = self.creating.take()?;
        if let Some(hostname) = &creating.hostname {
            let address = created.url.split_once("://").map_or(created.url.as_str(), |(_, rest)| rest);
            let host = address.split(['/', ':']).next().unwrap_or_default();
            if !host.eq_ignore_ascii_case(hostname) {
                let message = format!("the server gave {} instead of {hostname}", created.url);
                self.creating = Some(creating);
                return Some(self.refused(Refusal::new(RefusalCode::HostnameIgnored, message)));
            }
        }
        self.tunnels.opened(NewTunnel {
            request_id: creating.request_id,
            tunnel_id: TunnelId::from_text(created.path.unwrap_or_else(|| created.subdomain.clone())),
            protocol: creating.protocol,
            url: created.url,
            subdomain: created.subdomain,
            remote_port: created.remote_port,
        });
        None
    }

    /// A refused tunnel ends the session: servers close it. Tunnels that are open are opened again in the next session.
    fn refused(&mut self, refusal: Refusal) -> LinkError {
        if let Some(creating) = self.creating.take() {
            self.tunnels.refused(&creating.request_id, refusal);
        }
        LinkError::Protocol("the server refused a tunnel, which ends a session of dialect 3")
    }

    async fn open(&mut self, open: StreamOpen) -> Result<(), LinkError> {
        let stream_id = open.stream_id;
        if self.streams.contains_key(&stream_id) {
            debug!(stream_id, "the stream is open already");
            return Ok(());
        }
        if self.streams.len() >= V3_MAX_STREAMS {
            return self.reset(stream_id, "this client has reached its limit of streams").await;
        }
        let Some(service) = self.tunnels.find(&TunnelId::from_text(open.tunnel_id.as_str())) else {
            return self.reset(stream_id, "this client has no such tunnel").await;
        };
        if (open.mode == StreamMode::Tcp) != (service.protocol == TunnelProtocol::Tcp) {
            return self.reset(stream_id, "the tunnel carries another protocol").await;
        }
        let (entrance, inbox) = stream::queue(Arc::clone(&self.load));
        self.streams.insert(stream_id, entrance);
        let outbox = Outbox { stream_id, version: self.version, queue: self.outgoing.clone() };
        let stream = Stream { inbox, outbox };
        self.relays.spawn(async move {
            match open.mode {
                StreamMode::Http => http::serve(open, stream, service).await,
                StreamMode::WebSocket => socket::serve(open, stream, service).await,
                StreamMode::Tcp => tcp::serve(stream, service).await,
            }
            stream_id
        });
        Ok(())
    }

    /// Frames of streams that have ended are ignored.
    fn frame(&mut self, frame: StreamFrame) {
        let Some(entrance) = self.streams.get(&frame.stream_id) else { return };
        let is_last = !matches!(frame.event, StreamEvent::Data { .. });
        // After an overflow its task resets the stream, after what it has sent.
        if !entrance.push(frame.event) || is_last {
            self.streams.remove(&frame.stream_id);
        }
    }

    /// Answers heartbeats, unless a stream has much to process.
    async fn answer_heartbeats(&mut self) -> Result<(), LinkError> {
        while let Some(since) = self.owed.front() {
            let is_loaded = self.load.is_high() || self.streams.values().any(Entrance::is_loaded);
            if is_loaded && since.elapsed() < ACK_WITHIN {
                return Ok(());
            }
            self.owed.pop_front();
            self.send(FromClient::HeartbeatAck).await?;
        }
        Ok(())
    }
}
