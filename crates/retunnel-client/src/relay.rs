//! One visitor's bytes: from a stream of the link to the local service and back.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use retunnel_link::{LinkStream, Pump, TlsSocket, poll_relay};
use retunnel_proto::native::ReasonCode;
use rustls::pki_types::ServerName;
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, lookup_host},
    time::{Instant, timeout},
};

use crate::{
    error::RelayError,
    stats::Stats,
    tap::{Side, Tap, TappedSocket},
    target::{Address, LocalTarget},
    transport::Socket,
};

/// How long the local service may take to accept.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request that are shown when the local service takes no connection. They come right behind the stream's beginning.
const HEAD_SHOWN: usize = 16 * 1024;
const HEAD_WITHIN: Duration = Duration::from_millis(100);

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
            if let Some(mut tap) = tap {
                show_failed(&stream, &mut tap, &error.to_string()).await;
            }
            stream.reset(ReasonCode::LOCAL_UNREACHABLE, &error.to_string());
            return Err(error);
        }
    };
    let mut local = TappedSocket::new(local, tap);
    stats.opened();
    let _open = Open(stats);
    let mut stall = Stall::new(target);
    // `down` comes from the local service: seen from the link it is what goes up.
    let (mut to_link, mut to_local) = (Pump::default(), Pump::default());
    let mut counted = (0, 0);
    let result = poll_fn(|cx| {
        let polled = poll_relay(cx, &mut local, &stream, &mut to_link, &mut to_local);
        let new = (to_local.moved() - counted.0, to_link.moved() - counted.1);
        stats.add_bytes(new.0, new.1);
        counted = (to_local.moved(), to_link.moved());
        if stall.wants_acknowledgement(new.0 > 0, new.1 > 0, || stream.is_on_lane()) {
            local.acknowledge();
        }
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

/// Shows the tap the request that nobody takes.
async fn show_failed(mut stream: &LinkStream, tap: &mut Tap, reason: &str) {
    let mut head = vec![0; HEAD_SHOWN];
    if let Ok(Ok(len)) = timeout(HEAD_WITHIN, stream.read(&mut head)).await {
        tap.seen(Side::Request, &head[..len]);
        tap.failed(reason);
    }
}

/// Notices local services that wait for acknowledgements. Many write head and body of an answer in two small pieces; on a
/// kept connection the second waits until the first is acknowledged (Nagle), which systems put off for 40 ms. Once a
/// service was seen to pause so, what comes from it is acknowledged at once.
struct Stall<'a> {
    waits: &'a AtomicBool,
    /// When the last bytes came, unless others went to the service since.
    came: Option<Instant>,
}

/// What a delayed acknowledgement takes, with some play.
const DELAYED: RangeInclusive<Duration> = Duration::from_millis(30)..=Duration::from_millis(70);

impl<'a> Stall<'a> {
    fn new(target: &'a LocalTarget) -> Self {
        Self { waits: &target.waits_for_acknowledgements, came: None }
    }

    /// `is_bulk`: bytes are reported from time to time, which says nothing about the service.
    fn wants_acknowledgement(&mut self, sent: bool, came: bool, is_bulk: impl FnOnce() -> bool) -> bool {
        if sent {
            self.came = None;
        }
        if !came {
            return false;
        }
        if self.waits.load(Relaxed) {
            return true;
        }
        let now = Instant::now();
        let paused = self.came.replace(now).is_some_and(|before| DELAYED.contains(&now.duration_since(before)));
        let waited = paused && !is_bulk();
        if waited {
            self.waits.store(true, Relaxed);
        }
        waited
    }
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_service_that_waits_for_acknowledgements_is_noticed_once_and_for_all() {
        let target = LocalTarget::port(1);
        let mut stall = Stall::new(&target);
        for (milliseconds, sent, came, wants) in [
            (0, true, false, false),
            (1, false, true, false),
            (1, false, true, false),
            // The next request: a slow answer to it is no sign.
            (40, true, false, false),
            (40, false, true, false),
            (400, false, true, false),
            (41, false, true, true),
            (500, true, false, false),
            (1, false, true, true),
        ] {
            advance(Duration::from_millis(milliseconds)).await;
            assert_eq!(stall.wants_acknowledgement(sent, came, || false), wants, "{milliseconds} ms, {sent}, {came}");
        }
        assert!(Stall::new(&target).wants_acknowledgement(false, true, || false), "on its other connections as well");
    }
}
