//! A self-signed certificate for tests, made once and kept in the data directory.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result};
use data_encoding::{BASE64, HEXUPPER};
use rcgen::{CertificateParams, DnType, KeyPair};
use retunnel_server::config::{ServerConfig, TlsFiles};
use sha2::{Digest, Sha256};

/// A certificate that is its own authority.
pub(super) struct SelfSigned {
    pub(super) files: TlsFiles,
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it.
    pub(super) fingerprint: String,
}

/// The certificate of this server. Each domain has its own.
pub(super) fn certificate(config: &ServerConfig) -> Result<SelfSigned> {
    let path = |kind: &str| config.data_dir.join(format!("self-signed-{}.{kind}.pem", config.domain));
    let files = TlsFiles { cert: path("cert"), key: path("key") };
    if !(files.cert.exists() && files.key.exists()) {
        make(config, &files)?;
    }
    let pem = std::fs::read_to_string(&files.cert).with_context(|| cannot("read", &files.cert))?;
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).map(str::trim).collect();
    let der = BASE64.decode(base64.as_bytes()).with_context(|| cannot("read", &files.cert))?;
    let digest = HEXUPPER.encode(&Sha256::digest(der));
    let pairs: Vec<&str> = (0..digest.len()).step_by(2).map(|at| &digest[at..at + 2]).collect();
    Ok(SelfSigned { files, fingerprint: pairs.join(":") })
}

fn make(config: &ServerConfig, files: &TlsFiles) -> Result<()> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for host in [config.domain.as_str(), config.public_host()] {
        names.extend([host.to_owned(), format!("*.{host}")]);
    }
    if !config.listen.ip().is_unspecified() {
        names.push(config.listen.ip().to_string());
    }
    names.sort();
    names.dedup();
    let mut parameters = CertificateParams::new(names).context("cannot make a certificate for this domain")?;
    parameters.distinguished_name.push(DnType::CommonName, format!("{} (self-signed)", config.domain));
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = parameters.self_signed(&key).context("cannot make a certificate for this domain")?;
    let mut directory = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut directory, 0o700);
    directory.recursive(true).create(&config.data_dir).with_context(|| cannot("make", &config.data_dir))?;
    write(&files.key, &key.serialize_pem())?;
    write(&files.cert, &certificate.pem())
}

/// Writes a file that only its owner may read.
fn write(path: &Path, text: &str) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(|| cannot("write", path)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.write(true).create_new(true).open(path).with_context(|| cannot("write", path))?;
    file.write_all(text.as_bytes()).with_context(|| cannot("write", path))
}

fn cannot(action: &str, path: &Path) -> String {
    format!("cannot {action} {}", path.display())
}
