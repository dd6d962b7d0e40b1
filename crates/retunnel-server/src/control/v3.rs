//! Dialect 3 sessions: one WebSocket that carries the handshake, the tunnels and every visitor's stream
//! ([`crate::upstream::v3`], `docs/protocol.md`, dialect 3).

mod wire;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::SinkExt;
use retunnel_proto::{
    RequestId, TunnelId,
    dialect::v3::{FromClient, FromServer, TunnelCreate, TunnelCreated, WireVersion, error_code},
    limits::V3_MAX_FRAME,
    message::{Refusal, RefusalCode, ReqTunnel, TunnelProtocol},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_websockets::{Message, WebSocketStream};
use tracing::{Instrument, debug, info, info_span};

use self::wire::{Arrived, Wire};
use super::{
    Control,
    session::{Credentials, Event, Session},
    websocket::{Counted, close, limits},
};
use crate::{
    limits::Place,
    tunnel::{Tunnel, address::PublicAddress, upstream::Upstream},
    upstream::v3::{V3Upstream, mux::Mux},
};

/// Time between WebSocket pings, which every client answers at once.
const PING_EVERY: Duration = Duration::from_secs(3);
/// When neither the answer to a ping nor anything else moved for this long, the client is gone.
const SILENCE: Duration = Duration::from_secs(9);
/// While a session has more waiting than it may, a visitor that takes nothing for this long loses its stream: all others
/// wait for it.
const STALLED: Duration = Duration::from_secs(2);
/// Bytes that a ping takes. Bytes written beyond them were taken by the peer's side of the network.
const PING_LEN: u64 = 2;
/// What the id of a TCP tunnel starts with. No name has the character, so that no name of the session is the same.
const TCP_PREFIX: &str = "tcp_";

/// Serves one client until its connection ends. `first` is its first message.
pub(super) async fn serve<IO>(
    control: Arc<Control>,
    (mut socket, first): (WebSocketStream<Counted<IO>>, Bytes),
    peer: SocketAddr,
    permit: Place,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (token, announced) = match FromClient::decode(&first) {
        Ok(FromClient::Auth { token, version }) => (token, version),
        Ok(_) => return refuse(socket, &Refusal::new(RefusalCode::InvalidRequest, "expected Auth")).await,
        Err(error) => return refuse(socket, &Refusal::new(RefusalCode::InvalidRequest, error.to_string())).await,
    };
    let token = token.filter(|token| !token.expose().is_empty());
    let credentials = token.as_ref().map_or(Credentials::Anonymous, |token| Credentials::Token(Some(token)));
    let session = match Session::enter(&control, credentials, peer).await {
        Ok(session) => session,
        Err(refusal) => return refuse(socket, &refusal).await,
    };
    drop(permit);
    *socket.limits_mut() = limits(V3_MAX_FRAME);
    let version = announced.min(WireVersion::Two);
    let (mux, queue) = Mux::new(version, control.waiting.share(session.account.id));
    let mut wire = Wire::new(socket, Arc::clone(&mux), queue);
    wire.queue(&FromServer::HeartbeatAck { version });
    let span = info_span!("session", account = %session.account.email, %peer, version = ?version);
    V3Session { session, mux }.run(wire).instrument(span).await;
}

/// Sends a refusal and closes: clients 3.0.x would stay for ever on a connection without a tunnel.
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

struct V3Session {
    session: Session,
    mux: Arc<Mux>,
}

/// How long a session has moved nothing, or has waited for its fullest stream.
struct Watch {
    moved: (u64, u64),
    at: Instant,
    fullest: Option<(u64, u64)>,
}

impl V3Session {
    async fn run<IO>(mut self, mut wire: Wire<IO>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        info!("3.x session started");
        let cause = self.serve(&mut wire).await;
        info!(cause, "3.x session ended");
        self.mux.end();
        drop(self.session);
        // A refusal leaves before the closing handshake.
        let _ = timeout(SILENCE, wire.finish()).await;
        close(wire.socket).await;
    }

    async fn serve<IO>(&mut self, wire: &mut Wire<IO>) -> &'static str
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut tick = interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled = interval(STALLED);
        stalled.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch { moved: (0, 0), at: Instant::now(), fullest: None };
        let mux = Arc::clone(&self.mux);
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                arrived = wire.next() => match arrived {
                    Arrived::TunnelCreate(request) => {
                        self.session.turn().await;
                        if !self.create(wire, request).await {
                            return "tunnel refused";
                        }
                    }
                    Arrived::BadTunnelCreate(error) => {
                        let refusal = Refusal::new(RefusalCode::InvalidRequest, error.to_string());
                        wire.queue(&error_message(&refusal, false));
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
                event = self.session.event() => match event {
                    Event::News => self.pass_on_closed(wire),
                    Event::Draining => {}
                    Event::Revoked => {
                        let refusal = Refusal::new(RefusalCode::Unauthorized, "the token was revoked");
                        wire.queue(&error_message(&refusal, false));
                        return "the token was revoked";
                    }
                    Event::Stopping => return "the server has stopped",
                },
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
                let subdomain = client_id(&tunnel.address);
                wire.queue(&FromServer::TunnelCreated(TunnelCreated {
                    url: tunnel.url.clone(),
                    path: by_path.then(|| subdomain.clone()),
                    subdomain,
                    remote_port: tunnel.address.port(),
                }));
                self.mux.settle();
                true
            }
            Err(refusal) => {
                wire.queue(&error_message(&refusal, by_path));
                false
            }
        }
    }

    async fn open(&mut self, request: TunnelCreate) -> Result<Arc<Tunnel>, Refusal> {
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
            // The clients apply them themselves.
            rules: Vec::new(),
        };
        let mux = Arc::clone(&self.mux);
        let upstream = |_: &TunnelId, address: &PublicAddress, _: &str| {
            Box::new(V3Upstream::new(Arc::clone(&mux), client_id(address))) as Box<dyn Upstream>
        };
        if protocol == TunnelProtocol::Http {
            return self.session.open(&request(name, None), &upstream).await;
        }
        // After a reconnect clients ask for the port they were configured with, and for the name they were given.
        let before = name.and_then(|name| name.strip_prefix(TCP_PREFIX)?.parse().ok());
        if let (None, Some(_)) = (remote_port, before) {
            match self.session.open(&request(None, before), &upstream).await {
                Err(refusal) if matches!(refusal.code, RefusalCode::PortUnavailable | RefusalCode::PortOutOfRange) => {}
                result => return result,
            }
        }
        self.session.open(&request(None, remote_port), &upstream).await
    }

    /// Reports tunnels that a newer session took over. The client stays connected: otherwise it would reconnect at once and
    /// take them from the newer one.
    fn pass_on_closed<IO>(&mut self, wire: &mut Wire<IO>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        for (_, refusal) in self.session.news().closed {
            wire.queue(&error_message(&refusal, false));
        }
    }
}

/// The id of a tunnel that the client knows, unique in its session: the name, or one of the same kind for a port.
fn client_id(address: &PublicAddress) -> String {
    match address.port() {
        Some(port) => format!("{TCP_PREFIX}{port}"),
        None => address.name().unwrap_or_default().to_owned(),
    }
}
