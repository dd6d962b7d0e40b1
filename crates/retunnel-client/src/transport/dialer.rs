//! Connections to one server: proxy, name, socket, TLS.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{
    path::PathState,
    proxy::{Proxies, Proxy, Refused},
    socket::Socket,
    tls,
};
use crate::{endpoint::ServerEndpoint, error::ConnectError, trust::Trust};

/// How long one address may take to accept.
const DIAL_WITHIN: Duration = Duration::from_secs(8);
/// How long the server may take for the upgrade.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a farewell may take.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_millis(500);
/// Bytes of a link that may wait in its socket; the rest waits where streams take turns.
const NOTSENT_LOWAT: u32 = 32 * 1024;

/// Connects to one server.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) endpoint: ServerEndpoint,
    pub(crate) trust: Trust,
    /// What stands between here and the server.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) path: Arc<Mutex<PathState>>,
}

impl Dialer {
    pub(crate) fn new(endpoint: ServerEndpoint, trust: Trust, proxies: &Proxies) -> Self {
        let proxy = proxies.choose(endpoint.host(), endpoint.port(), endpoint.is_tls()).cloned();
        let path = Arc::new(Mutex::new(PathState::new(endpoint.is_tls())));
        Self { endpoint, trust, proxy, path }
    }

    /// Without a proxy.
    pub(crate) fn direct(endpoint: ServerEndpoint, trust: Trust) -> Self {
        Self { endpoint, trust, proxy: None, path: Arc::default() }
    }

    /// A connection, encrypted when the endpoint says so.
    pub(crate) async fn connect(&self) -> Result<Socket, ConnectError> {
        let socket = self.dial().await?;
        self.secure(socket).await
    }

    /// Does TLS with the server when the endpoint says so.
    pub(crate) async fn secure(&self, socket: Socket) -> Result<Socket, ConnectError> {
        if !self.endpoint.is_tls() {
            return Ok(socket);
        }
        let failed = |source| ConnectError::tls(&self.endpoint, source);
        match timeout(ANSWER_WITHIN, tls::handshake(&self.trust, self.endpoint.host(), socket)).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(source)) if tls::speaks_no_tls(&source) => {
                let address = self.endpoint.authority();
                Err(failed(io::Error::other(format!("it does not speak TLS; without TLS it is http://{address}"))))
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
        let Some(proxy) = &self.proxy else {
            let addresses = self.addresses().await?;
            let socket =
                dial_any(&addresses).await.map_err(|source| ConnectError::unreachable(&self.endpoint, source))?;
            return Ok(Socket::Plain(for_a_link(socket)));
        };
        let failed = |reason: String, is_final| ConnectError::Proxy {
            proxy: proxy.to_string(),
            endpoint: self.endpoint.clone(),
            reason,
            is_final,
        };
        let (host, port) = proxy.address();
        let found = timeout(DIAL_WITHIN, lookup_host((host, port))).await.map_err(|_| self.too_slow(DIAL_WITHIN))?;
        let addresses: Vec<SocketAddr> =
            found.map_err(|error| failed(format!("has no address: {error}"), false))?.collect();
        let socket =
            dial_any(&addresses).await.map_err(|error| failed(format!("cannot be reached: {error}"), false))?;
        let server = if proxy.wants_address() && self.endpoint.host().parse::<IpAddr>().is_err() {
            self.addresses()
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

    /// The server's addresses, in the order to try.
    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        timeout(DIAL_WITHIN, lookup_host((self.endpoint.host(), self.endpoint.port())))
            .await
            .map_err(|_| self.too_slow(DIAL_WITHIN))?
            .map(Iterator::collect)
            .map_err(|source| ConnectError::resolve(&self.endpoint, source))
    }

    pub(crate) fn too_slow(&self, timeout: Duration) -> ConnectError {
        ConnectError::Timeout { endpoint: self.endpoint.clone(), timeout }
    }
}

/// Sets what long connections to the server wish for; a system that lacks some of it works without.
pub(crate) fn for_a_link(socket: TcpStream) -> TcpStream {
    let wish = SockRef::from(&socket);
    let _ = wish.set_tcp_nodelay(true);
    let _ = wish.set_tcp_notsent_lowat(NOTSENT_LOWAT);
    let _ = wish.set_tcp_congestion(b"bbr");
    socket
}

/// Why there is no TLS with a proxy.
fn untrusted(error: &io::Error) -> Refused {
    if tls::speaks_no_tls(error) {
        return Refused::new("does not speak TLS; without TLS it is written as http://", true);
    }
    Refused::new(format!("is not trusted: {error}"), error.kind() == io::ErrorKind::InvalidData)
}

/// A connection to the first address that takes one.
pub(crate) async fn dial_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(DIAL_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
