//! Certificates of an authority that no system trusts.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::visitor::Visitor;

/// An authority, its files, and a visitor's trust in it.
#[derive(Debug)]
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
    trust: Arc<ClientConfig>,
    files: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "Test Authority");
        let certificate = parameters.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trust = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: rcgen::Issuer::new(parameters, key), pem: certificate.pem(), trust: trust.into(), files }
    }
}

impl Authority {
    /// Its certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate that is its own authority, as `openssl req -x509` makes it, until a year, and its key; gives the paths of
    /// the files. Nothing else has to do with this authority.
    #[must_use]
    pub fn self_signed_files(&self, year: i32, names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap();
        self.write(&certificate.pem(), &key.serialize_pem())
    }

    /// The file of its certificate.
    #[must_use]
    pub fn file(&self) -> String {
        self.path("ca.pem").to_str().unwrap().to_owned()
    }

    /// A file in the directory of the certificate.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A certificate for these names and its key, as PEM.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_until(4096, names)
    }

    fn issue_until(&self, year: i32, names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The same as files; gives their paths.
    #[must_use]
    pub fn issue_files(&self, names: &[&str]) -> (String, String) {
        let (certificate, key) = self.issue(names);
        self.write(&certificate, &key)
    }

    fn write(&self, certificate: &str, key: &str) -> (String, String) {
        let paths = (self.path("cert.pem"), self.path("key.pem"));
        std::fs::write(&paths.0, certificate).unwrap();
        std::fs::write(&paths.1, key).unwrap();
        (paths.0.to_str().unwrap().to_owned(), paths.1.to_str().unwrap().to_owned())
    }

    /// A server configuration with a certificate for these names.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> ServerConfig {
        shows(self.issue(names))
    }

    /// One that expired in 2020.
    #[must_use]
    pub fn expired_server(&self, names: &[&str]) -> ServerConfig {
        shows(self.issue_until(2020, names))
    }

    /// A visitor that trusts this authority. All visitors of one authority remember sessions together, as a browser does.
    pub async fn visitor(&self, address: SocketAddr, host: &str) -> Visitor<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let socket = TlsConnector::from(Arc::clone(&self.trust)).connect(name, socket).await.unwrap();
        Visitor::over(socket)
    }
}

fn shows((certificate, key): (String, String)) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap()
}
