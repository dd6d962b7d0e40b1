//! Which certificates TLS connections trust: those of the system's authorities, of additional authorities, or all.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use rustls_platform_verifier::Verifier;

use crate::validation::ValidationError;

/// Which certificates to trust. Clones share what was read from the system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    everything: bool,
    roots: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Accepts every certificate.
    pub(crate) fn everything() -> Self {
        Self(Arc::new(Inner { everything: true, ..Inner::default() }))
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

    /// The configuration, built once: reading the system's roots takes milliseconds.
    pub(crate) fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.0.config.get() {
            return Ok(Arc::clone(config));
        }
        let config = configured(self.verifier()?)?;
        Ok(Arc::clone(self.0.config.get_or_init(|| Arc::new(config))))
    }

    fn verifier(&self) -> io::Result<Arc<dyn ServerCertVerifier>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(if self.0.everything {
            Arc::new(AcceptAll(provider.signature_verification_algorithms))
        } else {
            let verifier = platform(&self.0.roots, Arc::clone(&provider)).map_err(io::Error::other)?;
            Arc::new(Platform { verifier, own: self.0.roots.clone(), provider })
        })
    }

    /// The same trust, which records the certificates that it checks.
    pub(crate) fn watched(&self) -> io::Result<(Self, Arc<Watch>)> {
        let watch = Arc::new(Watch { verifier: self.verifier()?, seen: Mutex::default() });
        let config = OnceLock::from(Arc::new(configured(Arc::<Watch>::clone(&watch))?));
        let inner = Inner { everything: self.0.everything, roots: self.0.roots.clone(), config };
        Ok((Self(Arc::new(inner)), watch))
    }

    /// The trusted authorities, for people.
    pub(crate) fn authorities(&self) -> &'static str {
        match (self.0.everything, self.0.roots.is_empty()) {
            (true, _) => "none: any certificate is accepted",
            (false, true) => "the system's authorities",
            (false, false) => "the system's authorities and the configured ones",
        }
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.0.everything
    }
}

fn configured(verifier: Arc<dyn ServerCertVerifier>) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn platform(roots: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Result<Verifier, rustls::Error> {
    if roots.is_empty() {
        return Verifier::new(provider);
    }
    Verifier::new_with_extra_roots(roots.iter().cloned(), provider)
}

/// Trusts the authorities of the system and those of a file, and also a host that shows a certificate of the file itself. A
/// certificate of `openssl req -x509` is its own authority, which the verifiers of web pages accept for no host.
#[derive(Debug)]
struct Platform {
    verifier: Verifier,
    /// The certificates of the file.
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Platform {
    /// Accepts a certificate of the file for its names and as long as it is valid.
    fn verify_own(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone().into_owned())?;
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        // It checks the dates first. What else it finds is that the certificate is an authority's.
        match webpki.verify_server_cert(certificate, &[], name, &[], now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) => {}
            other => return other,
        }
        verify_server_name(&certificate.try_into()?, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Platform {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.own.iter().any(|own| own.as_ref() == certificate.as_ref()) {
            return self.verify_own(certificate, name, now);
        }
        self.verifier.verify_server_cert(certificate, above, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// What a [`Watch`] saw last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The host's own certificate.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// The version of TLS; known once the certificate is trusted.
    pub(crate) version: Option<&'static str>,
}

/// Trusts as another verifier does, and records the certificates that it checks.
#[derive(Debug)]
pub(crate) struct Watch {
    verifier: Arc<dyn ServerCertVerifier>,
    seen: Mutex<Seen>,
}

impl Watch {
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no code panics while it holds what was seen")
    }
}

impl ServerCertVerifier for Watch {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen() = Seen { certificate: Some(certificate.clone().into_owned()), version: None };
        self.verifier.verify_server_cert(certificate, above, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.seen().version = Some("TLS 1.2");
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.seen().version = Some("TLS 1.3");
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Accepts every certificate: for `--insecure`, and for local services, which often have self-signed certificates.
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
