//! Starts a server, keeps it up, stops it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use retunnel_link::Budget;
use retunnel_proto::limits::V2_MAX_REQUEST_BODY;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    auth::Auth,
    config::ServerConfig,
    control::{lanes::LaneDesk, v3::Waiting},
    core::{BODY_PIECE, Core},
    edge::{
        accept, connection,
        socket::Socket,
        tls::{Tls, TlsError},
    },
    guarded::guarded,
    hostnames::Hostnames,
    limits::{ConnectionGate, RateLimits},
    registry::{Key, Quota, Registry},
    rest::{self, RestState},
    store::{LeaseKey, Store, StoreError},
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Connections beyond the bound that are told so at a time; further ones are just closed.
const MAX_TURNED_AWAY: usize = 256;
/// How long tasks may take to end once they were told to.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Pause after the database refused a write.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Why a server could not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory or the database in it.
    #[error("cannot use the data directory {}: {source}", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listening address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Starts servers.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Opens the data directory, binds the listener and serves until [`ServerHandle::shutdown`].
    ///
    /// # Errors
    /// [`StartError`]. Nothing runs then.
    pub async fn start(config: ServerConfig) -> Result<ServerHandle, StartError> {
        let tls = config.tls.clone().map(Tls::load).transpose()?;
        let data_dir = config.data_dir.clone();
        let failed = |source| StartError::Data { path: data_dir.clone(), source };
        let store = Store::open(&data_dir).await.map_err(failed)?;
        let leases = store.leases().await.map_err(failed)?;
        let listener = accept::listen(config.listen, BACKLOG)
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;

        let limits = &config.limits;
        let quota = Quota { sessions: limits.max_sessions_per_account, tunnels: limits.max_tunnels_per_account };
        let registry = Arc::new(Registry::new(limits.hold_lease, quota));
        registry.restore(leases.into_iter().map(|lease| (key_of(lease.key), lease.account)));
        let auth = Auth::new(store.clone());
        let rates = Arc::new(RateLimits::new(limits));
        let ready = Arc::new(AtomicBool::new(true));
        let hostnames = Arc::new(Hostnames::new(store.clone(), &config));
        let rest = rest::router(RestState {
            auth: auth.clone(),
            hostnames: Arc::clone(&hostnames),
            registry: Arc::clone(&registry),
            rates: Arc::clone(&rates),
            config: Arc::new(config.clone()),
            address,
            ready: Arc::clone(&ready),
        });
        let core = Arc::new(Core {
            address,
            tls,
            registry,
            auth,
            hostnames,
            rates,
            gate: ConnectionGate::new(limits),
            lanes: LaneDesk::default(),
            visitors: Arc::new(Semaphore::new(limits.max_connections)),
            budget: Arc::new(Budget::new(limits.max_buffered)),
            waiting: Arc::new(Waiting::new(limits.max_buffered)),
            // Room for one at least, however small the bound.
            whole_bodies: Arc::new(Semaphore::new(limits.max_buffered.max(V2_MAX_REQUEST_BODY).div_ceil(BODY_PIECE))),
            rest,
            ready,
            relays: TaskTracker::new(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            config,
        });
        core.tasks.spawn(accept_all(Arc::clone(&core), listener, connection::serve_owned));
        core.tasks.spawn(keep_up(Arc::clone(&core)));
        core.tasks.spawn(save_leases(Arc::clone(&core), store));
        info!(%address, data = %core.config.data_dir.display(), "server started");
        Ok(ServerHandle { core })
    }
}

/// A running server. Dropping it stops everything at once.
#[derive(Debug)]
pub struct ServerHandle {
    core: Arc<Core>,
}

impl ServerHandle {
    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.core.address
    }

    /// Where the server's data is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.core.config.data_dir
    }

    /// Reads the certificate's files again, for new connections.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate stays as it was then.
    pub fn reload_certificate(&self) -> Result<(), TlsError> {
        self.core.tls.as_ref().map_or(Ok(()), Tls::reload)
    }

    /// Cancelled when the server begins to stop; cancelling it makes the server begin.
    #[must_use]
    pub fn shutdown_trigger(&self) -> CancellationToken {
        self.core.draining.clone()
    }

    /// Waits until the server was told to stop and has stopped.
    pub async fn wait(self) {
        self.core.draining.cancelled().await;
        self.shutdown().await;
    }

    /// Closes the doors, tells the clients, lets running transfers finish within
    /// [`crate::config::Limits::grace_period`], then cuts what is left.
    pub async fn shutdown(self) {
        let core = &self.core;
        core.ready.store(false, Ordering::Relaxed);
        core.draining.cancel();
        core.relays.close();
        info!(running = core.relays.len(), "server stopping");
        if timeout(core.config.limits.grace_period, core.relays.wait()).await.is_err() {
            warn!(cut = core.relays.len(), "transfers did not finish within the grace period");
        }
        core.stopping.cancel();
        core.tasks.close();
        if timeout(STOP_WITHIN, async { tokio::join!(core.relays.wait(), core.tasks.wait()) }).await.is_err() {
            warn!(tasks = core.tasks.len(), relays = core.relays.len(), "tasks did not end in time");
        }
        info!("server stopped");
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.core.draining.cancel();
        self.core.stopping.cancel();
    }
}

/// Accepts connections and owns their handlers.
async fn accept_all<H, F>(core: Arc<Core>, listener: TcpListener, serve: H)
where
    H: Fn(Arc<Core>, Socket, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    loop {
        // Both arms are cancel-safe.
        let (socket, peer) = tokio::select! {
            accepted = accept::next(&listener) => accepted,
            () = core.draining.cancelled() => return,
        };
        let this = Arc::clone(&core);
        if let Ok(permit) = Arc::clone(&core.visitors).try_acquire_owned() {
            let serving = serve(this, socket, peer).map(move |()| drop(permit));
            core.relays.spawn(guarded("visitor", peer, serving));
        } else if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
            core.relays.spawn(guarded("turned away", peer, async move {
                connection::turn_away(&this, socket, peer).await;
                drop(permit);
            }));
        }
        // Beyond both bounds a connection is closed without a word.
    }
}

/// Frees leases and limits whose time is over.
async fn keep_up(core: Arc<Core>) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                core.registry.sweep();
                core.rates.sweep();
                core.lanes.sweep();
            }
            () = core.stopping.cancelled() => return,
        }
    }
}

/// Keeps the stored leases equal to the live ones, so that a restarted server knows whose address is whose.
async fn save_leases(core: Arc<Core>, store: Store) {
    loop {
        let changes = tokio::select! {
            changes = core.registry.unsaved() => changes,
            () = core.stopping.cancelled() => return,
        };
        for (key, owner) in changes {
            let stored = stored_key(&key);
            let result = match owner {
                Some(account) => store.save_lease(&stored, account).await,
                None => store.remove_lease(&stored).await,
            };
            if let Err(cause) = result {
                error!(%key, %cause, "lease not saved");
                core.registry.not_saved(key);
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
    }
}

fn key_of(stored: LeaseKey) -> Key {
    match stored {
        LeaseKey::Name(name) => Key::Name(name),
        LeaseKey::Host(hostname) => Key::Host(hostname),
        LeaseKey::Port(port) => Key::Port(port),
    }
}

fn stored_key(key: &Key) -> LeaseKey {
    match key {
        Key::Name(name) => LeaseKey::Name(name.clone()),
        Key::Host(hostname) => LeaseKey::Host(hostname.clone()),
        Key::Port(port) => LeaseKey::Port(*port),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// Echoes bytes, and panics at a `!`.
    async fn echo(_: Arc<Core>, mut socket: Socket, _: SocketAddr) {
        let mut byte = [0];
        while socket.read_exact(&mut byte).await.is_ok() {
            assert!(byte != *b"!", "asked to");
            let _ = socket.write_all(&byte).await;
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test]
    async fn row_59_a_panic_in_one_handler_ends_that_connection_only() {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let data = tempfile::tempdir().expect("a directory");
        let mut config = ServerConfig::new(data.path().into());
        config.listen.set_port(0);
        let server = Server::start(config).await.expect("a server");
        let core = &server.core;
        let listener = accept::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 16).expect("a listener");
        let address = listener.local_addr().expect("an address");
        core.tasks.spawn(accept_all(Arc::clone(core), listener, echo));

        let places = core.visitors.available_permits();
        let mut before = TcpStream::connect(address).await.expect("a connection");
        let mut panicking = TcpStream::connect(address).await.expect("a connection");
        panicking.write_all(b"!").await.expect("sent");
        assert_eq!(panicking.read(&mut [0]).await.unwrap_or(0), 0, "the connection has ended");
        let mut after = TcpStream::connect(address).await.expect("a connection");
        for socket in [&mut before, &mut after] {
            let mut byte = [0];
            socket.write_all(b"a").await.expect("sent");
            socket.read_exact(&mut byte).await.expect("an echo");
        }
        assert_eq!(core.visitors.available_permits(), places - 2, "the place is free again");
        let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
        let line = text.lines().find(|line| line.contains("handler_panicked")).expect(&text);
        assert!(line.contains("ERROR") && line.contains("asked to") && line.contains("peer=127.0.0.1:"), "{line}");
        // And the server itself still answers.
        let mut visitor = TcpStream::connect(server.address()).await.expect("a connection");
        visitor.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        visitor.read_to_end(&mut answer).await.expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
}
