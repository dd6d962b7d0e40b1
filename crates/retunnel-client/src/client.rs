//! The client: one session with one server, kept by a supervisor task.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    account::AccountStore,
    credentials::Credentials,
    dialect::Dialect,
    endpoint::ServerEndpoint,
    error::{ConnectError, TunnelError},
    event::{Events, SessionInfo},
    session,
    spec::{TunnelInfo, TunnelSpec},
    state::{Command, Entry, Shared},
    stats::{Stats, StatsSnapshot},
    tap::Observer,
    target::LocalTarget,
    transport::{Dialer, proxy::Proxies},
    trust::Trust,
    tunnel::Tunnel,
    validation::ValidationError,
};

/// Values of a client before it starts.
#[doc(alias = "ClientConfig")]
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    server: ServerEndpoint,
    credentials: Credentials,
    trust: Trust,
    local_trust: Trust,
    proxies: Proxies,
    keep_trying: bool,
    observer: Option<Arc<dyn Observer>>,
    dialect: Option<Dialect>,
    older_dialect: Option<Dialect>,
    registration: session::Registration,
}

impl ClientBuilder {
    /// The server. Default `localhost:6400`.
    #[must_use]
    pub fn server(mut self, server: ServerEndpoint) -> Self {
        self.server = server;
        self
    }

    /// The account's token, and what may happen without a valid one. Default [`Credentials::Register`].
    #[must_use]
    pub fn credentials(mut self, credentials: impl Into<Credentials>) -> Self {
        self.credentials = credentials.into();
        self
    }

    /// Accepts any certificate of the server. Default no.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        if insecure {
            self.trust = Trust::everything();
        }
        self
    }

    /// Trusts these certificate authorities (PEM) in addition to the system's, for the server and for local services.
    ///
    /// # Errors
    /// [`ValidationError`] when the text contains no certificate.
    pub fn extra_roots(mut self, pem: &[u8]) -> Result<Self, ValidationError> {
        self.trust = Trust::with_roots(pem)?;
        self.local_trust = self.trust.clone();
        Ok(self)
    }

    /// Reaches the server through a proxy. Default none.
    #[must_use]
    pub fn proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Keeps trying when the first connection fails for a temporary reason. Default no: the first failure ends the client.
    /// After a first session, the client always reconnects.
    #[must_use]
    pub const fn keep_trying(mut self, keep_trying: bool) -> Self {
        self.keep_trying = keep_trying;
        self
    }

    /// Sees the exchanges of HTTP tunnels, except where [`TunnelSpec::inspect`] is off. Default none.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Speaks this dialect only. Default `None`: the native one, then [`Self::older_dialect`].
    #[must_use]
    pub const fn dialect(mut self, dialect: Option<Dialect>) -> Self {
        self.dialect = dialect;
        self
    }

    /// Falls back to this published dialect when the server does not speak the native one. Default `None`: the client ends.
    /// In a published dialect the token is sent to whatever answers, so this is for servers that are known to speak it.
    #[must_use]
    pub const fn older_dialect(mut self, dialect: Option<Dialect>) -> Self {
        self.older_dialect = dialect;
        self
    }

    /// Where the account is kept that the client registers. Default none: the caller saves [`Event::Registered`]'s token.
    ///
    /// [`Event::Registered`]: crate::Event::Registered
    #[must_use]
    pub fn accounts(mut self, accounts: Arc<dyn AccountStore>) -> Self {
        self.registration.accounts = Some(accounts);
        self
    }

    /// The code of an invitation, for servers that create accounts by invitation only. Default none.
    #[must_use]
    pub fn invite(mut self, code: Option<String>) -> Self {
        self.registration.invite = code;
        self
    }

    /// Starts connecting in the background. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(self) -> Client {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, self.observer.clone()));
        let dialer = self.dialer();
        let stats = Arc::new(Stats::default());
        let config = session::Config {
            dialects: self.dialects(),
            credentials: self.credentials,
            registration: self.registration,
            keep_trying: self.keep_trying,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(session::supervise(Arc::clone(&shared), dialer, config, receiver));
        Client { shared, stats, local_trust: self.local_trust, tasks }
    }

    /// The dialects to try, best first.
    fn dialects(&self) -> Vec<Dialect> {
        match (self.dialect, self.older_dialect) {
            (Some(only), _) => vec![only],
            (None, Some(older)) if older != Dialect::Native => vec![Dialect::Native, older],
            (None, _) => vec![Dialect::Native],
        }
    }

    fn dialer(&self) -> Dialer {
        let dialer = Dialer::new(self.server.clone(), self.trust.clone(), &self.proxies);
        if self.credentials.is_of_server() {
            dialer.trust();
        }
        dialer
    }

    /// Starts and waits for the first session.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let client = self.start();
        client.connected().await?;
        Ok(client)
    }
}

#[cfg(feature = "api")]
impl ClientBuilder {
    /// The server's REST API, reached in the same way as the sessions of this client.
    #[must_use]
    pub fn api(&self) -> crate::api::ApiClient {
        crate::api::ApiClient::over(self.dialer())
    }
}

#[cfg(feature = "diagnose")]
impl ClientBuilder {
    /// Checks the connection to the server step by step and reports each check as soon as it is done; all end within
    /// 25 s. Nothing is changed: no account is created and no session opened. Dropping the future stops it.
    pub async fn diagnose(&self, report: impl FnMut(crate::diagnose::Check)) {
        let subject = crate::diagnose::Subject {
            dialer: self.dialer(),
            proxies: &self.proxies,
            dialects: self.dialects(),
            credentials: &self.credentials,
        };
        subject.diagnose(report).await;
    }

    /// Whether a local service accepts connections.
    pub async fn diagnose_local(&self, target: &LocalTarget) -> crate::diagnose::Check {
        let mut target = target.clone();
        target.trust.get_or_insert_with(|| self.local_trust.clone());
        crate::diagnose::local(&target).await
    }
}

/// A client of one server. Dropping it ends everything immediately; [`Client::close`] notifies the server first.
#[doc(alias = "ReTunnelClient")]
#[doc(alias = "HighPerformanceClient")]
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    /// Trust in local services that are reached by TLS.
    local_trust: Trust,
    /// The supervisor; aborted with the client.
    #[expect(dead_code, reason = "owned so that dropping the client ends its task")]
    tasks: JoinSet<()>,
}

impl Client {
    /// A client's values, with defaults.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            server: ServerEndpoint::default(),
            credentials: Credentials::default(),
            trust: Trust::default(),
            local_trust: Trust::default(),
            proxies: Proxies::default(),
            keep_trying: false,
            observer: None,
            dialect: None,
            older_dialect: None,
            registration: session::Registration::default(),
        }
    }

    /// Waits until a session is established.
    ///
    /// # Errors
    /// The cause, when the client has ended.
    pub async fn connected(&self) -> Result<SessionInfo, ConnectError> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.lock();
                if let Some(session) = &state.session {
                    return Ok(session.clone());
                }
                if let Some(cause) = &state.ended {
                    return Err(cause.clone());
                }
            }
            changed.await;
        }
    }

    /// Opens a tunnel for an HTTP service.
    ///
    /// # Errors
    /// [`TunnelError`].
    #[doc(alias = "request_tunnel")]
    pub async fn http(&self, target: impl Into<LocalTarget>) -> Result<Tunnel, TunnelError> {
        self.open(TunnelSpec::http(target)).await
    }

    /// Opens a tunnel for a TCP service.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub async fn tcp(&self, target: impl Into<LocalTarget>) -> Result<Tunnel, TunnelError> {
        self.open(TunnelSpec::tcp(target)).await
    }

    /// Opens a tunnel. While there is no session it waits for one.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub async fn open(&self, mut spec: TunnelSpec) -> Result<Tunnel, TunnelError> {
        spec.target.trust.get_or_insert_with(|| self.local_trust.clone());
        let (waiter, opened) = oneshot::channel();
        let stats = Arc::new(Stats::default());
        let (closer, closed) = watch::channel(None);
        let key = {
            let mut state = self.shared.lock();
            if let Some(cause) = &state.ended {
                return Err(TunnelError::SessionEnded(cause.clone()));
            }
            state.next_key += 1;
            let key = state.next_key;
            let entry = Entry {
                spec,
                info: None,
                stats: Arc::clone(&stats),
                waiter: Some(waiter),
                closed: closer,
                retry: None,
            };
            state.tunnels.insert(key, entry);
            key
        };
        let mut guard = Unopened { shared: &self.shared, key: Some(key) };
        let _ = self.shared.commands.send(Command::Open(key));
        let info = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(TunnelError::SessionEnded(self.shared.ended())),
        };
        guard.key = None;
        Ok(Tunnel { shared: Arc::clone(&self.shared), key, info, stats, closed })
    }

    /// Statistics of all open tunnels together.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        let mut total = StatsSnapshot { uptime: self.stats.snapshot().uptime, ..StatsSnapshot::default() };
        let tunnels: Vec<Arc<Stats>> =
            self.shared.lock().tunnels.values().map(|entry| Arc::clone(&entry.stats)).collect();
        for stats in tunnels {
            total.add(stats.snapshot());
        }
        total.recent.sort_by_key(|request| request.started_ms);
        total
    }

    /// The open tunnels, oldest first, with their statistics.
    #[must_use]
    pub fn tunnels(&self) -> Vec<(TunnelInfo, StatsSnapshot)> {
        let state = self.shared.lock();
        state.tunnels.values().filter_map(|entry| Some((entry.info.clone()?, entry.stats.snapshot()))).collect()
    }

    /// Closes the tunnel with this name, as dropping its [`Tunnel`] does; `false` when there is no such tunnel.
    pub fn close_tunnel(&self, name: &str) -> bool {
        let mut state = self.shared.lock();
        let found = state.tunnels.iter().find(|(_, entry)| entry.info.as_ref().is_some_and(|info| info.name == name));
        let Some(key) = found.map(|(key, _)| *key) else { return false };
        state.tunnels.remove(&key);
        drop(state);
        let _ = self.shared.commands.send(Command::Close(key));
        true
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.shared.events.subscribe())
    }

    /// The session, while there is one.
    #[must_use]
    pub fn session(&self) -> Option<SessionInfo> {
        self.shared.lock().session.clone()
    }

    /// The last round trip to the server, while there is a native link.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.shared.lock().link.as_ref()?.rtt()
    }

    /// Waits until the client has ended, and returns the cause. Cancel-safe.
    pub async fn ended(&self) -> ConnectError {
        self.shared.done.cancelled().await;
        self.shared.ended()
    }

    /// Ends the session, so that the server frees the addresses. Takes well under a second, also without a connection.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.done.cancelled().await;
    }
}

/// Removes a tunnel whose opening was cancelled or refused.
struct Unopened<'a> {
    shared: &'a Arc<Shared>,
    key: Option<u64>,
}

impl Drop for Unopened<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.remove(key);
            let _ = self.shared.commands.send(Command::Close(key));
        }
    }
}
