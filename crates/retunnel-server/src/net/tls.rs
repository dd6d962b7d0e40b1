//! The server's certificate, and the TLS handshake before a connection's first request.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use retunnel_link::{ReadAhead, TlsSocket};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, InconsistentKeys, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::socket::Socket;
use crate::{config::TlsFiles, limits::Place};

/// First byte of a TLS record that begins a handshake.
const HANDSHAKE: u8 = 22;

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source} [tls_file_unreadable]", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate file has no certificate.
    #[error("{} has no certificate: expected `-----BEGIN CERTIFICATE-----` [tls_no_certificate]", .0.display())]
    NoCertificate(PathBuf),
    /// The key file has no private key, or one with a passphrase.
    #[error("{} has no private key without a passphrase: expected `-----BEGIN PRIVATE KEY-----` [tls_no_key]", .0.display())]
    NoKey(PathBuf),
    /// The file is not PEM, or what it holds cannot be used.
    #[error("{}: {reason} [tls_invalid]", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key belongs to another certificate.
    #[error("the key {} does not match the first certificate in {} [tls_key_mismatch]", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

retunnel_proto::stable_codes! {
    /// The code at the end of a [`TlsError`]'s text.
    pub enum TlsCode {
        /// A file does not exist or may not be read.
        FileUnreadable = "tls_file_unreadable";
        /// The certificate file has no certificate.
        NoCertificate = "tls_no_certificate";
        /// The key file has no private key, or one with a passphrase.
        NoKey = "tls_no_key";
        /// The contents of a file are not valid.
        Invalid = "tls_invalid";
        /// The key belongs to another certificate.
        KeyMismatch = "tls_key_mismatch";
    }
}

impl TlsError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> TlsCode {
        match self {
            Self::Unreadable { .. } => TlsCode::FileUnreadable,
            Self::NoCertificate(_) => TlsCode::NoCertificate,
            Self::NoKey(_) => TlsCode::NoKey,
            Self::Invalid { .. } => TlsCode::Invalid,
            Self::Mismatch { .. } => TlsCode::KeyMismatch,
        }
    }
}

/// TLS on the server's port.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Current>,
    files: TlsFiles,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The certificate for new connections.
#[derive(Debug)]
struct Current(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().expect("no code panics while it holds the certificate")))
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = Arc::new(Current(Mutex::new(read(&files, &provider)?)));
        let invalid = |error: rustls::Error| TlsError::Invalid { path: files.cert.clone(), reason: error.to_string() };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(invalid)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&certificate));
        // Clients reconnect often and open several connections: handshakes after the first are resumed.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(invalid)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, files })
    }

    /// Reads the files again, for new connections.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate does not change then.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let read = read(&self.files, self.acceptor.config().crypto_provider())?;
        *self.certificate.0.lock().expect("no code panics while it holds the certificate") = read;
        Ok(())
    }

    /// Encrypts a new connection within `limit`. A connection that sends nothing gives way like one that does not
    /// authenticate.
    pub(crate) async fn accept(
        &self,
        socket: Socket,
        peer: SocketAddr,
        permit: Place,
        limit: Duration,
        draining: &CancellationToken,
    ) -> Arrived {
        let Socket::Plain(socket) = socket else { return Arrived::Secure(socket) };
        // Every arm is cancel-safe: what is dropped is closed.
        let arrived = tokio::select! {
            arrived = permit.within(limit, self.handshake(socket)) => arrived,
            () = draining.cancelled() => None,
        };
        match arrived {
            Some(Ok(arrived)) => arrived,
            Some(Err(error)) => {
                debug!(%peer, %error, "no secure connection");
                Arrived::Nothing
            }
            None => Arrived::Nothing,
        }
    }

    async fn handshake(&self, socket: TcpStream) -> io::Result<Arrived> {
        let mut socket = ReadAhead::new(socket);
        match socket.peek().await?.first() {
            Some(&HANDSHAKE) => {
                let socket = TlsSocket::accept(&self.acceptor, socket).await?;
                debug!(kind = ?socket.handshake_kind(), "secure connection");
                Ok(Arrived::Secure(socket.into()))
            }
            // The method of a request.
            Some(byte) if byte.is_ascii_alphabetic() => Ok(Arrived::Unencrypted(Socket::Plain(socket.into_inner()))),
            _ => Ok(Arrived::Nothing),
        }
    }
}

/// What a connection turned out to be.
pub(crate) enum Arrived {
    Secure(Socket),
    /// Its first bytes are those of a request; they were read.
    Unencrypted(Socket),
    /// Neither TLS nor HTTP, or too late.
    Nothing,
}

fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let TlsFiles { cert, key } = files;
    let invalid = |path: &Path, reason: String| TlsError::Invalid { path: path.to_owned(), reason };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes_of(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(cert, error.to_string()))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(cert.clone()));
    }
    let private = match PrivateKeyDer::from_pem_slice(&bytes_of(key)?) {
        Ok(private) => private,
        Err(rustls::pki_types::pem::Error::NoItemsFound) => return Err(TlsError::NoKey(key.clone())),
        Err(error) => return Err(invalid(key, error.to_string())),
    };
    let signer = provider.key_provider.load_private_key(private).map_err(|error| invalid(key, error.to_string()))?;
    let certified = CertifiedKey::new(certificates, signer);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch { cert: cert.clone(), key: key.clone() }),
        Err(error) => Err(invalid(cert, error.to_string())),
    }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_with_their_codes() {
        let (cert, key) = (PathBuf::from("cert"), PathBuf::from("key"));
        for error in [
            TlsError::Unreadable { path: cert.clone(), source: io::ErrorKind::NotFound.into() },
            TlsError::NoCertificate(cert.clone()),
            TlsError::NoKey(key.clone()),
            TlsError::Invalid { path: cert.clone(), reason: "no".into() },
            TlsError::Mismatch { cert, key },
        ] {
            let text = error.to_string();
            assert!(text.contains(&format!("[{}]", error.code().as_str())), "{text}");
        }
    }
}
