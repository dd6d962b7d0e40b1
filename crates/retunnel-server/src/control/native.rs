//! Native sessions: one link, and a task that answers the client's messages and reports what visitors did.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use retunnel_link::{Events, Link, LinkConfig, LinkError, LinkEvent, Role, link};
use retunnel_proto::{
    ClientId, TunnelId,
    limits::{MAX_CONTROL_MESSAGE, MAX_UNAUTHENTICATED_MESSAGE},
    message::{
        AuthResp, ClientMessage, ErrorResp, NewTunnel, Refusal, RefusalCode, ReqTunnel, ServerMessage, Token,
        TunnelClosed, Welcome,
    },
    native::{
        self, ReasonCode,
        control::{FromClient, FromServer, Hello, HelloResp, OpenLane},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{Instrument, debug, info, info_span};

use super::{
    Control,
    session::{Credentials, Event, Session},
};
use crate::{
    limits::Place,
    tunnel::{address::PublicAddress, upstream::Upstream},
    upstream::native::NativeUpstream,
};

/// How long reports of visitors' requests are gathered. Short enough to look live, long enough that a busy tunnel costs
/// ten messages a second.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Serves one client until its link ends. `token` came with the request for the link; `permit` is returned once the client
/// is authenticated.
pub(super) async fn serve<IO>(control: Arc<Control>, io: IO, token: Option<Token>, peer: SocketAddr, permit: Place)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = LinkConfig {
        max_control: MAX_UNAUTHENTICATED_MESSAGE,
        budget: Arc::clone(&control.budget),
        max_streams: control.config.limits.max_streams_per_session,
        ..LinkConfig::default()
    };
    let window = config.initial_window;
    let (link, events, driver) = link(io, Role::Server, config);
    // Two tasks: the link is polled for every visitor, the session only for control messages.
    let tasks = control.running.tasks.clone();
    let session = tasks.spawn(session(control, link, events, (window, token), peer, permit));
    driver.await;
    // It ends with its link.
    let _ = session.await;
}

async fn session(
    control: Arc<Control>,
    link: Link,
    mut events: Events,
    (window, token): (u32, Option<Token>),
    peer: SocketAddr,
    permit: Place,
) {
    let deadline = control.config.limits.unauthenticated_deadline;
    let hello = match permit.within(deadline, events.next()).await {
        Some(Some(LinkEvent::Control(payload))) => hello(&payload, token),
        Some(_) => return link.close(ReasonCode::PROTOCOL, "expected Auth"),
        None => return link.close(ReasonCode::PROTOCOL, "no Auth in time"),
    };
    let entered = match &hello {
        Ok(hello) => Session::enter(&control, Credentials::Token(hello.auth.token.as_ref()), peer).await,
        Err(refusal) => Err(refusal.clone()),
    };
    let (session, hello) = match (entered, hello) {
        (Ok(session), Ok(hello)) => (session, hello),
        (Err(refusal), _) | (_, Err(refusal)) => return refuse(&link, refusal).await,
    };
    drop(permit);
    link.set_max_control(MAX_CONTROL_MESSAGE);
    link.set_owner(session.account.id.as_u128());
    link.set_peer_window(hello.window);
    if hello.lanes {
        link.enable_lanes();
    }
    let client_id = ClientId::random();
    let account = session.account.email.clone();
    let span = info_span!("session", %account, %peer);
    let welcome = Welcome { client_id, account, server_version: crate::version::VERSION.into() };
    let link_version = hello.link_version.min(native::VERSION);
    if send(&link, FromServer::Hello(HelloResp { link_version, window, welcome })).await.is_ok() {
        NativeSession { session, link }.run(events).instrument(span).await;
    }
}

/// The client's first message.
fn hello(payload: &[u8], token: Option<Token>) -> Result<Hello, Refusal> {
    let mut hello = match FromClient::decode(payload) {
        Ok(FromClient::Hello(hello)) => hello,
        Ok(_) => return Err(Refusal::new(RefusalCode::InvalidRequest, "the first message must be Auth")),
        Err(error) => return Err(Refusal::new(RefusalCode::InvalidRequest, error.to_string())),
    };
    if hello.link_version < native::MIN_VERSION {
        let (oldest, newest) = (native::MIN_VERSION, native::VERSION);
        let message = format!("this server speaks link versions {oldest} to {newest}, not {}", hello.link_version);
        return Err(Refusal::new(RefusalCode::UnsupportedVersion, message));
    }
    hello.auth.token = hello.auth.token.or(token);
    Ok(hello)
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

struct NativeSession {
    session: Session,
    link: Link,
}

impl NativeSession {
    async fn run(mut self, mut events: Events) {
        info!("native session started");
        let mut sweep = interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report_at = None;
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.event(event).await,
                    None => break,
                },
                event = self.session.event() => match event {
                    Event::News => drop(report_at.get_or_insert_with(|| Instant::now() + REPORT_EVERY)),
                    Event::Revoked => self.link.close(ReasonCode::REVOKED, "the token was revoked"),
                    Event::Draining => self.link.go_away(ReasonCode::SHUTTING_DOWN, "the server is stopping"),
                    Event::Stopping => {
                        self.link.close(ReasonCode::SHUTTING_DOWN, "the server has stopped");
                        break;
                    }
                },
                () = sleep_until(report_at.unwrap_or_else(Instant::now)), if report_at.is_some() => {
                    report_at = None;
                    self.report().await;
                }
                _ = sweep.tick() => self.session.sweep(),
            }
        }
        let cause = self.link.closed().await;
        info!(%cause, "native session ended");
    }

    async fn event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Control(payload) => {
                self.session.turn().await;
                match FromClient::decode(&payload) {
                    Ok(FromClient::Message(ClientMessage::ReqTunnel(request))) => self.open(request).await,
                    Ok(FromClient::Message(ClientMessage::CloseTunnel(close))) => self.session.close(&close.tunnel_id),
                    Ok(FromClient::LaneFailed(failed)) => self.link.lane_failed(failed.lane),
                    Ok(_) => self.refuse(None, "message not expected in this state").await,
                    Err(error) => self.refuse(None, error.to_string()).await,
                }
            }
            LinkEvent::GoAway { code, .. } => self.session.set_clean(code == ReasonCode::NONE),
            LinkEvent::LaneWanted(lane) => match self.session.control.lanes.ask(&self.link, lane) {
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
        let answers = self.session.control.config.limits.response_head();
        let upstream = |id: &TunnelId, _: &PublicAddress, _: &str| {
            Box::new(NativeUpstream::new(link.clone(), id.clone(), answers)) as Box<dyn Upstream>
        };
        let request_id = request.request_id.clone();
        match self.session.open(&request, &upstream).await {
            Ok(tunnel) => {
                let answer = NewTunnel {
                    request_id,
                    tunnel_id: tunnel.id.clone(),
                    protocol: tunnel.protocol,
                    url: tunnel.url.clone(),
                    subdomain: tunnel.address.name().unwrap_or_default().to_owned(),
                    remote_port: tunnel.address.port(),
                };
                self.answer(ServerMessage::NewTunnel(answer)).await;
                tunnel.upstream.announce();
            }
            Err(refusal) => {
                self.answer(ServerMessage::ErrorResp(ErrorResp { request_id: Some(request_id), refusal })).await;
            }
        }
    }

    async fn refuse(&self, request_id: Option<retunnel_proto::RequestId>, message: impl Into<String>) {
        let refusal = Refusal::new(RefusalCode::InvalidRequest, message);
        self.answer(ServerMessage::ErrorResp(ErrorResp { request_id, refusal })).await;
    }

    async fn answer(&self, message: ServerMessage) {
        // A failed send shows as the end of the events.
        let _ = send(&self.link, FromServer::Message(message)).await;
    }

    async fn report(&mut self) {
        let news = self.session.news();
        for requests in news.requests {
            self.answer(ServerMessage::Requests(requests)).await;
        }
        for (tunnel, refusal) in news.closed {
            let closed = TunnelClosed { tunnel_id: tunnel.id.clone(), refusal };
            self.answer(ServerMessage::TunnelClosed(closed)).await;
        }
    }
}
