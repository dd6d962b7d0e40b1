//! Native sessions: one link, one task. The task answers the client's messages, reports what visitors did, and sees to
//! it that the session ends when its token is revoked, its client goes, or the server stops.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use retunnel_link::{Events, Link, LinkConfig, LinkError, LinkEvent, LinkStream, OpenError, Role, link};
use retunnel_proto::{
    ClientId, TunnelId,
    limits::{MAX_CONTROL_MESSAGE, MAX_UNAUTHENTICATED_MESSAGE},
    message::{
        AuthResp, ClientMessage, ErrorResp, NewTunnel, Refusal, RefusalCode, ReqTunnel, ServerMessage, Token,
        TunnelClosed, TunnelProtocol, Welcome,
    },
    native::{
        self, ReasonCode,
        control::{FromClient, FromServer, Hello, HelloResp, Open, OpenLane},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::{Notify, broadcast::Receiver},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

use crate::{
    auth::{Account, Revoked},
    control::open::{Opening, open_tunnel},
    core::Core,
    limits::UnauthenticatedPermit,
    registry::{Key, SessionGuard},
    tunnel::{Tunnel, Upstream},
};

/// How long reports of visitors' requests are gathered. Short enough to look live, long enough that a busy tunnel costs
/// ten messages a second.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Idle upstream connections that a tunnel keeps. More are only of use to more visitors at the same instant.
const MAX_IDLE: usize = 1024;
/// How long an upstream connection is kept idle. Shorter than the shortest keep-alive among common servers (Node: 5 s),
/// so that it is us who close.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// A connection that was used so shortly ago is not about to be closed for idleness: common servers wait two seconds at least
/// (gunicorn). Those that close for another reason announce it in their last answer.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// The streams of one tunnel over its session's link.
#[derive(Debug)]
pub(crate) struct NativeUpstream {
    link: Link,
    id: TunnelId,
    /// The client was told of the tunnel; before that it would refuse its streams.
    announced: CancellationToken,
    /// Connections to the local service that wait for their next request, newest last.
    idle: Mutex<Vec<(LinkStream, Instant)>>,
}

impl NativeUpstream {
    pub(crate) fn new(link: Link, id: TunnelId) -> Self {
        Self { link, id, announced: CancellationToken::new(), idle: Mutex::new(Vec::new()) }
    }

    /// A new connection to the local service.
    ///
    /// # Errors
    /// When the link has ended, is closing, or has as many streams as it may have.
    pub(crate) async fn open(&self, protocol: TunnelProtocol, visitor: String) -> Result<LinkStream, OpenError> {
        if !self.announced.is_cancelled() {
            tokio::select! {
                () = self.announced.cancelled() => {}
                _ = self.link.closed() => {}
            }
        }
        self.link.open(&Open { tunnel: self.id.clone(), protocol, visitor })
    }

    /// An idle connection, if one is alive. A request that cannot be `repeated` gets one that was used a moment ago, or none.
    pub(crate) fn reuse(&self, repeatable: bool) -> Option<LinkStream> {
        loop {
            let (mut stream, since) = self.lock().pop_if(|(_, since)| repeatable || since.elapsed() < SURELY_ALIVE)?;
            if since.elapsed() > KEEP_IDLE {
                // The older ones are older still.
                stream.finish();
                self.sweep();
                return None;
            }
            // Nothing may arrive on an idle connection: bytes, an end or a reset mean that it cannot be used.
            if stream.read_u8().now_or_never().is_none() {
                return Some(stream);
            }
        }
    }

    /// Whether the client is gone. Its tunnels are closed a moment later.
    pub(crate) fn is_lost(&self) -> bool {
        self.link.is_closed()
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, stream: LinkStream) {
        if stream.is_on_lane() {
            // Its next requests are small as likely as not, and those ride together on the link.
            return stream.finish();
        }
        stream.begin_exchange();
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push((stream, Instant::now()));
        }
    }

    /// Ends idle connections that are too old, politely: the local service has done nothing wrong.
    fn sweep(&self) {
        let mut idle = self.lock();
        let old = idle.iter().take_while(|(_, since)| since.elapsed() > KEEP_IDLE).count();
        idle.drain(..old).for_each(|(stream, _)| stream.finish());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(LinkStream, Instant)>> {
        self.idle.lock().expect("no code panics while it holds the list")
    }
}

/// Serves one native client until its link ends. `token` came with the request for the link; `permit` is given back once the
/// client is authenticated.
pub(crate) async fn serve<IO>(
    core: Arc<Core>,
    io: IO,
    token: Option<Token>,
    peer: SocketAddr,
    permit: UnauthenticatedPermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = LinkConfig {
        max_control: MAX_UNAUTHENTICATED_MESSAGE,
        budget: Arc::clone(&core.budget),
        max_streams: core.config.limits.max_streams_per_session,
        ..LinkConfig::default()
    };
    let window = config.initial_window;
    let (link, events, driver) = link(io, Role::Server, config);
    // Two tasks: the link is polled for every visitor, the session only when something is said.
    let session = core.tasks.spawn(session(Arc::clone(&core), link, events, (window, token), peer, permit));
    driver.await;
    // It ends with its link.
    let _ = session.await;
}

async fn session(
    core: Arc<Core>,
    link: Link,
    mut events: Events,
    (window, token): (u32, Option<Token>),
    peer: SocketAddr,
    permit: UnauthenticatedPermit,
) {
    let deadline = core.config.limits.unauthenticated_deadline;
    let hello = match permit.within(deadline, events.next()).await {
        Some(Some(LinkEvent::Control(payload))) => match FromClient::decode(&payload) {
            Ok(FromClient::Hello(mut hello)) => {
                hello.auth.token = hello.auth.token.or(token);
                hello
            }
            Ok(_) => {
                return refuse(&link, Refusal::new(RefusalCode::InvalidRequest, "the first message must be Auth"))
                    .await;
            }
            Err(error) => return refuse(&link, Refusal::new(RefusalCode::InvalidRequest, error.to_string())).await,
        },
        Some(_) => return link.close(ReasonCode::PROTOCOL, "expected Auth"),
        None => return link.close(ReasonCode::PROTOCOL, "no Auth in time"),
    };
    // Taken before the token is checked, so that no revocation falls between.
    let revoked = core.auth.revocations();
    let (account, guard) = match enter(&core, &hello, peer).await {
        Ok(entered) => entered,
        Err(refusal) => {
            info!(%peer, code = %refusal.code, "native session refused");
            return refuse(&link, refusal).await;
        }
    };
    drop(permit);
    link.set_max_control(MAX_CONTROL_MESSAGE);
    link.set_peer_window(hello.window);
    if hello.lanes {
        link.enable_lanes();
    }
    let client_id = ClientId::random();
    let welcome =
        Welcome { client_id: client_id.clone(), account: account.email.clone(), server_version: crate::VERSION.into() };
    let answer = FromServer::Hello(HelloResp { link_version: native::VERSION, window, welcome });
    if send(&link, answer).await.is_err() {
        return;
    }
    let span = info_span!("session", client = %client_id, account = %account.email, %peer);
    let session =
        Session { core, link, account, tunnels: HashMap::new(), changed: Arc::default(), clean: false, _guard: guard };
    session.run(events, revoked).instrument(span).await;
}

async fn enter(core: &Arc<Core>, hello: &Hello, peer: SocketAddr) -> Result<(Account, SessionGuard), Refusal> {
    if hello.link_version != native::VERSION {
        let message = format!("this server speaks link version {}, not {}", native::VERSION, hello.link_version);
        return Err(Refusal::new(RefusalCode::UnsupportedVersion, message));
    }
    let account = core.authenticate(hello.auth.token.as_ref(), peer).await?;
    let guard = core.registry.enter_session(account.id)?;
    Ok((account, guard))
}

async fn send(link: &Link, message: FromServer) -> Result<(), LinkError> {
    match message.encode() {
        Some(payload) => link.send_control(payload).await,
        None => Ok(()),
    }
}

async fn refuse(link: &Link, refusal: Refusal) {
    let reason = refusal.to_string();
    let _ = send(link, FromServer::Message(ServerMessage::AuthResp(AuthResp { result: Err(refusal) }))).await;
    link.close(ReasonCode::NONE, &reason);
}

/// One authenticated native client.
struct Session {
    core: Arc<Core>,
    link: Link,
    account: Account,
    tunnels: HashMap<TunnelId, Arc<Tunnel>>,
    /// Visitors did something, or a tunnel was closed by the server.
    changed: Arc<Notify>,
    /// The client said goodbye: its addresses are free at once.
    clean: bool,
    _guard: SessionGuard,
}

impl Session {
    async fn run(mut self, mut events: Events, mut revoked: Receiver<Revoked>) {
        info!("native session started");
        let mut sweep = interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.changed);
        let draining = self.core.draining.clone();
        let stopping = self.core.stopping.clone();
        let mut announced = false;
        let mut report_at = None;
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.event(event).await,
                    None => break,
                },
                () = changed.notified(), if report_at.is_none() => report_at = Some(Instant::now() + REPORT_EVERY),
                () = sleep_until(report_at.unwrap_or_else(Instant::now)), if report_at.is_some() => {
                    report_at = None;
                    self.report().await;
                }
                _ = sweep.tick() => self.sweep_idle(),
                revocation = revoked.recv() => {
                    if revocation.map_or(true, |revoked| revoked.concerns(&self.account)) && !self.still_valid().await {
                        self.link.close(ReasonCode::REVOKED, "the token was revoked");
                    }
                }
                () = draining.cancelled(), if !announced => {
                    announced = true;
                    self.link.go_away(ReasonCode::SHUTTING_DOWN, "the server is stopping");
                }
                () = stopping.cancelled() => {
                    self.link.close(ReasonCode::SHUTTING_DOWN, "the server has stopped");
                    break;
                }
            }
        }
        let cause = self.link.closed().await;
        info!(%cause, clean = self.clean, "native session ended");
    }

    async fn event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Control(payload) => match FromClient::decode(&payload) {
                Ok(FromClient::Message(ClientMessage::ReqTunnel(request))) => self.open(request).await,
                Ok(FromClient::Message(ClientMessage::CloseTunnel(close))) => {
                    if let Some(tunnel) = self.tunnels.remove(&close.tunnel_id) {
                        info!(tunnel = %tunnel.key, "tunnel closed");
                        self.core.registry.release(&tunnel);
                    }
                }
                Ok(FromClient::LaneFailed(failed)) => self.link.lane_failed(failed.lane),
                Ok(_) => {
                    let refusal = Refusal::new(RefusalCode::InvalidRequest, "message not expected in this state");
                    self.answer(ServerMessage::ErrorResp(ErrorResp { request_id: None, refusal })).await;
                }
                Err(error) => {
                    let refusal = Refusal::new(RefusalCode::InvalidRequest, error.to_string());
                    self.answer(ServerMessage::ErrorResp(ErrorResp { request_id: None, refusal })).await;
                }
            },
            LinkEvent::GoAway { code, .. } => self.clean = code == ReasonCode::NONE,
            LinkEvent::LaneWanted(lane) => match self.core.lanes.ask(&self.link, lane) {
                Some(nonce) => {
                    let _ = send(&self.link, FromServer::OpenLane(OpenLane { lane, nonce })).await;
                }
                None => self.link.lane_failed(lane),
            },
            _ => debug!("event of a newer link ignored"),
        }
    }

    async fn open(&mut self, request: ReqTunnel) {
        let link = self.link.clone();
        let open_here = |id: &TunnelId| self.tunnels.contains_key(id);
        let upstream = |id: &TunnelId, _: &Key| Upstream::Native(NativeUpstream::new(link.clone(), id.clone()));
        let opening =
            Opening { account: &self.account, changed: &self.changed, open_here: &open_here, upstream: &upstream };
        let opened = open_tunnel(&self.core, &request, opening).await;
        let mut announced = None;
        let answer = match opened {
            Ok(tunnel) => {
                if let Upstream::Native(upstream) = &tunnel.upstream {
                    announced = Some(upstream.announced.clone());
                }
                let answer = NewTunnel {
                    request_id: request.request_id,
                    tunnel_id: tunnel.id.clone(),
                    protocol: tunnel.protocol,
                    url: tunnel.url.clone(),
                    subdomain: tunnel.key.name().unwrap_or_default().to_owned(),
                    remote_port: tunnel.key.port(),
                };
                self.tunnels.insert(tunnel.id.clone(), tunnel);
                ServerMessage::NewTunnel(answer)
            }
            Err(refusal) => {
                info!(code = %refusal.code, "tunnel refused");
                ServerMessage::ErrorResp(ErrorResp { request_id: Some(request.request_id), refusal })
            }
        };
        self.answer(answer).await;
        if let Some(announced) = announced {
            announced.cancel();
        }
    }

    async fn answer(&self, message: ServerMessage) {
        // A failed send shows as the end of the events.
        let _ = send(&self.link, FromServer::Message(message)).await;
    }

    async fn report(&mut self) {
        let mut messages = Vec::new();
        self.tunnels.retain(|id, tunnel| {
            messages.extend(tunnel.activity.take(id).map(ServerMessage::Requests));
            let Some(refusal) = tunnel.refusal.get() else { return true };
            info!(tunnel = %tunnel.key, code = %refusal.code, "tunnel closed by the server");
            messages
                .push(ServerMessage::TunnelClosed(TunnelClosed { tunnel_id: id.clone(), refusal: refusal.clone() }));
            false
        });
        for message in messages {
            self.answer(message).await;
        }
    }

    fn sweep_idle(&self) {
        for tunnel in self.tunnels.values() {
            if let Upstream::Native(upstream) = &tunnel.upstream {
                upstream.sweep();
            }
        }
    }

    async fn still_valid(&self) -> bool {
        self.core.auth.is_valid(&self.account).await
    }
}

impl Drop for Session {
    /// Also when a panic ended it: nobody may be sent to a link that is gone.
    fn drop(&mut self) {
        for tunnel in self.tunnels.values() {
            if self.clean {
                self.core.registry.release(tunnel);
            } else {
                self.core.registry.lose(tunnel);
            }
        }
    }
}
