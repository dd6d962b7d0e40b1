//! Dialect 3 sessions: one WebSocket that carries the handshake, the tunnels and every visitor's stream
//! (`docs/protocol.md`, dialect 3).

mod stream;
mod wire;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::SinkExt;
use retunnel_proto::{
    RequestId, TunnelId,
    dialect::v3::{FromClient, FromServer, StreamOpen, TunnelCreate, TunnelCreated, WireVersion, error_code},
    limits::V3_MAX_FRAME,
    message::{Refusal, RefusalCode, ReqTunnel, TunnelProtocol},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, broadcast::Receiver},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_websockets::{Message, WebSocketStream};
use tracing::{Instrument, debug, info, info_span};

use crate::{
    auth::{Account, Revoked},
    control::{
        open::{Opening, open_tunnel},
        websocket::{Counted, close, limits},
    },
    core::Core,
    limits::UnauthenticatedPermit,
    registry::{Key, SessionGuard},
    tunnel::{Tunnel, Upstream},
};

use stream::Mux;
pub(crate) use stream::{CHUNK, OpenError, Stream, Waiting};
use wire::{Arrived, Wire};

/// Time between WebSocket pings, which every client answers at once.
const PING_EVERY: Duration = Duration::from_secs(3);
/// When neither the answer to a ping nor anything else moved for so long, the client is gone.
const SILENCE: Duration = Duration::from_secs(9);
/// While a session has more waiting than it may, a visitor that takes nothing for so long loses its stream: all others
/// wait for it.
const STALLED: Duration = Duration::from_secs(2);
/// Bytes that a ping takes: whatever is written beyond them, the peer's side of the network has taken.
const PING_LEN: u64 = 2;
/// What the id of a TCP tunnel begins with. No name has the character, so no name of the session is the same.
const TCP_PREFIX: &str = "tcp_";

/// One tunnel of a 3.x session.
#[derive(Debug)]
pub(crate) struct V3Upstream {
    mux: Arc<Mux>,
    /// The id that the client knows.
    id: String,
}

impl V3Upstream {
    /// Opens a stream of this tunnel.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) async fn open(&self, open: StreamOpen) -> Result<Stream, OpenError> {
        self.mux.open(StreamOpen { tunnel_id: self.id.clone(), ..open }).await
    }

    /// How the client wants requests.
    pub(crate) fn version(&self) -> WireVersion {
        self.mux.version
    }

    /// Whether the client is gone. Its tunnels are closed a moment later.
    pub(crate) fn is_lost(&self) -> bool {
        self.mux.lost.is_cancelled()
    }
}

/// Serves one client until its connection ends. `first` is its first message.
pub(super) async fn serve<IO>(
    core: Arc<Core>,
    (mut socket, first): (WebSocketStream<Counted<IO>>, Bytes),
    peer: SocketAddr,
    permit: UnauthenticatedPermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (token, announced) = match FromClient::decode(&first) {
        Ok(FromClient::Auth { token, version }) => (token, version),
        Ok(_) => return refuse(socket, &Refusal::new(RefusalCode::InvalidRequest, "expected Auth")).await,
        Err(error) => return refuse(socket, &Refusal::new(RefusalCode::InvalidRequest, error.to_string())).await,
    };
    // Taken before the token is checked, so that no revocation falls between.
    let revoked = core.auth.revocations();
    let entered = async {
        let account = match token.filter(|token| !token.expose().is_empty()) {
            Some(token) => core.authenticate(Some(&token), peer).await?,
            None => core.anonymous(peer).await?,
        };
        let guard = core.registry.enter_session(account.id)?;
        Ok::<_, Refusal>((account, guard))
    };
    let (account, guard) = match entered.await {
        Ok(entered) => entered,
        Err(refusal) => {
            info!(%peer, code = %refusal.code, "3.x session refused");
            return refuse(socket, &refusal).await;
        }
    };
    drop(permit);
    *socket.limits_mut() = limits(V3_MAX_FRAME);
    let version = announced.min(WireVersion::Two);
    let (mux, queue) = Mux::new(version, Arc::clone(&core.waiting));
    let mut wire = Wire::new(socket, Arc::clone(&mux), queue);
    wire.tell(&FromServer::HeartbeatAck { version });
    let span = info_span!("session", account = %account.email, %peer, version = ?version);
    let session = Session { core, mux, account, tunnels: HashMap::new(), changed: Arc::default(), _guard: guard };
    session.run(wire, revoked).instrument(span).await;
}

/// Says why, and closes: clients 3.0.x would stay for ever on a connection that they have no tunnel on.
async fn refuse<IO>(mut socket: WebSocketStream<IO>, refusal: &Refusal)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let error = error_message(refusal, false).encode(WireVersion::One);
    let _ = timeout(SILENCE, socket.send(Message::binary(Bytes::from(error)))).await;
    close(socket).await;
}

fn error_message(refusal: &Refusal, by_path: bool) -> FromServer {
    let code = error_code(&refusal.code, by_path).to_owned();
    FromServer::Error { code, message: refusal.message.clone() }
}

struct Session {
    core: Arc<Core>,
    mux: Arc<Mux>,
    account: Account,
    tunnels: HashMap<TunnelId, Arc<Tunnel>>,
    changed: Arc<Notify>,
    _guard: SessionGuard,
}

/// How long a session has moved nothing, or has waited for its fullest stream.
struct Watch {
    moved: (u64, u64),
    at: Instant,
    fullest: Option<(u64, u64)>,
}

impl Drop for Session {
    /// Also when a panic ended it.
    fn drop(&mut self) {
        self.lose_tunnels();
    }
}

impl Session {
    fn lose_tunnels(&mut self) {
        self.tunnels.drain().for_each(|(_, tunnel)| self.core.registry.lose(&tunnel));
    }

    async fn run<IO>(mut self, mut wire: Wire<IO>, revoked: Receiver<Revoked>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        info!("3.x session started");
        let cause = self.serve(&mut wire, revoked).await;
        info!(cause, "3.x session ended");
        self.mux.end();
        self.lose_tunnels();
        // A refusal leaves before the closing handshake.
        let _ = timeout(SILENCE, wire.finish()).await;
        close(wire.socket).await;
    }

    async fn serve<IO>(&mut self, wire: &mut Wire<IO>, mut revoked: Receiver<Revoked>) -> &'static str
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut tick = interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled = interval(STALLED);
        stalled.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.changed);
        let stopping = self.core.stopping.clone();
        let mut watch = Watch { moved: (0, 0), at: Instant::now(), fullest: None };
        let mux = Arc::clone(&self.mux);
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                arrived = wire.next() => match arrived {
                    Arrived::TunnelCreate(request) => {
                        if !self.create(wire, request).await {
                            return "tunnel refused";
                        }
                    }
                    Arrived::BadTunnelCreate(error) => {
                        let refusal = Refusal::new(RefusalCode::InvalidRequest, error.to_string());
                        wire.tell(&error_message(&refusal, false));
                        return "tunnel refused";
                    }
                    Arrived::Full => stalled.reset(),
                    Arrived::End(cause) => return cause,
                },
                () = mux.drained.notified(), if wire.is_paused => {
                    wire.is_paused = mux.is_full();
                }
                _ = stalled.tick(), if wire.is_paused => {
                    let fullest = mux.fullest();
                    if let Some((id, _)) = fullest.filter(|_| fullest == watch.fullest) {
                        debug!(stream = id, "visitor takes nothing; stream given up");
                        mux.overflow(id);
                    }
                    watch.fullest = fullest;
                    wire.is_paused = mux.is_full();
                }
                _ = tick.tick() => {
                    let moved = wire.moved();
                    let now = Instant::now();
                    if moved.0 != watch.moved.0 || moved.1 > watch.moved.1 + PING_LEN || wire.is_paused {
                        watch.at = now;
                    } else if now.duration_since(watch.at) > SILENCE {
                        return "no sign of life";
                    }
                    watch.moved = moved;
                    mux.sweep();
                    wire.ping();
                }
                () = changed.notified() => self.look_after_tunnels(wire),
                revocation = revoked.recv() => {
                    let concerned = revocation.map_or(true, |revoked| revoked.concerns(&self.account));
                    if concerned && !self.core.auth.is_valid(&self.account).await {
                        let refusal = Refusal::new(RefusalCode::Unauthorized, "the token was revoked");
                        wire.tell(&error_message(&refusal, false));
                        return "the token was revoked";
                    }
                }
                () = stopping.cancelled() => return "the server has stopped",
            }
        }
    }

    /// Answers a request for a tunnel; says whether the session goes on.
    async fn create<IO>(&mut self, wire: &mut Wire<IO>, request: TunnelCreate) -> bool
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.mux.unsettle();
        let by_path = request.path.is_some();
        match self.open(request).await {
            Ok(tunnel) => {
                let subdomain = client_id(&tunnel.key);
                wire.tell(&FromServer::TunnelCreated(TunnelCreated {
                    url: tunnel.url.clone(),
                    path: by_path.then(|| subdomain.clone()),
                    subdomain,
                    remote_port: tunnel.key.port(),
                }));
                self.tunnels.insert(tunnel.id.clone(), tunnel);
                self.mux.settle();
                true
            }
            Err(refusal) => {
                info!(code = %refusal.code, "tunnel refused");
                wire.tell(&error_message(&refusal, by_path));
                false
            }
        }
    }

    async fn open(&self, request: TunnelCreate) -> Result<Arc<Tunnel>, Refusal> {
        let TunnelCreate { protocol, subdomain, path, remote_port, hostname } = request;
        if hostname.is_some() && (subdomain.is_some() || path.is_some()) {
            let message = "a host name, a subdomain and a path exclude each other";
            return Err(Refusal::new(RefusalCode::InvalidRequest, message));
        }
        // A path tunnel is a tunnel with a name; without one the server chooses it.
        let name = path.map_or(subdomain, |path| Some(path).filter(|path| !path.is_empty()));
        let request = |subdomain, remote_port| ReqTunnel {
            request_id: RequestId::random(),
            protocol,
            subdomain,
            hostname: hostname.clone(),
            remote_port,
            // The clients ask visitors for it themselves.
            http_auth: None,
            local_origin: None,
        };
        let open_here = |id: &TunnelId| self.tunnels.contains_key(id);
        let upstream =
            |_: &TunnelId, key: &Key| Upstream::V3(V3Upstream { mux: Arc::clone(&self.mux), id: client_id(key) });
        let opening =
            || Opening { account: &self.account, changed: &self.changed, open_here: &open_here, upstream: &upstream };
        if protocol == TunnelProtocol::Http {
            return open_tunnel(&self.core, &request(name, None), opening()).await;
        }
        // After a reconnect clients ask for the port they were configured with, and for the name they were given.
        let before = name.and_then(|name| name.strip_prefix(TCP_PREFIX)?.parse().ok());
        if let (None, Some(_)) = (remote_port, before) {
            match open_tunnel(&self.core, &request(None, before), opening()).await {
                Err(refusal) if matches!(refusal.code, RefusalCode::PortUnavailable | RefusalCode::PortOutOfRange) => {}
                result => return result,
            }
        }
        open_tunnel(&self.core, &request(None, remote_port), opening()).await
    }

    /// Forgets tunnels that a newer session took over. The client stays connected: it would come back at once and take
    /// them from the newer one.
    fn look_after_tunnels<IO>(&mut self, wire: &mut Wire<IO>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.tunnels.retain(|id, tunnel| {
            let _ = tunnel.activity.take(id);
            let Some(refusal) = tunnel.refusal.get() else { return true };
            info!(tunnel = %tunnel.key, code = %refusal.code, "tunnel closed by the server");
            wire.tell(&error_message(refusal, false));
            false
        });
    }
}

/// The id of a tunnel that the client knows, unique in its session: the name, or one of the same kind for a port.
fn client_id(key: &Key) -> String {
    match key.port() {
        Some(port) => format!("{TCP_PREFIX}{port}"),
        None => key.name().unwrap_or_default().to_owned(),
    }
}
