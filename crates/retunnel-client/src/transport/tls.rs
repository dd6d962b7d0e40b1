//! Whom TLS connections trust: the system's roots, further ones of a network, or anybody.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use rustls_platform_verifier::Verifier;

use crate::error::ValidationError;

/// Whom to trust. Clones share what was read from the system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    anybody: bool,
    roots: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Accepts every certificate.
    pub(crate) fn anybody() -> Self {
        Self(Arc::new(Inner { anybody: true, ..Inner::default() }))
    }

    /// The system's roots and those of a PEM file.
    ///
    /// # Errors
    /// [`ValidationError`] when it has no certificates.
    pub(crate) fn with_roots(pem: &[u8]) -> Result<Self, ValidationError> {
        let error = |value: String, reason| ValidationError { what: "certificate authorities", value, reason };
        let roots: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|broken| error(broken.to_string(), "expected certificates in PEM form"))?;
        if roots.is_empty() {
            return Err(error("no certificate".into(), "expected `-----BEGIN CERTIFICATE-----`"));
        }
        Ok(Self(Arc::new(Inner { roots, ..Inner::default() })))
    }

    /// The configuration, made once: reading the system's roots takes milliseconds.
    pub(crate) fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.0.config.get() {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if self.0.anybody {
            Arc::new(AcceptAll(provider.signature_verification_algorithms))
        } else {
            Arc::new(platform(&self.0.roots, Arc::clone(&provider)).map_err(io::Error::other)?)
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Arc::clone(self.0.config.get_or_init(|| Arc::new(config))))
    }
}

fn platform(roots: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Result<Verifier, rustls::Error> {
    if roots.is_empty() {
        return Verifier::new(provider);
    }
    Verifier::new_with_extra_roots(roots.iter().cloned(), provider)
}

/// Accepts every certificate: for `--insecure`, and for local services, whose certificates nobody else vouches for.
#[derive(Debug)]
struct AcceptAll(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
