//! Networks between a client and its server: an HTTP CONNECT proxy, with or without TLS, a SOCKS5 proxy, and a TLS
//! front.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustls::{HandshakeKind, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;

/// The proxy's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTP CONNECT.
    Http,
    /// SOCKS5 (RFC 1928, RFC 1929).
    Socks5,
}

/// A connection of any kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A proxy that knows one server and every name for it.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Gateway {
    /// Starts a proxy that requires `login` (`user:password`) and connects to `target`, whatever name is requested.
    pub async fn start(kind: Kind, login: Option<&str>, target: SocketAddr) -> Self {
        Self::start_behind(None, kind, login, target).await
    }

    /// The same with HTTP CONNECT inside TLS.
    pub async fn start_tls(config: ServerConfig, login: Option<&str>, target: SocketAddr) -> Self {
        Self::start_behind(Some(TlsAcceptor::from(Arc::new(config))), Kind::Http, login, target).await
    }

    async fn start_behind(tls: Option<TlsAcceptor>, kind: Kind, login: Option<&str>, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, login) = (Arc::clone(&asked), login.map(str::to_owned));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, log, login) = (tls.clone(), Arc::clone(&log), login.clone());
                connections.spawn(async move {
                    let mut socket: Box<dyn Stream> = match tls {
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => Box::new(socket),
                            Err(_) => return,
                        },
                        None => Box::new(socket),
                    };
                    let opened = match kind {
                        Kind::Http => connect(&mut socket, login.as_deref()).await,
                        Kind::Socks5 => socks5(&mut socket, login.as_deref()).await,
                    };
                    let Some(name) = opened else { return };
                    log.lock().unwrap().push(name);
                    let mut server = TcpStream::connect(target).await.unwrap();
                    let granted: &[u8] = match kind {
                        Kind::Http => b"HTTP/1.1 200 Connection established\r\n\r\n",
                        Kind::Socks5 => &[5, 0, 0, 1, 127, 0, 0, 1, 0, 0],
                    };
                    socket.write_all(granted).await.unwrap();
                    let _ = copy_bidirectional(&mut socket, &mut server).await;
                });
            }
        });
        Self { address, asked, _task: task }
    }

    /// The requested servers, as `host:port`.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn connect(socket: &mut dyn Stream, login: Option<&str>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
        if !head[0].is_ascii_alphabetic() {
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok()?;
            return None;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let name = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let expected = login.map(|login| data_encoding::BASE64.encode(login.as_bytes()));
    if let Some(expected) = expected
        && !head.contains(&format!("Proxy-Authorization: Basic {expected}\r\n"))
    {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"corp\"\r\n\r\n";
        socket.write_all(refusal.as_bytes()).await.ok()?;
        return None;
    }
    Some(name)
}

async fn socks5(socket: &mut dyn Stream, login: Option<&str>) -> Option<String> {
    assert_eq!(socket.read_u8().await.ok()?, 5);
    let mut methods = vec![0; socket.read_u8().await.ok()?.into()];
    socket.read_exact(&mut methods).await.ok()?;
    match login {
        None => socket.write_all(&[5, 0]).await.ok()?,
        Some(_) if !methods.contains(&2) => {
            socket.write_all(&[5, 255]).await.ok()?;
            return None;
        }
        Some(login) => {
            socket.write_all(&[5, 2]).await.ok()?;
            assert_eq!(socket.read_u8().await.ok()?, 1);
            let (user, password) = (counted(socket).await?, counted(socket).await?);
            let is_right = format!("{user}:{password}") == login;
            socket.write_all(&[1, u8::from(!is_right)]).await.ok()?;
            if !is_right {
                return None;
            }
        }
    }
    let mut head = [0; 4];
    socket.read_exact(&mut head).await.ok()?;
    let host = match head[3] {
        3 => counted(socket).await?,
        1 => {
            let mut address = [0; 4];
            socket.read_exact(&mut address).await.ok()?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        other => panic!("address type {other}"),
    };
    Some(format!("{host}:{}", socket.read_u16().await.ok()?))
}

async fn counted(socket: &mut dyn Stream) -> Option<String> {
    let mut text = vec![0; socket.read_u8().await.ok()?.into()];
    socket.read_exact(&mut text).await.ok()?;
    Some(String::from_utf8(text).unwrap())
}

/// TLS in front of a server.
#[derive(Debug)]
pub struct TlsFront {
    /// Where it listens.
    pub address: SocketAddr,
    /// The authority's certificate as PEM.
    pub authority: String,
    handshakes: Arc<Mutex<Vec<HandshakeKind>>>,
    _task: JoinSet<()>,
}

impl TlsFront {
    /// Starts it with a certificate for these names.
    pub async fn start(names: &[&str], target: SocketAddr) -> Self {
        let authority = Authority::default();
        let config = authority.server(names);
        Self::start_with(&authority, config, target).await
    }

    /// Starts it with a certificate of this authority.
    pub async fn start_with(authority: &Authority, config: ServerConfig, target: SocketAddr) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes: Arc<Mutex<Vec<HandshakeKind>>> = Arc::default();
        let log = Arc::clone(&handshakes);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, log) = (acceptor.clone(), Arc::clone(&log));
                connections.spawn(async move {
                    let Ok(mut socket) = acceptor.accept(socket).await else { return };
                    log.lock().unwrap().extend(socket.get_ref().1.handshake_kind());
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    let _ = copy_bidirectional(&mut socket, &mut server).await;
                });
            }
        });
        Self { address, authority: authority.pem().to_owned(), handshakes, _task: task }
    }

    /// The handshakes so far, in order.
    #[must_use]
    pub fn handshakes(&self) -> Vec<HandshakeKind> {
        self.handshakes.lock().unwrap().clone()
    }
}
