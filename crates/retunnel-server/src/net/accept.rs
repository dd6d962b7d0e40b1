//! Listens and accepts: never spins and never ends because of a single failure.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::sleep,
};
use tracing::warn;

use super::socket::Socket;

/// Pause after a failed accept. Out of file descriptors the pending connection stays in the queue, so a loop without a
/// pause would spin. It continues within a tenth of a second after some are free.
const PAUSE: Duration = Duration::from_millis(100);

/// A peer that vanished is noticed after two minutes at the latest, also on a connection that carries no bytes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Listens. `backlog` connections may wait to be accepted.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted server must get its port back while old connections are still in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it. Best effort.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
    socket.bind(address)?;
    socket.listen(backlog)
}

/// The next connection, however often accepting fails.
pub(crate) async fn next(listener: &TcpListener) -> (Socket, SocketAddr) {
    let mut is_reported = false;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                // Small answers must not wait for the peer's delayed acknowledgement.
                let _ = socket.set_nodelay(true);
                return (Socket::Plain(socket), peer);
            }
            // The peer gave up between connecting and being accepted.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                if !is_reported {
                    warn!(%error, "cannot accept connections; retrying");
                    is_reported = true;
                }
                sleep(PAUSE).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
