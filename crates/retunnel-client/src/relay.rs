//! One visitor's bytes: from a stream of the link to the local service and back.

use std::{future::poll_fn, io, net::SocketAddr, task::Poll, time::Duration};

use retunnel_link::{LinkStream, Pump, poll_relay};
use retunnel_proto::native::ReasonCode;
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    error::RelayError,
    stats::Stats,
    tap::{Tap, TappedSocket},
    target::{Address, LocalTarget},
    transport::Socket,
};

/// How long the local service may take to accept.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// Serves one stream until both sides are done. `tap` sees what passes.
///
/// # Errors
/// [`RelayError::LocalUnreachable`] when the local service takes no connection; the visitor is told then.
pub(crate) async fn serve(
    stream: LinkStream,
    target: &LocalTarget,
    stats: &Stats,
    tap: Option<Box<Tap>>,
) -> Result<(), RelayError> {
    let local = match reach(target, stats).await {
        Ok(local) => local,
        Err(error) => {
            stream.reset(ReasonCode::LOCAL_UNREACHABLE, &error.to_string());
            return Err(error);
        }
    };
    let mut local = TappedSocket::new(local, tap);
    stats.opened();
    let _open = Open(stats);
    // `down` comes from the local service: seen from the link it is what goes up.
    let (mut to_link, mut to_local) = (Pump::default(), Pump::default());
    let mut counted = (0, 0);
    let result = poll_fn(|cx| {
        let polled = poll_relay(cx, &mut local, &stream, &mut to_link, &mut to_local);
        stats.add_bytes(to_local.moved() - counted.0, to_link.moved() - counted.1);
        counted = (to_local.moved(), to_link.moved());
        match polled {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if let Err(error) = result {
        // Neither side may take a cut transfer for a complete one.
        local.abort();
        stream.reset(ReasonCode::CANCELLED, &reason_of(&error));
        return Err(error.into());
    }
    Ok(())
}

struct Open<'a>(&'a Stats);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

/// A connection to the local service.
///
/// # Errors
/// [`RelayError::LocalUnreachable`].
pub(crate) async fn reach(target: &LocalTarget, stats: &Stats) -> Result<Socket, RelayError> {
    let dialed = timeout(DIAL_WITHIN, connect(target)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    dialed.map_err(|error| {
        stats.failed();
        RelayError::LocalUnreachable { target: target.to_string(), reason: reason_of(&error) }
    })
}

fn reason_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut => "no answer in time".into(),
        io::ErrorKind::NotFound => "not found".into(),
        _ => error.to_string(),
    }
}

/// A failed handshake in words; the library's own name the alert.
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
            let stream = TlsConnector::from(config).connect(name, socket).await.map_err(insecure)?;
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
    let mut first_error = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}
