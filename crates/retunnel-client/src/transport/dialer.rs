//! Connections to one server: proxy, name, socket, TLS.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use retunnel_link::{limit_unsent, use_bbr};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    path::PathState,
    proxy::{Proxies, Proxy, Refused},
    race,
    resolver::{Resolver, System},
    socket::Socket,
    tls,
};
use crate::{endpoint::ServerEndpoint, error::ConnectError, trust::Trust};

/// How long finding the addresses of a name and connecting to one of them may take together.
const DIAL_WITHIN: Duration = Duration::from_secs(8);
/// How long the server may take for the upgrade.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a closing handshake may take.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_millis(500);
/// Bytes of a link that may wait in its socket. The rest waits in the link, where streams take turns.
const NOTSENT_LOWAT: u32 = 32 * 1024;

/// Connects to one server.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) endpoint: ServerEndpoint,
    pub(crate) trust: Trust,
    /// The proxy on the path to the server.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) path: Arc<Mutex<PathState>>,
    resolver: Arc<dyn Resolver>,
}

impl Dialer {
    pub(crate) fn new(endpoint: ServerEndpoint, trust: Trust, proxies: &Proxies) -> Self {
        let proxy = proxies.choose(endpoint.host(), endpoint.port(), endpoint.is_tls()).cloned();
        let path = Arc::default();
        Self { endpoint, trust, proxy, path, resolver: Arc::new(System) }
    }

    /// Without a proxy.
    pub(crate) fn direct(endpoint: ServerEndpoint, trust: Trust) -> Self {
        Self { endpoint, trust, proxy: None, path: Arc::default(), resolver: Arc::new(System) }
    }

    /// The same with other trust in certificates.
    pub(crate) fn with_trust(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// A connection, encrypted if the endpoint requires TLS.
    pub(crate) async fn connect(&self) -> Result<Socket, ConnectError> {
        let socket = self.dial().await?;
        self.secure(socket).await
    }

    /// Does the TLS handshake with the server if the endpoint requires it.
    pub(crate) async fn secure(&self, socket: Socket) -> Result<Socket, ConnectError> {
        if !self.endpoint.is_tls() {
            return Ok(socket);
        }
        let failed = |source| ConnectError::tls(&self.endpoint, source);
        match timeout(ANSWER_WITHIN, tls::handshake(&self.trust, self.endpoint.host(), socket)).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(source)) if tls::speaks_no_tls(&source) => {
                let address = self.endpoint.authority();
                Err(failed(io::Error::other(format!("it does not speak TLS; use http://{address}"))))
            }
            Ok(Err(source)) if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Other) => {
                Err(failed(source))
            }
            Ok(Err(source)) => Err(ConnectError::unreachable(&self.endpoint, source)),
            Err(_) => Err(self.too_slow(ANSWER_WITHIN)),
        }
    }

    /// A connection whose bytes reach the server.
    pub(crate) async fn dial(&self) -> Result<Socket, ConnectError> {
        let deadline = Instant::now() + DIAL_WITHIN;
        let left = || deadline.saturating_duration_since(Instant::now());
        let Some(proxy) = &self.proxy else {
            let addresses = self.addresses(deadline).await?;
            let connected = race::connect(&addresses, left()).await;
            let socket = connected.map_err(|source| ConnectError::unreachable(&self.endpoint, source))?;
            return Ok(Socket::Plain(for_a_link(socket)));
        };
        let failed = |reason: String, is_final| ConnectError::Proxy {
            proxy: proxy.to_string(),
            endpoint: self.endpoint.clone(),
            reason,
            is_final,
        };
        let (host, port) = proxy.address();
        let found = timeout_at(deadline, self.resolver.addresses(host, port)).await;
        let found = found.map_err(|_| self.too_slow(DIAL_WITHIN))?;
        let addresses = found.map_err(|error| failed(format!("has no address: {error}"), false))?;
        let connected = race::connect(&addresses, left()).await;
        let socket = connected.map_err(|error| failed(format!("cannot be reached: {error}"), false))?;
        let server = if proxy.wants_address() && self.endpoint.host().parse::<IpAddr>().is_err() {
            self.addresses(Instant::now() + DIAL_WITHIN)
                .await?
                .first()
                .map_or_else(|| self.endpoint.host().to_owned(), |first| first.ip().to_string())
        } else {
            self.endpoint.host().to_owned()
        };
        let opened = timeout(ANSWER_WITHIN, async {
            let mut socket = Socket::Plain(for_a_link(socket));
            if proxy.is_tls() {
                socket = tls::handshake(&self.trust, host, socket).await.map_err(|error| untrusted(&error))?;
            }
            proxy.open(&mut socket, &server, self.endpoint.port()).await?;
            Ok::<_, Refused>(socket)
        });
        match opened.await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(refused)) => Err(failed(refused.reason, refused.is_final)),
            Err(_) => Err(failed(format!("did not answer within {} s", ANSWER_WITHIN.as_secs()), false)),
        }
    }

    /// The server's addresses.
    async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
        timeout_at(deadline, self.resolver.addresses(self.endpoint.host(), self.endpoint.port()))
            .await
            .map_err(|_| self.too_slow(DIAL_WITHIN))?
            .map_err(|source| ConnectError::resolve(&self.endpoint, source))
    }

    /// The addresses of a host.
    pub(crate) async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.resolver.addresses(host, port).await
    }

    pub(crate) fn too_slow(&self, timeout: Duration) -> ConnectError {
        ConnectError::Timeout { endpoint: self.endpoint.clone(), timeout }
    }
}

/// Sets socket options for long connections to the server. All are best effort: not every system has them.
pub(crate) fn for_a_link(socket: TcpStream) -> TcpStream {
    let _ = socket.set_nodelay(true);
    limit_unsent(&socket, NOTSENT_LOWAT);
    use_bbr(&socket);
    socket
}

/// Why the TLS handshake with a proxy failed.
fn untrusted(error: &io::Error) -> Refused {
    if tls::speaks_no_tls(error) {
        return Refused::new("does not speak TLS; use http:// for a proxy without TLS", true);
    }
    Refused::new(format!("is not trusted: {error}"), error.kind() == io::ErrorKind::InvalidData)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::{FutureExt, future::BoxFuture};
    use socket2::{Domain, Socket as RawSocket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// Knows one name.
    #[derive(Debug)]
    struct Fixed(Vec<SocketAddr>);

    impl Resolver for Fixed {
        fn addresses<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
            async { Ok(self.0.clone()) }.boxed()
        }
    }

    /// An address that never answers: its queue of connections is full, so Linux drops what asks for another one.
    fn dead() -> (SocketAddr, Vec<RawSocket>) {
        let new = || RawSocket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = new();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut held = vec![listener];
        for _ in 0..4 {
            let socket = new();
            socket.set_nonblocking(true).expect("set");
            let _ = socket.connect(&address.into());
            held.push(socket);
        }
        (address, held)
    }

    fn dialer(addresses: Vec<SocketAddr>) -> Dialer {
        let endpoint = "http://several.test:80".parse().expect("an address");
        Dialer { resolver: Arc::new(Fixed(addresses)), ..Dialer::direct(endpoint, Trust::default()) }
    }

    #[tokio::test]
    async fn a_dead_first_address_costs_a_quarter_of_a_second() {
        let (dead, _held) = dead();
        let alive = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = alive.local_addr().expect("bound");
        let began = Instant::now();
        let socket = dialer(vec![dead, address]).dial().await.expect("connected");
        let took = began.elapsed();
        assert!((Duration::from_millis(240)..Duration::from_secs(2)).contains(&took), "{took:?}");
        let Socket::Plain(socket) = socket else { panic!("not TCP") };
        assert_eq!(socket.peer_addr().expect("connected"), address);
        // And where the first address answers, the others are not tried.
        let began = Instant::now();
        dialer(vec![address, dead]).dial().await.expect("connected");
        assert!(began.elapsed() < Duration::from_millis(240));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_do_not_answer_share_one_time_limit() {
        let (dead, _held) = dead();
        let began = Instant::now();
        let error = dialer(vec![dead; 5]).dial().await.expect_err("no answer");
        assert!(matches!(&error, ConnectError::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut));
        assert_eq!(began.elapsed().as_secs(), DIAL_WITHIN.as_secs());
    }
}
