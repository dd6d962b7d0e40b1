//! A session with a server that knows dialect 2 only: a control WebSocket, and for each visitor's request a data WebSocket
//! that this side opens when it is asked to ([`data`]).

mod data;
mod wire;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::StreamExt;
use retunnel_link::LinkError;
use retunnel_proto::{
    ClientId, RequestId, TunnelId, TunnelProtocol,
    dialect::{v2, v3::refusal_code},
    limits::{MAX_CONTROL_MESSAGE, V2_MAX_RESPONSE},
    message::{Auth, AuthResp, ClientMessage, Heartbeat, Refusal, RefusalCode, ServerMessage},
    random_text,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tokio_websockets::Message;
use tracing::debug;

use self::{
    data::Arrival,
    wire::{Opener, send},
};
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
        websocket::{self, WebSocket},
    },
};

/// Data sockets open at the same time.
const MAX_SOCKETS: usize = 256;
/// Requests for a data socket that wait for another one to end; a server has one for each visitor.
const MAX_WAITING: usize = 1024;
/// Memory for the answers of one session, in KiB: four of the largest.
const ANSWERS_KIB: usize = 4 * V2_MAX_RESPONSE / 1024;
/// How long the server may take to answer a request for a tunnel.
const TUNNEL_WITHIN: Duration = Duration::from_secs(10);
/// Interval of `Ping`: some servers consider a client dead that sends none.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Interval of `Heartbeat`: some servers consider a tunnel dead without it.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(30);

/// An established session.
pub(crate) struct Session {
    control: WebSocket,
    opener: Arc<Opener>,
}

/// Connects and authenticates.
pub(super) async fn establish(dialer: &Dialer, auth: Auth) -> Result<(Session, SessionInfo), ConnectError> {
    let endpoint = || dialer.endpoint.clone();
    let lost = |source| ConnectError::Lost { endpoint: endpoint(), source };
    // `Auth` carries the token as well. The handshake shows it to whatever answers.
    let in_handshake = auth.token.as_ref().filter(|_| dialer.may_send_token_first());
    let mut control = dialer.websocket("/api/v1/ws/tunnel", in_handshake, MAX_CONTROL_MESSAGE).await?;
    let client_id = format!("client-{}", random_text(12));
    let token = auth.token.clone();
    // Servers accept only the version that every published client sends.
    let auth = Auth { client_id: client_id.clone(), version: String::new(), ..auth };
    send(&mut control, &ClientMessage::Auth(auth)).await.map_err(lost)?;
    let answer = match timeout(AUTH_WITHIN, websocket::next(&mut control)).await {
        Ok(answer) => answer.map_err(lost)?,
        Err(_) => return Err(dialer.too_slow(AUTH_WITHIN)),
    };
    let welcome = match v2::decode_server(&answer) {
        Ok(ServerMessage::AuthResp(AuthResp { result: Ok(welcome) })) => welcome,
        Ok(ServerMessage::AuthResp(AuthResp { result: Err(refusal) })) => {
            websocket::close(control).await;
            return Err(ConnectError::Refused { endpoint: endpoint(), refusal: spelled_out(refusal) });
        }
        Ok(_) => return Err(not_2(dialer, "another message than AuthResp")),
        Err(error) => return Err(not_2(dialer, &error.to_string())),
    };
    let client_id = match welcome.client_id.as_str() {
        "" => ClientId::from_text(client_id),
        _ => welcome.client_id,
    };
    let info = SessionInfo {
        account: welcome.account,
        client_id: client_id.to_string(),
        server: dialer.endpoint.to_string(),
        server_version: welcome.server_version,
        dialect: Dialect::V2,
    };
    let answers = Arc::new(Semaphore::new(ANSWERS_KIB));
    let opener = Arc::new(Opener { dialer: dialer.clone(), token, client_id, answers });
    Ok((Session { control, opener }, info))
}

fn not_2(dialer: &Dialer, answer: &str) -> ConnectError {
    ConnectError::NotAServer { endpoint: dialer.endpoint.clone(), answer: answer.to_owned() }
}

/// The dialect has one text for everything. Our servers append the code to it; others may send a code of dialect 3.
fn spelled_out(refusal: Refusal) -> Refusal {
    let code = refusal.message.rsplit_once(" [").and_then(|(text, code)| Some((text, code.strip_suffix(']')?)));
    match code.map(|(text, code)| (text, RefusalCode::from(code))) {
        Some((text, code)) if !matches!(code, RefusalCode::Other(_)) => return Refusal::new(code, text),
        _ => {}
    }
    let published = [refusal.code.as_str(), refusal.message.split(':').next().unwrap_or_default()].map(refusal_code);
    match published.into_iter().find(|code| !matches!(code, RefusalCode::Other(_))) {
        Some(code) => Refusal::new(code, refusal.message),
        None => refusal,
    }
}

impl Session {
    /// Serves until the control socket ends, and returns the cause.
    pub(crate) async fn run(self, tunnels: Tunnels, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        let Self { mut control, opener } = self;
        let mut running = Running {
            tunnels,
            opener,
            outgoing: VecDeque::new(),
            asked: HashMap::new(),
            waiting: 0,
            arrivals: JoinSet::new(),
            relays: JoinSet::new(),
        };
        let closing = running.tunnels.shared.closing.clone();
        let cause = tokio::select! {
            cause = running.serve(&mut control, commands) => cause,
            () = closing.cancelled() => LinkError::Dropped,
        };
        websocket::close(control).await;
        cause
    }
}

struct Running {
    tunnels: Tunnels,
    opener: Arc<Opener>,
    /// Messages to send before the next event is handled.
    outgoing: VecDeque<ClientMessage>,
    /// Deadlines of requests for tunnels.
    asked: HashMap<RequestId, Instant>,
    /// Requests for a data socket that wait for others to end.
    waiting: usize,
    /// Data sockets that wait for a request.
    arrivals: JoinSet<Option<Arrival>>,
    /// Data sockets whose request is being served.
    relays: JoinSet<Option<Arrival>>,
}

impl Running {
    async fn serve(&mut self, control: &mut WebSocket, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        for key in self.tunnels.wanted(commands) {
            self.ask(key);
        }
        self.tunnels.connected();
        let mut tick = interval(TICK);
        let mut heard = Instant::now();
        let (mut pinged, mut beaten) = (heard, heard);
        loop {
            while let Some(message) = self.outgoing.pop_front() {
                if let Err(error) = send(control, &message).await {
                    return error;
                }
            }
            // Every arm is cancel-safe; messages are written at the top.
            tokio::select! {
                message = control.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) if message.is_binary() => self.message(message.as_payload()),
                        Some(Ok(message)) if message.is_close() => return LinkError::Io(Arc::new(websocket::close_reason(&message))),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return websocket::failed(error),
                        None => return LinkError::ClosedByPeer,
                    }
                }
                Some(command) = commands.recv() => match command {
                    Command::Open(key) => self.ask(key),
                    // The dialect has no message for it: visitors of the tunnel get 502 from now on.
                    Command::Close(key) => drop(self.tunnels.close(key)),
                },
                key = self.tunnels.due() => self.ask(key),
                Some(arrived) = self.arrivals.join_next() => self.arrived(arrived.ok().flatten()),
                Some(done) = self.relays.join_next() => self.relayed(done.ok().flatten()),
                now = tick.tick() => {
                    if now.duration_since(heard) > SILENCE {
                        return LinkError::Silent(now.duration_since(heard));
                    }
                    if let Err(error) = websocket::send(control, Message::ping(Bytes::new())).await {
                        return error;
                    }
                    self.expire(now);
                    if now.duration_since(pinged) >= PING_EVERY {
                        pinged = now;
                        self.outgoing.push_back(ClientMessage::Ping);
                    }
                    if now.duration_since(beaten) >= HEARTBEAT_EVERY {
                        beaten = now;
                        self.beat();
                    }
                }
            }
        }
    }

    fn ask(&mut self, key: u64) {
        let Some(request) = self.tunnels.request(key) else { return };
        if request.protocol == TunnelProtocol::Tcp {
            let message = "the server speaks dialect 2, which cannot carry TCP";
            self.tunnels.refused(&request.request_id, Refusal::new(RefusalCode::DialectUnsupported, message));
            return;
        }
        self.asked.insert(request.request_id.clone(), Instant::now() + TUNNEL_WITHIN);
        self.outgoing.push_back(ClientMessage::ReqTunnel(request));
    }

    /// A request without an answer counts as a temporary refusal.
    fn expire(&mut self, now: Instant) {
        let late: Vec<RequestId> = self.asked.extract_if(|_, deadline| *deadline < now).map(|(id, _)| id).collect();
        for request_id in late {
            let message = format!("the server did not answer within {} s", TUNNEL_WITHIN.as_secs());
            self.tunnels.refused(&request_id, Refusal::new(RefusalCode::Internal, message));
        }
    }

    fn beat(&mut self) {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        for subdomain in self.tunnels.subdomains() {
            self.outgoing.push_back(ClientMessage::Heartbeat(Heartbeat { subdomain, timestamp }));
        }
    }

    fn message(&mut self, payload: &[u8]) {
        match v2::decode_server(payload) {
            Ok(ServerMessage::NewTunnel(tunnel)) => {
                self.asked.remove(&tunnel.request_id);
                self.tunnels.opened(tunnel);
            }
            Ok(ServerMessage::ErrorResp(error)) => {
                let refusal = spelled_out(error.refusal);
                if let Some(request_id) = &error.request_id {
                    self.asked.remove(request_id);
                    if self.tunnels.refused(request_id, refusal.clone()) {
                        return;
                    }
                }
                if refusal.code == RefusalCode::Superseded {
                    self.tunnels.superseded(refusal.message);
                }
            }
            Ok(ServerMessage::ReqProxy) => {
                self.waiting = (self.waiting + 1).min(MAX_WAITING);
                self.open_sockets();
            }
            Ok(ServerMessage::Ping) => self.outgoing.push_back(ClientMessage::Pong),
            Ok(_) => {}
            Err(error) => debug!(%error, "message ignored"),
        }
    }

    fn open_sockets(&mut self) {
        while self.waiting > 0 && self.arrivals.len() + self.relays.len() < MAX_SOCKETS {
            self.waiting -= 1;
            self.arrivals.spawn(data::open(Arc::clone(&self.opener)));
        }
    }

    /// A request arrived on a data socket.
    fn arrived(&mut self, arrival: Option<Arrival>) {
        if let Some(arrival) = arrival {
            let tunnel = tunnel_of(&arrival.start.url, self.tunnels.ids());
            match tunnel.and_then(|tunnel| self.tunnels.find(&tunnel)) {
                Some(service) => drop(self.relays.spawn(data::serve(arrival, service, Arc::clone(&self.opener)))),
                // The socket is closed without an answer, which servers turn into 502.
                None => debug!(url = arrival.start.url, "a request for a tunnel that is not open"),
            }
        }
        self.open_sockets();
    }

    /// A request is done; its socket may bring another.
    fn relayed(&mut self, done: Option<Arrival>) {
        if let Some(arrival) = done {
            self.arrivals.spawn(data::again(arrival));
        }
        self.open_sockets();
    }
}

/// The tunnel that a `StartProxy` is for. Its URL contains the tunnel's id somewhere; the first id that occurs would be
/// `app` for `app2`. So the fragment counts first, then the first label of the host, then the id as a separate word.
fn tunnel_of<'a>(url: &str, ids: impl Iterator<Item = &'a TunnelId> + Clone) -> Option<TunnelId> {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    let fragment = address.rsplit_once('#').map(|(_, fragment)| fragment);
    let label = address.split(['.', ':', '/', '#', '?']).next();
    let is_word = |id: &str| {
        let of_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
        address.match_indices(id).any(|(at, _)| {
            !address[..at].ends_with(of_word) && !address[at + id.len()..].starts_with(of_word) && !id.is_empty()
        })
    };
    let exact = |part: Option<&str>| ids.clone().find(|id| part == Some(id.as_str()));
    let word = || ids.clone().filter(|id| is_word(id.as_str())).max_by_key(|id| id.as_str().len());
    exact(fragment).or_else(|| exact(label)).or_else(word).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_found_by_its_whole_id() {
        let ids: Vec<_> = ["app", "app2", "my-app", "http", "test", "tun-x"].map(TunnelId::from_text).into();
        for (url, found) in [
            ("http://app.tunnel.test:80#app", Some("app")),
            ("http://app2.tunnel.test", Some("app2")),
            ("http://my-app.tunnel.test", Some("my-app")),
            ("https://tunnel.example/x?t=app2", Some("app2")),
            ("http://other.tunnel.example", None),
            ("http://app3.tunnel.example", None),
            ("http://b.tunnel.example/#tun-x", Some("tun-x")),
            ("app", Some("app")),
            ("", None),
        ] {
            assert_eq!(tunnel_of(url, ids.iter()), found.map(TunnelId::from_text), "{url}");
        }
        assert_eq!(tunnel_of("http://a.b", [TunnelId::from_text("")].iter()), None);
    }

    #[test]
    fn codes_behind_a_text_are_read() {
        let refusal = |text: &str| spelled_out(Refusal::new(RefusalCode::Other("tunnel_failed".into()), text));
        assert_eq!(refusal("taken [name_unavailable]"), Refusal::new(RefusalCode::NameUnavailable, "taken"));
        for text in ["taken", "taken [x]", "[", "a [b", ""] {
            assert_eq!(refusal(text).message, text);
        }
        let text = "SUBDOMAIN_UNAVAILABLE: the name is taken";
        assert_eq!(refusal(text), Refusal::new(RefusalCode::NameUnavailable, text));
        let by_code = Refusal::new(RefusalCode::Other("SUBDOMAIN_UNAVAILABLE".into()), "the name is taken");
        assert_eq!(spelled_out(by_code).code, RefusalCode::NameUnavailable);
    }
}
