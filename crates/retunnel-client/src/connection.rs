//! Connections to local services: dialing, TLS, counting, the tap, and descriptions of failures. Everything that
//! connects to a local service uses this module.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use retunnel_link::{Direction, MaybeTcp, TlsSocket};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::{
    error::RelayError,
    stats::Stats,
    tap::{Tap, TappedSocket},
    target::{Address, LocalTarget},
    transport::{Socket, race},
};

/// How long the local service may take to accept.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// A connection to the local service.
///
/// # Errors
/// [`RelayError::LocalUnreachable`], [`RelayError::OutOfDescriptors`].
pub(crate) async fn reach(target: &LocalTarget) -> Result<Socket, RelayError> {
    let dialed = timeout(DIAL_WITHIN, connect(target)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let target = || target.to_string();
    dialed.map_err(|error| match race::is_out_of_descriptors(&error) {
        true => RelayError::OutOfDescriptors { target: target() },
        false => RelayError::LocalUnreachable { target: target(), reason: reason_of(&error) },
    })
}

pub(crate) fn reason_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut => "no answer in time".into(),
        io::ErrorKind::NotFound => "not found".into(),
        _ => error.to_string(),
    }
}

/// Describes a failed handshake. The TLS library's own texts name the alert only.
fn insecure(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            io::Error::other(format!("its certificate is not trusted ({reason})"))
        }
        Some(rustls::Error::InvalidMessage(_)) => io::Error::other("it does not speak TLS"),
        _ => error,
    }
}

async fn connect(target: &LocalTarget) -> io::Result<Socket> {
    match &target.address {
        #[cfg(unix)]
        Address::Unix(path) => tokio::net::UnixStream::connect(path).await.map(Socket::Unix),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        Address::Listener(connector) => connector.connect().await.map(|stream| Socket::Other(Box::new(stream))),
        Address::Tcp { host, port, remembered } => {
            let known = *remembered.lock().expect("no code panics while it holds the address");
            let socket = match dial_known(known).await {
                Some(socket) => socket,
                None => {
                    let socket = dial(host, *port).await?;
                    *remembered.lock().expect("no code panics while it holds the address") = socket.peer_addr().ok();
                    socket
                }
            };
            let _ = socket.set_nodelay(true);
            if !target.tls {
                return Ok(Socket::Plain(socket));
            }
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let config = target.trust.clone().unwrap_or_default().config()?;
            let stream = TlsSocket::connect(config, name, socket).await.map_err(insecure)?;
            Ok(Socket::Tls(Box::new(stream)))
        }
    }
}

async fn dial_known(known: Option<SocketAddr>) -> Option<TcpStream> {
    TcpStream::connect(known?).await.ok()
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = if host == "localhost" {
        LocalTarget::loopbacks(port).to_vec()
    } else {
        lookup_host((host, port)).await?.collect()
    };
    race::connect(&addresses, DIAL_WITHIN).await
}

/// A connection to a local service. Its bytes are counted and shown to a tap, also those that the kernel moves.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TappedSocket,
    stats: Arc<Stats>,
    is_unfinished: bool,
}

impl Connection {
    /// Connects to a local service.
    ///
    /// # Errors
    /// [`RelayError::LocalUnreachable`], [`RelayError::OutOfDescriptors`].
    pub(crate) async fn open(
        target: &LocalTarget,
        stats: Arc<Stats>,
        tap: Option<Box<Tap>>,
    ) -> Result<Self, RelayError> {
        let socket = reach(target).await?;
        stats.opened();
        Ok(Self { socket: TappedSocket::new(socket, tap), stats, is_unfinished: false })
    }

    /// Makes the end of the connection a reset.
    pub(crate) fn abort(&self) {
        self.socket.abort();
    }

    /// A transfer begins that no one may take for a complete one before [`Self::transfer_ends`]: until then the end of the
    /// connection is a reset.
    pub(crate) const fn transfer_begins(&mut self) {
        self.is_unfinished = true;
    }

    /// The transfer is complete.
    pub(crate) const fn transfer_ends(&mut self) {
        self.is_unfinished = false;
    }

    /// Waits until what was written is sent, within a limit of time. A reset would destroy the rest.
    pub(crate) fn last_bytes_sent(&self) -> impl Future<Output = ()> + use<> {
        self.socket.last_bytes_sent()
    }

    /// Acknowledges what has arrived at once.
    pub(crate) fn acknowledge(&self) {
        self.socket.acknowledge();
    }
}

impl MaybeTcp for Connection {
    fn tcp(&self) -> Option<&TcpStream> {
        self.socket.tcp()
    }

    fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        self.socket.tcp_mut()
    }

    fn unseen(&self, direction: Direction) -> u64 {
        self.socket.unseen(direction)
    }

    fn skip(&mut self, direction: Direction, count: u64) {
        match direction {
            Direction::Read => self.stats.add_bytes(0, count),
            Direction::Write => self.stats.add_bytes(count, 0),
        }
        self.socket.skip(direction, count);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_unfinished {
            self.abort();
        }
        self.stats.closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.stats.add_bytes(0, (buf.filled().len() - before) as u64);
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, buf))?;
        self.stats.add_bytes(written as u64, 0);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs))?;
        self.stats.add_bytes(written as u64, 0);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
