//! The supervisor: connects, authenticates, opens the tunnels, relays, and begins again when the session is lost.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use retunnel_link::{Events as LinkEvents, Link, LinkConfig, LinkError, LinkEvent, LinkStream, Role, link};
use retunnel_proto::{
    RequestId, TunnelId,
    message::{
        Auth, AuthResp, ClientMessage, CloseTunnel, NewTunnel, Refusal, RefusalCode, ServerMessage, Token, TunnelClosed,
    },
    native::{
        self, ReasonCode,
        control::{FromClient, FromServer, Hello, HelloResp, Open},
    },
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    api::ApiClient,
    client::{ClientBuilder, Command, Shared, name_of},
    error::{ConnectError, RelayError, TunnelError},
    event::{Event, SessionInfo},
    reconnect::Backoff,
    relay,
    stats::Stats,
    target::LocalTarget,
    transport::Dialer,
    tunnel::TunnelInfo,
};

/// How long the server may take to answer `Auth`.
const AUTH_WITHIN: Duration = Duration::from_secs(10);
/// How long a farewell may take; the link itself flushes for 300 ms.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);
/// Pause before a tunnel that was refused for now is asked for again.
const TUNNEL_RETRY: Duration = Duration::from_secs(3);

/// Keeps a session up until the client is closed or the server refuses it for good.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    dialer: Dialer,
    config: ClientBuilder,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let closing = shared.closing.clone();
    let mut token = config.token.clone();
    let mut may_replace = config.replace_refused_token;
    let mut backoff = Backoff::default();
    let mut stood = false;
    let failure = loop {
        shared.emit(Event::Connecting { attempt: backoff.attempts() + 1 });
        let attempt = establish(&shared, &dialer, &mut token, config.register);
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = closing.cancelled() => break ConnectError::Closed,
        };
        let cause = match outcome {
            Ok(established) => {
                stood = true;
                backoff.reset();
                let lost = established.run(&shared, &mut commands).await;
                if closing.is_cancelled() {
                    break ConnectError::Closed;
                }
                shared.lock().session = None;
                ConnectError::Lost { endpoint: dialer.endpoint.clone(), source: lost }
            }
            Err(cause) => cause,
        };
        let unknown_token =
            matches!(&cause, ConnectError::Refused { refusal, .. } if refusal.code == RefusalCode::Unauthorized);
        if unknown_token && may_replace && config.register {
            may_replace = false;
            token = None;
            continue;
        }
        let refused_for_good =
            matches!(cause, ConnectError::Refused { .. } | ConnectError::Register { .. }) && cause.is_final();
        // No account yet and none to be had now: whoever started us decides when to ask again.
        let no_account = matches!(&cause, ConnectError::Register { source: crate::error::ApiError::Status { .. }, .. });
        if refused_for_good || (!stood && (no_account || cause.is_final() || !config.keep_trying)) {
            break cause;
        }
        let retry_in = backoff.next(cause.is_connection_refused(), cause.retry_after());
        shared.emit(Event::Disconnected { cause: cause.to_string(), retry_in, refused: cause.is_connection_refused() });
        tokio::select! {
            () = sleep(retry_in) => {}
            () = closing.cancelled() => break ConnectError::Closed,
        }
    };
    end(&shared, failure);
}

fn end(shared: &Shared, failure: ConnectError) {
    let cause = failure.to_string();
    {
        let mut state = shared.lock();
        state.session = None;
        state.ended = Some(cause.clone());
        state.failure = Some(failure);
        // Whoever waits for a tunnel, or for its end, learns of it.
        for entry in std::mem::take(&mut state.tunnels).into_values() {
            if let Some(waiter) = entry.waiter {
                let _ = waiter.send(Err(TunnelError::SessionEnded(cause.clone())));
            }
        }
    }
    shared.emit(Event::Ended { cause });
    shared.done.cancel();
    shared.changed.notify_waiters();
}

/// A session that stands.
struct Established {
    link: Link,
    events: LinkEvents,
    /// Drives the link; ended with the session.
    driver: JoinSet<LinkError>,
    info: SessionInfo,
}

async fn establish(
    shared: &Shared,
    dialer: &Dialer,
    token: &mut Option<Token>,
    register: bool,
) -> Result<Established, ConnectError> {
    let endpoint = || dialer.endpoint.clone();
    if token.is_none() && register {
        let api = ApiClient::new(dialer.endpoint.clone(), dialer.insecure);
        let made = api.register(None, None).await.map_err(|source| match source {
            crate::error::ApiError::Connect(cause) => *cause,
            source => ConnectError::Register { endpoint: endpoint(), source },
        })?;
        shared.emit(Event::Registered { token: made.clone() });
        *token = Some(made);
    }
    let socket = dialer.link().await?;
    let link_config = LinkConfig::default();
    let window = link_config.initial_window;
    let (link, mut events, driver) = link(socket, Role::Client, link_config);
    let mut drivers = JoinSet::new();
    drivers.spawn(driver);
    let auth = Auth {
        token: token.clone(),
        client_id: String::new(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        version: format!("retunnel/{}", crate::VERSION),
    };
    let lost = |source| ConnectError::Lost { endpoint: endpoint(), source };
    send(&link, FromClient::Hello(Hello { link_version: native::VERSION, window, auth })).await.map_err(lost)?;
    // A farewell may overtake the refusal it belongs to.
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
        Ok(FromServer::Hello(HelloResp { window, welcome, .. })) => {
            link.set_peer_window(window);
            let info = SessionInfo {
                account: welcome.account,
                client_id: welcome.client_id.to_string(),
                server: dialer.endpoint.to_string(),
                server_version: welcome.server_version,
            };
            Ok(Established { link, events, driver: drivers, info })
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

/// What one session knows about its tunnels.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    link: Link,
    /// Requests without an answer.
    asked: HashMap<RequestId, u64>,
    open: HashMap<TunnelId, u64>,
    relays: JoinSet<()>,
    /// Tunnels to ask for again after a pause.
    retries: JoinSet<u64>,
}

impl Established {
    /// Serves until the link ends, and says why it did.
    async fn run(self, shared: &Arc<Shared>, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        let Self { link, mut events, driver: _driver, info } = self;
        let mut session = Session {
            shared,
            link: link.clone(),
            asked: HashMap::new(),
            open: HashMap::new(),
            relays: JoinSet::new(),
            retries: JoinSet::new(),
        };
        // Older commands are part of the state by now.
        while commands.try_recv().is_ok() {}
        let keys: Vec<u64> = shared.lock().tunnels.keys().copied().collect();
        for key in keys {
            session.ask(key).await;
        }
        shared.lock().session = Some(info.clone());
        shared.emit(Event::Connected { session: info });
        shared.changed.notify_waiters();
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                event = events.next() => match event {
                    Some(LinkEvent::Control(payload)) => session.control(&payload),
                    Some(LinkEvent::Opened { open, stream }) => session.relay(&open, stream),
                    Some(LinkEvent::GoAway { code, reason }) => debug!(%code, reason, "the server is about to end the session"),
                    Some(_) => {}
                    None => break,
                },
                Some(command) = commands.recv() => match command {
                    Command::Open(key) => session.ask(key).await,
                    Command::Close(key) => session.close(key).await,
                },
                Some(_) = session.relays.join_next() => {}
                Some(Ok(key)) = session.retries.join_next() => session.ask(key).await,
                () = shared.closing.cancelled() => {
                    link.close(ReasonCode::NONE, "the client was closed");
                    let _ = timeout(CLOSE_WITHIN, link.closed()).await;
                    break;
                }
            }
        }
        let cause = timeout(CLOSE_WITHIN, link.closed()).await.unwrap_or(LinkError::Dropped);
        // The streams have ended with the link; their relays reset the local connections now.
        let _ = timeout(CLOSE_WITHIN, async { while session.relays.join_next().await.is_some() {} }).await;
        cause
    }
}

impl Session<'_> {
    /// Asks for a tunnel, again or for the first time.
    async fn ask(&mut self, key: u64) {
        let request = {
            let state = self.shared.lock();
            let Some(entry) = state.tunnels.get(&key) else { return };
            entry.stats.new_session();
            entry.spec.request(entry.info.as_ref())
        };
        if self.open.values().chain(self.asked.values()).any(|known| *known == key) {
            return;
        }
        self.asked.insert(request.request_id.clone(), key);
        // A failed send shows as the end of the link.
        let _ = send(&self.link, FromClient::Message(ClientMessage::ReqTunnel(request))).await;
    }

    async fn close(&mut self, key: u64) {
        let ids: Vec<TunnelId> = self.open.iter().filter(|(_, open)| **open == key).map(|(id, _)| id.clone()).collect();
        for tunnel_id in ids {
            self.open.remove(&tunnel_id);
            let close = ClientMessage::CloseTunnel(CloseTunnel { tunnel_id });
            let _ = send(&self.link, FromClient::Message(close)).await;
        }
    }

    fn control(&mut self, payload: &Bytes) {
        match FromServer::decode(payload) {
            Ok(FromServer::Message(ServerMessage::NewTunnel(tunnel))) => self.opened(tunnel),
            Ok(FromServer::Message(ServerMessage::ErrorResp(error))) => {
                match error.request_id.and_then(|id| self.asked.remove(&id)) {
                    Some(key) => self.refused(key, error.refusal),
                    None => warn!(refusal = %error.refusal, "the server did not understand a message"),
                }
            }
            Ok(FromServer::Message(ServerMessage::TunnelClosed(TunnelClosed { tunnel_id, refusal }))) => {
                if let Some(key) = self.open.remove(&tunnel_id) {
                    self.ended(key, refusal);
                }
            }
            Ok(FromServer::Message(ServerMessage::Requests(report))) => {
                let Some(key) = self.open.get(&report.tunnel_id) else { return };
                let state = self.shared.lock();
                let Some(entry) = state.tunnels.get(key) else { return };
                entry.stats.report(&report);
                let tunnel = entry.info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
                drop(state);
                for request in report.recent {
                    self.shared.emit(Event::Request { tunnel: tunnel.clone(), request });
                }
            }
            Ok(_) => debug!("message not expected in this state"),
            Err(error) => debug!(%error, "message of a newer server ignored"),
        }
    }

    fn opened(&mut self, tunnel: NewTunnel) {
        let Some(key) = self.asked.remove(&tunnel.request_id) else { return };
        // Kept also when nobody wants it any more: the `Close` that follows ends it.
        self.open.insert(tunnel.tunnel_id.clone(), key);
        let mut state = self.shared.lock();
        let Some(entry) = state.tunnels.get_mut(&key) else {
            drop(state);
            let _ = self.shared.commands.send(Command::Close(key));
            return;
        };
        let info = TunnelInfo {
            name: name_of(&entry.spec, &tunnel.subdomain, tunnel.remote_port),
            url: tunnel.url,
            protocol: tunnel.protocol,
            subdomain: tunnel.subdomain,
            remote_port: tunnel.remote_port,
            target: entry.spec.target.clone(),
        };
        let was_open = entry.info.replace(info.clone()).is_some();
        let waiter = entry.waiter.take();
        drop(state);
        if let Some(waiter) = waiter {
            let _ = waiter.send(Ok(info.clone()));
        }
        self.shared.emit(if was_open { Event::TunnelRestored(info) } else { Event::TunnelOpened(info) });
    }

    fn refused(&mut self, key: u64, refusal: Refusal) {
        let mut state = self.shared.lock();
        let Some(entry) = state.tunnels.get_mut(&key) else { return };
        if let Some(waiter) = entry.waiter.take() {
            state.tunnels.remove(&key);
            drop(state);
            let _ = waiter.send(Err(TunnelError::Refused(refusal)));
            return;
        }
        let name = entry.info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
        drop(state);
        self.shared.emit(Event::TunnelFailed { name, refusal: refusal.clone() });
        if refusal.code.is_final() {
            self.ended(key, refusal);
        } else {
            self.retries.spawn(async move {
                sleep(TUNNEL_RETRY).await;
                key
            });
        }
    }

    /// The server took a tunnel away for good.
    fn ended(&self, key: u64, refusal: Refusal) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.tunnels.remove(&key) {
            drop(state);
            entry.closed.send_replace(Some(refusal.clone()));
            let name = entry.info.map(|info| info.name).unwrap_or_default();
            self.shared.emit(Event::TunnelClosed { name, refusal });
        }
    }

    fn relay(&mut self, open: &Open, stream: LinkStream) {
        let found = self.open.get(&open.tunnel).and_then(|key| {
            let state = self.shared.lock();
            let entry = state.tunnels.get(key)?;
            let name = entry.info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
            Some((entry.spec.target.clone(), Arc::clone(&entry.stats), name))
        });
        let Some((target, stats, name)) = found else {
            return stream.reset(ReasonCode::UNKNOWN_TUNNEL, "this client has no such tunnel");
        };
        self.relays.spawn(relay(stream, target, stats, name, Arc::clone(self.shared)));
    }
}

async fn relay(stream: LinkStream, target: LocalTarget, stats: Arc<Stats>, name: String, shared: Arc<Shared>) {
    match relay::serve(stream, &target, &stats).await {
        Ok(()) => {}
        Err(RelayError::LocalUnreachable { target, reason }) => {
            shared.emit(Event::LocalUnreachable { tunnel: name, reason: format!("{reason}: {target}") });
        }
        Err(error) => debug!(tunnel = name, %error, "connection failed"),
    }
}
