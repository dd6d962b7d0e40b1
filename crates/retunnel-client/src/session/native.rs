//! A native session: control messages and streams over one link.

use bytes::Bytes;
use retunnel_link::{Events as LinkEvents, Link, LinkConfig, LinkError, LinkEvent, LinkStream, Role, link};
use retunnel_proto::{
    DecodeError,
    message::{Auth, AuthResp, ClientMessage, CloseTunnel, ReqTunnel, ServerMessage, Token, TunnelClosed},
    native::{
        self, FrameHeader, FrameKind, ReasonCode,
        control::{FromClient, FromServer, Hello, HelloResp, LaneFailed, Open},
    },
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tracing::{debug, warn};

use super::{timing::AUTH_WITHIN, tunnels::Tunnels};
use crate::{
    dialect::Dialect,
    error::ConnectError,
    event::SessionInfo,
    relay,
    service::{Service, rules::RuleSupport},
    state::Command,
    transport::{Dialer, Socket, dialer::CLOSE_WITHIN, upgrade::EarlyData},
};

/// An established session.
pub(crate) struct Session {
    link: Link,
    /// The version that both ends use.
    link_version: u16,
    events: LinkEvents,
    /// Drives the link; ended with the session.
    _driver: JoinSet<LinkError>,
    relays: JoinSet<()>,
    dialer: Dialer,
    /// Lanes that are being opened.
    lanes: JoinSet<(u32, Result<Socket, ConnectError>)>,
}

/// Connects and authenticates. `requests` are sent with it; their answers arrive when the session runs.
pub(crate) async fn establish(
    dialer: &Dialer,
    auth: Auth,
    requests: Vec<ReqTunnel>,
) -> Result<(Session, SessionInfo), ConnectError> {
    let window = LinkConfig::default().initial_window;
    let hello = Hello { link_version: native::VERSION, window, lanes: true, auth };
    let mut early = early(&hello, &requests);
    loop {
        let (socket, was_early) = dialer.link(early.as_ref()).await?;
        let hello = (!was_early).then(|| FromClient::Hello(hello.clone()));
        let requests = requests.iter().filter(|_| !was_early).cloned();
        let messages = hello.into_iter().chain(requests.map(request_of));
        match begin(dialer, socket, messages).await {
            Err(ConnectError::Lost { .. } | ConnectError::Timeout { .. }) if was_early => {
                // A proxy may have forwarded the request and lost the bytes after it.
                dialer.early_data_was_lost();
                early = None;
            }
            result => return result,
        }
    }
}

/// Early data: what may be sent before the server has answered. A proxy may take it for another request and log it, so
/// it contains no secrets.
fn early(hello: &Hello, requests: &[ReqTunnel]) -> Option<EarlyData> {
    let token = hello.auth.token.clone();
    let fits_header =
        |token: &Token| !token.expose().is_empty() && token.expose().bytes().all(|b| b.is_ascii_graphic());
    if !token.as_ref().is_none_or(fits_header) {
        return None;
    }
    let hello = Hello { auth: Auth { token: None, ..hello.auth.clone() }, ..hello.clone() };
    let requests = requests.iter().cloned();
    let mut frames = Vec::new();
    for payload in
        std::iter::once(FromClient::Hello(hello)).chain(requests.map(request_of)).filter_map(FromClient::encode)
    {
        let len = u32::try_from(payload.len()).ok()?;
        frames.extend_from_slice(&FrameHeader { kind: FrameKind::Control, flags: 0, len, stream: 0 }.encode());
        frames.extend_from_slice(&payload);
    }
    Some(EarlyData { token, frames })
}

const fn request_of(request: ReqTunnel) -> FromClient {
    FromClient::Message(ClientMessage::ReqTunnel(request))
}

async fn begin(
    dialer: &Dialer,
    socket: Socket,
    messages: impl Iterator<Item = FromClient>,
) -> Result<(Session, SessionInfo), ConnectError> {
    let endpoint = || dialer.endpoint.clone();
    let (link, mut events, driver) = link(socket, Role::Client, LinkConfig::default());
    let mut drivers = JoinSet::new();
    drivers.spawn(driver);
    let lost = |source| ConnectError::Lost { endpoint: endpoint(), source };
    for message in messages {
        send(&link, message).await.map_err(lost)?;
    }
    // The end of the link may overtake the refusal that caused it.
    let first_message = async {
        loop {
            match events.next().await {
                Some(LinkEvent::Control(payload)) => return Some(payload),
                Some(_) => {}
                None => return None,
            }
        }
    };
    let answer = match timeout(AUTH_WITHIN, first_message).await {
        Ok(Some(payload)) => FromServer::decode(&payload),
        Ok(None) => return Err(lost(link.closed().await)),
        Err(_) => return Err(dialer.too_slow(AUTH_WITHIN)),
    };
    match answer {
        Ok(FromServer::Hello(HelloResp { link_version, window, welcome })) => {
            link.set_peer_window(window);
            let info = SessionInfo {
                account: welcome.account,
                client_id: welcome.client_id.to_string(),
                server: dialer.endpoint.to_string(),
                server_version: welcome.server_version,
                dialect: Dialect::Native,
            };
            let (dialer, relays, lanes) = (dialer.clone(), JoinSet::new(), JoinSet::new());
            Ok((Session { link, link_version, events, _driver: drivers, relays, dialer, lanes }, info))
        }
        Ok(FromServer::Message(ServerMessage::AuthResp(AuthResp { result: Err(refusal) }))) => {
            Err(ConnectError::Refused { endpoint: endpoint(), refusal })
        }
        Ok(_) => Err(lost(LinkError::Protocol("expected an answer to Auth"))),
        Err(error) => Err(lost(LinkError::Decode(error))),
    }
}

async fn send(link: &Link, message: FromClient) -> Result<(), LinkError> {
    match message.encode() {
        Some(payload) => link.send_control(payload).await,
        None => Ok(()),
    }
}

impl Session {
    /// What the server does about rules.
    pub(crate) const fn rule_support(&self) -> RuleSupport {
        if self.link_version < native::RULES_VERSION { RuleSupport::LinkVersion1 } else { RuleSupport::List }
    }

    /// Serves until the link ends, and returns the cause.
    pub(crate) async fn run(
        mut self,
        mut tunnels: Tunnels,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> LinkError {
        for key in tunnels.wanted(commands) {
            self.ask(&mut tunnels, key).await;
        }
        tunnels.shared.lock().link = Some(self.link.clone());
        tunnels.connected();
        let closing = tunnels.shared.closing.clone();
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                event = self.events.next() => match event {
                    Some(LinkEvent::Control(payload)) => self.control(&mut tunnels, &payload),
                    Some(LinkEvent::Opened { open, stream }) => self.relay(&tunnels, &open, stream),
                    Some(LinkEvent::GoAway { code, reason }) => debug!(%code, reason, "the server is going to end the session"),
                    Some(_) => {}
                    None => break,
                },
                Some(command) = commands.recv() => match command {
                    Command::Open(key) => self.ask(&mut tunnels, key).await,
                    Command::Close(key) => self.close(&mut tunnels, key).await,
                },
                Some(_) = self.relays.join_next() => {}
                Some(Ok(opened)) = self.lanes.join_next() => self.lane(opened).await,
                key = tunnels.due() => self.ask(&mut tunnels, key).await,
                () = closing.cancelled() => {
                    self.link.close(ReasonCode::NONE, "the client was closed");
                    let _ = timeout(CLOSE_WITHIN, self.link.closed()).await;
                    break;
                }
            }
        }
        tunnels.shared.lock().link = None;
        let cause = timeout(CLOSE_WITHIN, self.link.closed()).await.unwrap_or(LinkError::Dropped);
        // The streams ended with the link; their relays reset the local connections now.
        let _ = timeout(CLOSE_WITHIN, async { while self.relays.join_next().await.is_some() {} }).await;
        cause
    }

    async fn ask(&self, tunnels: &mut Tunnels, key: u64) {
        if let Some(request) = tunnels.request(key) {
            // A failed send shows as the end of the link.
            let _ = send(&self.link, request_of(request)).await;
        }
    }

    async fn close(&self, tunnels: &mut Tunnels, key: u64) {
        for tunnel_id in tunnels.close(key) {
            let close = ClientMessage::CloseTunnel(CloseTunnel { tunnel_id });
            let _ = send(&self.link, FromClient::Message(close)).await;
        }
    }

    fn relay(&mut self, tunnels: &Tunnels, open: &Open, stream: LinkStream) {
        match tunnels.find(&open.tunnel) {
            Some(service) => drop(self.relays.spawn(relay(stream, service))),
            None => stream.reset(ReasonCode::UNKNOWN_TUNNEL, "this client has no such tunnel"),
        }
    }
}

impl Session {
    fn control(&mut self, tunnels: &mut Tunnels, payload: &Bytes) {
        match FromServer::decode(payload) {
            Ok(FromServer::OpenLane(wanted)) if self.link.expect_lane(wanted.lane) => {
                let dialer = self.dialer.clone();
                self.lanes.spawn(async move { (wanted.lane, dialer.lane(&wanted.nonce).await) });
            }
            message => message_of(tunnels, message),
        }
    }

    /// A lane is open, or it failed: then bulk streams stay on the link.
    async fn lane(&self, (lane, opened): (u32, Result<Socket, ConnectError>)) {
        match opened {
            Ok(socket) => self.link.add_lane(lane, socket.into()),
            Err(error) => {
                debug!(%error, "a lane could not be opened");
                self.link.lane_failed(lane);
                let _ = send(&self.link, FromClient::LaneFailed(LaneFailed { lane })).await;
            }
        }
    }
}

fn message_of(tunnels: &mut Tunnels, message: Result<FromServer, DecodeError>) {
    match message {
        Ok(FromServer::Message(ServerMessage::NewTunnel(tunnel))) => tunnels.opened(tunnel),
        Ok(FromServer::Message(ServerMessage::ErrorResp(error))) => {
            let refusal = error.refusal.clone();
            if !error.request_id.is_some_and(|id| tunnels.refused(&id, error.refusal)) {
                warn!(%refusal, "the server did not understand a message");
            }
        }
        Ok(FromServer::Message(ServerMessage::TunnelClosed(TunnelClosed { tunnel_id, refusal }))) => {
            tunnels.closed(&tunnel_id, refusal);
        }
        Ok(FromServer::Message(ServerMessage::Requests(report))) => tunnels.report(report),
        Ok(_) => debug!("unexpected message ignored"),
        Err(error) => debug!(%error, "message of a newer server ignored"),
    }
}

async fn relay(stream: LinkStream, service: Service) {
    if let Err(error) = relay::serve(stream, &service).await {
        service.report_failure(&error);
    }
}
