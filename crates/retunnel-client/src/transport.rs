//! The way to the server: proxy, name, socket, TLS, and the HTTP upgrade that turns the connection into a link.

pub(crate) mod proxy;
pub(crate) mod tls;
pub(crate) mod upgrade;
pub(crate) mod websocket;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use retunnel_link::{Lane, MaybeTcp, MessageSocket, TlsSocket};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use self::{
    proxy::{Proxies, Proxy, Refused},
    tls::Trust,
    upgrade::Way,
};
use crate::error::{ConnectError, ValidationError};

/// Port of a server when none is given.
const DEFAULT_PORT: u16 = 6400;
/// How long one address may take to accept.
const DIAL_WITHIN: Duration = Duration::from_secs(8);
/// How long the server may take for the upgrade.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a link that may wait in its socket; the rest waits where streams take turns.
const NOTSENT_LOWAT: u32 = 32 * 1024;

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerEndpoint {
    host: String,
    port: u16,
    tls: bool,
    is_default: bool,
}

impl Default for ServerEndpoint {
    fn default() -> Self {
        Self { host: "localhost".into(), port: DEFAULT_PORT, tls: false, is_default: true }
    }
}

impl ServerEndpoint {
    /// Nobody named a server: this is `localhost:6400`.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.is_default
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, for the Host header and for people.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tls {
            f.write_str("https://")?;
        }
        f.write_str(&self.authority())
    }
}

impl FromStr for ServerEndpoint {
    type Err = ValidationError;

    /// Reads `host`, `host:port`, and URLs with `http`, `https`, `ws` or `wss`. Without a scheme, port 443 and public
    /// names without a port are reached by TLS, everything else is not.
    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let error = |reason| ValidationError { what: "server", value: text.to_owned(), reason };
        let (scheme, rest) = match text.split_once("://") {
            Some(("http" | "ws", rest)) => (Some(false), rest),
            Some(("https" | "wss", rest)) => (Some(true), rest),
            Some(_) => return Err(error("expected http://, https://, ws:// or wss://")),
            None => (None, text),
        };
        // Published clients were given URLs with the path of the control socket.
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| error("expected [ADDRESS]:PORT"))?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || !host.chars().all(valid) {
            return Err(error("expected HOST or HOST:PORT"));
        }
        let port = match port {
            Some(port) => Some(
                port.parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| error("the port is not a number from 1 to 65535"))?,
            ),
            None => None,
        };
        let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok();
        let tls = scheme.unwrap_or(match port {
            Some(port) => port == 443,
            None => !is_local,
        });
        let port = port.unwrap_or(match (scheme, tls) {
            (_, true) => 443,
            (Some(false), false) => 80,
            (None, false) | (Some(true), _) => DEFAULT_PORT,
        });
        Ok(Self { host: host.to_ascii_lowercase(), port, tls, is_default: false })
    }
}

/// Connects to one server.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) endpoint: ServerEndpoint,
    pub(crate) trust: Trust,
    /// What stands between here and the server.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) way: Arc<Mutex<Way>>,
}

impl Dialer {
    pub(crate) fn new(endpoint: ServerEndpoint, trust: Trust, proxies: &Proxies) -> Self {
        let proxy = proxies.choose(&endpoint.host, endpoint.port, endpoint.tls).cloned();
        let way = Arc::new(Mutex::new(Way::new(endpoint.tls)));
        Self { endpoint, trust, proxy, way }
    }

    /// Without a proxy.
    pub(crate) fn direct(endpoint: ServerEndpoint, trust: Trust) -> Self {
        Self { endpoint, trust, proxy: None, way: Arc::default() }
    }

    /// A connection, encrypted when the endpoint says so.
    pub(crate) async fn connect(&self) -> Result<Socket, ConnectError> {
        let socket = self.dial().await?;
        self.secure(socket).await
    }

    /// Does TLS with the server when the endpoint says so.
    pub(crate) async fn secure(&self, socket: Socket) -> Result<Socket, ConnectError> {
        if !self.endpoint.tls {
            return Ok(socket);
        }
        let failed = |source| ConnectError::Tls { endpoint: self.endpoint.clone(), source };
        match timeout(ANSWER_WITHIN, self.trust.handshake(&self.endpoint.host, socket)).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(source)) if speaks_no_tls(&source) => {
                let address = self.endpoint.authority();
                Err(failed(io::Error::other(format!("it does not speak TLS; without TLS it is http://{address}"))))
            }
            Ok(Err(source)) if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Other) => {
                Err(failed(source))
            }
            Ok(Err(source)) => Err(ConnectError::Unreachable { endpoint: self.endpoint.clone(), source }),
            Err(_) => Err(self.too_slow(ANSWER_WITHIN)),
        }
    }

    /// A connection whose bytes reach the server.
    pub(crate) async fn dial(&self) -> Result<Socket, ConnectError> {
        let Some(proxy) = &self.proxy else {
            let addresses = self.addresses().await?;
            let socket = dial_any(&addresses)
                .await
                .map_err(|source| ConnectError::Unreachable { endpoint: self.endpoint.clone(), source })?;
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
        let server = if proxy.wants_address() && self.endpoint.host.parse::<IpAddr>().is_err() {
            self.addresses().await?.first().map_or_else(|| self.endpoint.host.clone(), |first| first.ip().to_string())
        } else {
            self.endpoint.host.clone()
        };
        let opened = timeout(ANSWER_WITHIN, async {
            let mut socket = Socket::Plain(for_a_link(socket));
            if proxy.is_tls() {
                socket = self.trust.handshake(host, socket).await.map_err(|error| untrusted(&error))?;
            }
            proxy.open(&mut socket, &server, self.endpoint.port).await?;
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
        timeout(DIAL_WITHIN, lookup_host((self.endpoint.host.as_str(), self.endpoint.port)))
            .await
            .map_err(|_| self.too_slow(DIAL_WITHIN))?
            .map(Iterator::collect)
            .map_err(|source| ConnectError::Resolve { endpoint: self.endpoint.clone(), source })
    }

    pub(crate) fn too_slow(&self, patience: Duration) -> ConnectError {
        ConnectError::Timeout { endpoint: self.endpoint.clone(), patience }
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
    if speaks_no_tls(error) {
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

/// A connection to the server or to a local service.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsSocket>),
    /// TLS with the server within TLS with a proxy.
    Nested(Box<TlsSocket<Self>>),
    /// Bytes that came with the answer to the upgrade are read first.
    Prefixed(Bytes, Box<Self>),
    /// A byte stream in messages.
    Messages(Box<MessageSocket<Self>>),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

impl MaybeTcp for Socket {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            _ => None,
        }
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            _ => None,
        }
    }
}

impl From<Socket> for Lane {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Plain(socket) => Self::tcp(socket),
            other => Self::other(other),
        }
    }
}

impl Socket {
    /// The TCP connection below, whatever stands above it.
    fn below(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => Some(stream.below()),
            Self::Nested(stream) => stream.below().below(),
            Self::Prefixed(_, inner) => inner.below(),
            Self::Messages(messages) => messages.get_ref().below(),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }

    /// Makes the end of the connection a reset instead of a clean end.
    pub(crate) fn abort(&self) {
        if let Some(socket) = self.below() {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Acknowledges at once what has arrived; systems that have no such option do it when they want to.
    pub(crate) fn acknowledge(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(socket) = self.below() {
            let _ = SockRef::from(socket).set_tcp_quickack(true);
        }
    }
}

macro_rules! each {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Plain($socket) => $call,
            Socket::Tls($socket) => $call,
            Socket::Nested($socket) => $call,
            Socket::Prefixed(_, $socket) => $call,
            Socket::Messages($socket) => $call,
            #[cfg(unix)]
            Socket::Unix($socket) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Self::Prefixed(prefix, _) = &mut *self
            && !prefix.is_empty()
        {
            let len = prefix.len().min(buf.remaining());
            buf.put_slice(&prefix[..len]);
            prefix.advance(len);
            return Poll::Ready(Ok(()));
        }
        each!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(socket) => socket.is_write_vectored(),
            Self::Nested(socket) => socket.is_write_vectored(),
            Self::Prefixed(_, socket) => socket.is_write_vectored(),
            Self::Messages(socket) => socket.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}

/// Whether what came back for a TLS handshake was no TLS at all.
pub(crate) fn speaks_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_all_their_forms() {
        for (text, shown) in [
            ("localhost:6400", "localhost:6400"),
            ("localhost", "localhost:6400"),
            ("127.0.0.1", "127.0.0.1:6400"),
            ("[::1]:7000", "[::1]:7000"),
            ("tunnel.example.com", "https://tunnel.example.com:443"),
            ("tunnel.example.com:8080", "tunnel.example.com:8080"),
            ("tunnel.example.com:443", "https://tunnel.example.com:443"),
            ("http://a.test", "a.test:80"),
            ("wss://a.test/api/v1/ws/tunnel", "https://a.test:443"),
            ("ws://A.test:1", "a.test:1"),
        ] {
            assert_eq!(text.parse::<ServerEndpoint>().expect(text).to_string(), shown, "{text}");
        }
        for text in ["", ":80", "a b", "ftp://a", "a:0", "a:99999", "[::1", "a:b"] {
            assert!(text.parse::<ServerEndpoint>().is_err(), "{text}");
        }
        assert!(ServerEndpoint::default().is_default());
    }
}
