//! TLS handshakes on existing connections.

use std::io;

use retunnel_link::TlsSocket;
use rustls::pki_types::ServerName;

use super::socket::Socket;
use crate::{error::RefusedCertificate, trust::Trust};

/// A handshake with the host of this name over a connection to it.
pub(crate) async fn handshake(trust: &Trust, host: &str, socket: Socket) -> io::Result<Socket> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let config = trust.config()?;
    Ok(match socket {
        Socket::Plain(socket) => {
            Socket::Tls(Box::new(TlsSocket::connect(config, name, socket).await.map_err(in_words)?))
        }
        socket => Socket::Nested(Box::new(TlsSocket::connect(config, name, socket).await.map_err(in_words)?)),
    })
}

fn in_words(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            io::Error::new(error.kind(), RefusedCertificate(reason.clone()))
        }
        _ => error,
    }
}

/// Whether the answer to a TLS handshake was not TLS at all.
pub(crate) fn speaks_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}
