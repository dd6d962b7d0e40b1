//! Starts a server, supervises it, stops it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    auth::Auth,
    config::ServerConfig,
    control::{self, Control},
    edge::{
        Edge,
        tcp::{self, PublicPorts},
    },
    hostnames::Hostnames,
    limits::{Place, Places, RateLimits},
    net::{
        accept,
        socket::Socket,
        tls::{Tls, TlsError},
    },
    registry::{Quota, Registry, SingleNode},
    rest::{Rest, RestState},
    running::{Running, guarded},
    store::{InUse, LeaseKey, Store, StoreError},
    tunnel::address::PublicAddress,
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// How long tasks may take to end once they were cancelled.
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
        let config = Arc::new(config);
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let failed = |source| StartError::Data { path: config.data_dir.clone(), source };
        let in_use = InUse::take(&config.data_dir).map_err(failed)?;
        let store = Store::open(&config.data_dir).await.map_err(failed)?;
        let leases = store.leases().await.map_err(failed)?;
        let unbound = |source| StartError::Listen { address: config.listen, source };
        let listener = accept::listen(config.listen, BACKLOG).map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;

        let limits = &config.limits;
        let running = Arc::new(Running::new());
        let (ports, opened_ports) = PublicPorts::new(config.tcp_bind());
        let quota = Quota {
            sessions: limits.max_sessions_per_account,
            tunnels: limits.max_tunnels_per_account,
            ports: limits.max_ports_per_account,
            ports_per_address: limits.max_ports_per_address,
            sessions_per_address: limits.max_sessions_per_address,
        };
        let registry = Registry::new(limits.hold_lease, quota, Box::new(SingleNode), Box::new(ports));
        registry.restore(leases.into_iter().map(|lease| (address_of(lease.key), lease.account)));
        let registry = Arc::new(registry);
        let auth = Auth::new(store.clone());
        let rates = Arc::new(RateLimits::new(limits));
        let gate = Places::brief(limits.max_unauthenticated, limits.max_unauthenticated_per_address);
        let hostnames = Arc::new(Hostnames::new(store.clone(), &config));
        let edge =
            Edge::new(Arc::clone(&config), Arc::clone(&registry), Arc::clone(&running), tls.clone(), gate.clone());
        let control = Control::new(control::Parts {
            config: Arc::clone(&config),
            address,
            registry: Arc::clone(&registry),
            running: Arc::clone(&running),
            auth: auth.clone(),
            hostnames: Arc::clone(&hostnames),
            rates: Arc::clone(&rates),
            gate,
        });
        let rest = Rest::new(RestState {
            auth,
            hostnames,
            registry: Arc::clone(&registry),
            rates: Arc::clone(&rates),
            config: Arc::clone(&config),
            address,
            running: Arc::clone(&running),
            readiness: Arc::default(),
        });
        let parts = Arc::new(Parts { edge: Arc::new(edge), control: Arc::new(control), rest });
        let tasks = &running.tasks;
        tasks.spawn(accept_all(Arc::clone(&running), Arc::clone(&parts), listener, serve));
        tasks.spawn(tcp::serve(Arc::clone(&parts.edge), opened_ports));
        tasks.spawn(keep_up(Arc::clone(&running), Arc::clone(&registry), rates, Arc::clone(&parts.control)));
        tasks.spawn(save_leases(Arc::clone(&running), registry, store));
        info!(%address, data = %config.data_dir.display(), "server started");
        #[cfg(test)]
        let handle = ServerHandle { config, address, tls, running, parts, _in_use: in_use };
        #[cfg(not(test))]
        let handle = ServerHandle { config, address, tls, running, _in_use: in_use };
        Ok(handle)
    }
}

/// The parts that serve connections.
#[derive(Debug)]
struct Parts {
    edge: Arc<Edge>,
    control: Arc<Control>,
    rest: Rest,
}

/// Serves one connection: a visitor's, a client's, or one of the REST API.
async fn serve(parts: Arc<Parts>, socket: Socket, peer: SocketAddr, place: Place) {
    let Some(request) = parts.edge.serve(socket, peer, &place).await else { return };
    // In a box, so that an idle visitor does not pay for its size.
    Box::pin(async {
        if let Some(request) = parts.control.serve(request).await {
            parts.rest.serve(request).await;
        }
    })
    .await;
}

/// A running server. Dropping it stops everything at once.
#[derive(Debug)]
pub struct ServerHandle {
    config: Arc<ServerConfig>,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    running: Arc<Running>,
    #[cfg(test)]
    parts: Arc<Parts>,
    _in_use: InUse,
}

impl ServerHandle {
    /// Where the server listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the server's data is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// Reads the certificate's files again, for new connections.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate does not change then.
    pub fn reload_certificate(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Cancelled when the server begins to stop. Cancelling it makes the server begin.
    #[must_use]
    pub fn shutdown_trigger(&self) -> CancellationToken {
        self.running.draining.clone()
    }

    /// Waits until the server is asked to stop and has stopped.
    pub async fn wait(self) {
        self.running.draining.cancelled().await;
        self.shutdown().await;
    }

    /// Closes the doors, notifies the clients, lets running transfers finish within
    /// [`crate::config::Limits::grace_period`], then cuts what is left.
    pub async fn shutdown(self) {
        let running = &self.running;
        running.drain();
        running.relays.close();
        info!(running = running.relays.len(), "server stopping");
        if timeout(self.config.limits.grace_period, running.relays.wait()).await.is_err() {
            warn!(cut = running.relays.len(), "transfers did not finish within the grace period");
        }
        running.stopping.cancel();
        running.tasks.close();
        if timeout(STOP_WITHIN, async { tokio::join!(running.relays.wait(), running.tasks.wait()) }).await.is_err() {
            warn!(tasks = running.tasks.len(), relays = running.relays.len(), "tasks did not end in time");
        }
        info!("server stopped");
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.running.draining.cancel();
        self.running.stopping.cancel();
    }
}

/// Accepts connections and owns their handlers.
async fn accept_all<H, F>(running: Arc<Running>, parts: Arc<Parts>, listener: TcpListener, serve: H)
where
    H: Fn(Arc<Parts>, Socket, SocketAddr, Place) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // Both arms are cancel-safe.
        let (socket, peer) = tokio::select! {
            accepted = accept::next(&listener) => accepted,
            () = running.draining.cancelled() => return,
        };
        // Without a place it is closed without an answer.
        if let Some(place) = parts.edge.place(peer) {
            running.relays.spawn(guarded("visitor", peer, serve(Arc::clone(&parts), socket, peer, place)));
        }
    }
}

/// Frees leases and limits that are overdue.
async fn keep_up(running: Arc<Running>, registry: Arc<Registry>, rates: Arc<RateLimits>, control: Arc<Control>) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                registry.sweep();
                rates.sweep();
                control.sweep();
            }
            () = running.stopping.cancelled() => return,
        }
    }
}

/// Keeps the stored leases equal to the live ones, so that a restarted server knows the owner of each address.
async fn save_leases(running: Arc<Running>, registry: Arc<Registry>, store: Store) {
    loop {
        let changes = tokio::select! {
            changes = registry.unsaved() => changes,
            () = running.stopping.cancelled() => return,
        };
        for (address, owner) in changes {
            let stored = stored_key(&address);
            let result = match owner {
                Some(account) => store.save_lease(&stored, account).await,
                None => store.remove_lease(&stored).await,
            };
            if let Err(cause) = result {
                error!(%address, %cause, "lease not saved");
                registry.not_saved(address);
                sleep(STORE_PAUSE).await;
            }
        }
    }
}

fn address_of(stored: LeaseKey) -> PublicAddress {
    match stored {
        LeaseKey::Name(name) => PublicAddress::Name(name),
        LeaseKey::Host(hostname) => PublicAddress::Host(hostname),
        LeaseKey::Port(port) => PublicAddress::Port(port),
    }
}

fn stored_key(address: &PublicAddress) -> LeaseKey {
    match address {
        PublicAddress::Name(name) => LeaseKey::Name(name.clone()),
        PublicAddress::Host(hostname) => LeaseKey::Host(hostname.clone()),
        PublicAddress::Port(port) => LeaseKey::Port(*port),
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
    async fn echo(_: Arc<Parts>, mut socket: Socket, _: SocketAddr, _place: Place) {
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
        let ServerHandle { running, parts, .. } = &server;
        let listener = accept::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 16).expect("a listener");
        let address = listener.local_addr().expect("an address");
        running.tasks.spawn(accept_all(Arc::clone(running), Arc::clone(parts), listener, echo));

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
        assert_eq!(parts.edge.places.count(), 2, "the place is free again");
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
