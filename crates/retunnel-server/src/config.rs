//! A server's configuration: values ([`ServerConfig`]) and the file they may come from ([`ServerFile`]).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use retunnel_proto::http1::HeadLimits;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Who may create an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Everyone. The default while the server listens on a loopback address and no public URL is set.
    Open,
    /// Everyone with an invitation (`retunnel server invite`). The default otherwise.
    Invite,
    /// No one.
    Closed,
}

impl std::str::FromStr for Registration {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "open" => Ok(Self::Open),
            "invite" => Ok(Self::Invite),
            "closed" => Ok(Self::Closed),
            _ => Err(ConfigError::new("registration", text, "expected open, invite or closed")),
        }
    }
}

/// An invalid value, with the key it was given for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key}: {reason} (got `{value}`)")]
pub struct ConfigError {
    /// Option or key.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    fn new(key: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key, value: value.into(), reason: reason.into() }
    }
}

/// Every bound and time of a server. `retunnel server --help` and `docs/operations.md` list them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// Connections of visitors and clients at a time. Default 10,000.
    pub max_connections: usize,
    /// The same for one address (IPv6: /64), and at most half of them. Default 2,500. Trusted proxies have no such bound.
    pub max_connections_per_address: usize,
    /// Connections that asked for a session and have not authenticated. Default 4,096.
    pub max_unauthenticated: usize,
    /// The same for one address (IPv6: /64). Default 1,024.
    pub max_unauthenticated_per_address: usize,
    /// Time to authenticate. Default 8 s.
    #[serde(with = "seconds")]
    pub unauthenticated_deadline: Duration,
    /// Sessions of an account at a time. Default 100.
    pub max_sessions_per_account: usize,
    /// Tunnels of an account at a time. Default 200.
    pub max_tunnels_per_account: usize,
    /// TCP ports of an account, held ones included. Default 16.
    pub max_ports_per_account: usize,
    /// TCP ports of all clients of one address (IPv6: /64). Default 32.
    pub max_ports_per_address: usize,
    /// Sessions of all clients of one address (IPv6: /64). Default 1,000.
    pub max_sessions_per_address: usize,
    /// Host names of an account. Default 100.
    pub max_hostnames_per_account: usize,
    /// Visitors' connections over one native session at a time. Default 10,000.
    pub max_streams_per_session: usize,
    /// Bytes that wait for slow readers, over all sessions. Default 256 MiB.
    pub max_buffered: usize,
    /// Failed authentications of an address. Default 30 per minute.
    pub failed_authentications_per_minute: u32,
    /// Registrations of an address. Default 200 per hour.
    pub registrations_per_hour: u32,
    /// Bytes of a request's head. Default 64 KiB.
    pub max_request_head: usize,
    /// Header lines of a request. Default 100.
    pub max_request_headers: usize,
    /// Bytes of the head of a local service's answer. Default 256 KiB.
    pub max_response_head: usize,
    /// Header lines of a local service's answer. Default 256.
    pub max_response_headers: usize,
    /// Time for a request's head. Default 8 s.
    #[serde(with = "seconds")]
    pub header_timeout: Duration,
    /// Time between two parts of a request's body. Default 60 s.
    #[serde(with = "seconds")]
    pub body_timeout: Duration,
    /// Time an idle connection of a visitor stays open. Default 75 s.
    #[serde(with = "seconds")]
    pub keep_alive_timeout: Duration,
    /// Time a 2.x client has for an answer. Default 30 s.
    #[serde(with = "seconds")]
    pub v2_response_timeout: Duration,
    /// Time visitors wait for a lost client to come back. Default 10 s.
    #[serde(with = "seconds")]
    pub hold_visitors: Duration,
    /// Time a name or port stays with its account after the session was lost. Default 60 s.
    #[serde(with = "seconds")]
    pub hold_lease: Duration,
    /// Time running transfers have to finish when the server stops. Default 20 s.
    #[serde(with = "seconds")]
    pub grace_period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 2_500,
            max_unauthenticated: 4_096,
            max_unauthenticated_per_address: 1_024,
            unauthenticated_deadline: Duration::from_secs(8),
            max_sessions_per_account: 100,
            max_tunnels_per_account: 200,
            max_ports_per_account: 16,
            max_ports_per_address: 32,
            max_sessions_per_address: 1_000,
            max_hostnames_per_account: 100,
            max_streams_per_session: 10_000,
            max_buffered: 256 * 1024 * 1024,
            failed_authentications_per_minute: 30,
            registrations_per_hour: 200,
            max_request_head: HeadLimits::REQUEST.bytes,
            max_request_headers: HeadLimits::REQUEST.lines,
            max_response_head: HeadLimits::RESPONSE.bytes,
            max_response_headers: HeadLimits::RESPONSE.lines,
            header_timeout: Duration::from_secs(8),
            body_timeout: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(75),
            v2_response_timeout: Duration::from_secs(30),
            hold_visitors: Duration::from_secs(10),
            hold_lease: Duration::from_secs(60),
            grace_period: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// Bounds of a visitor's request head.
    pub(crate) const fn request_head(&self) -> HeadLimits {
        HeadLimits { bytes: self.max_request_head, lines: self.max_request_headers }
    }

    /// Bounds of the head of a local service's answer.
    pub(crate) const fn response_head(&self) -> HeadLimits {
        HeadLimits { bytes: self.max_response_head, lines: self.max_response_headers }
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The public URL of a server behind a proxy: `https://example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    scheme: &'static str,
    host: String,
    port: Option<u16>,
}

impl std::str::FromStr for PublicUrl {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = |reason: &str| ConfigError::new("public-url", text, reason);
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => ("http", rest),
            Some(("https", rest)) => ("https", rest),
            _ => return Err(error("expected http://HOST or https://HOST")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| error("the port is not a number"))?)),
            None => (authority, None),
        };
        if !is_domain(host) {
            return Err(error("the host is not a domain"));
        }
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

/// The PEM files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a server runs with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where visitors and clients connect. Default `127.0.0.1:6400`; port 0 takes any.
    pub listen: SocketAddr,
    /// Tunnels get names below it; the API is at the domain itself. Default `localhost`.
    pub domain: String,
    /// Where the database is.
    pub data_dir: PathBuf,
    /// Ports for TCP tunnels; `None` switches them off. Default 20000-29999.
    pub tcp_ports: Option<RangeInclusive<u16>>,
    /// The certificate for `listen`, which then accepts TLS only. Default none.
    pub tls: Option<TlsFiles>,
    /// Who may create an account.
    pub registration: Registration,
    /// The base of printed URLs; `None` is the domain with the port of `listen`.
    pub public_url: Option<PublicUrl>,
    /// Peers whose `X-Forwarded-*` headers are trusted. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// The DNS server for checking host names; `None` uses the system's.
    pub dns_resolver: Option<SocketAddr>,
    /// Log every request of a visitor. Default off.
    pub access_log: bool,
    /// Bounds and times.
    pub limits: Limits,
}

impl ServerConfig {
    /// Defaults with the data in `data_dir`.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6400),
            domain: "localhost".into(),
            data_dir,
            tcp_ports: Some(20_000..=29_999),
            tls: None,
            registration: Registration::Open,
            public_url: None,
            trusted_proxies: Vec::new(),
            dns_resolver: None,
            access_log: false,
            limits: Limits::default(),
        }
    }

    /// Where TCP tunnels listen: on the same addresses as the server.
    #[must_use]
    pub const fn tcp_bind(&self) -> IpAddr {
        self.listen.ip()
    }

    /// The public URL of a name; `port` is the one the server really listens on.
    #[must_use]
    pub fn http_url(&self, name: &str, port: u16) -> String {
        self.url(&format!("{name}."), port)
    }

    /// The URL of the server itself.
    #[must_use]
    pub fn base_url(&self, port: u16) -> String {
        self.url("", port)
    }

    const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The port, unless it is the scheme's default.
    fn shown(&self, port: u16) -> Option<u16> {
        Some(port).filter(|port| *port != if self.tls.is_some() { 443 } else { 80 })
    }

    fn url(&self, prefix: &str, port: u16) -> String {
        let (scheme, host, port) = match &self.public_url {
            Some(url) => (url.scheme, url.host.as_str(), url.port),
            None => (self.scheme(), self.domain.as_str(), self.shown(port)),
        };
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{scheme}://{prefix}{host}{port}")
    }

    /// The public URL of a custom host name.
    #[must_use]
    pub fn hostname_url(&self, hostname: &str, port: u16) -> String {
        let (scheme, port) = match &self.public_url {
            Some(url) => (url.scheme, url.port),
            None => (self.scheme(), self.shown(port)),
        };
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{scheme}://{hostname}{port}")
    }

    /// The server's public host: that of the public URL, or the domain.
    #[must_use]
    pub fn public_host(&self) -> &str {
        self.public_url.as_ref().map_or(self.domain.as_str(), |url| url.host.as_str())
    }

    /// The public URL of a TCP port.
    #[must_use]
    pub fn tcp_url(&self, port: u16) -> String {
        format!("tcp://{}:{port}", self.public_host())
    }
}

/// Where DNS servers listen.
const DNS_PORT: u16 = 53;

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// The options of a server from a file, the environment or a command line. An option that is `None` comes from the next
/// source ([`ServerFile::or`]), or else has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ServerFile {
    /// `ADDRESS:PORT`.
    pub listen: Option<String>,
    /// Base domain.
    pub domain: Option<String>,
    /// Directory of the database.
    pub data_dir: Option<PathBuf>,
    /// `FIRST-LAST`, or `off`.
    pub tcp_ports: Option<String>,
    /// PEM file of the certificate.
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its key.
    pub tls_key: Option<PathBuf>,
    /// `open`, `invite` or `closed`.
    pub registration: Option<String>,
    /// `http(s)://HOST[:PORT]`.
    pub public_url: Option<String>,
    /// Addresses or networks.
    pub trusted_proxies: Option<Vec<String>>,
    /// `ADDRESS:PORT` of a DNS server.
    pub dns_resolver: Option<String>,
    /// Log every request.
    pub access_log: Option<bool>,
    /// Bounds and times.
    pub limits: Option<Limits>,
}

impl ServerFile {
    /// Reads a YAML file's text.
    ///
    /// # Errors
    /// A text with the line and the key.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        if yaml.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    /// These options, with `other` for those that are `None`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            domain: self.domain.or(other.domain),
            data_dir: self.data_dir.or(other.data_dir),
            tcp_ports: self.tcp_ports.or(other.tcp_ports),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            registration: self.registration.or(other.registration),
            public_url: self.public_url.or(other.public_url),
            trusted_proxies: self.trusted_proxies.or(other.trusted_proxies),
            dns_resolver: self.dns_resolver.or(other.dns_resolver),
            access_log: self.access_log.or(other.access_log),
            limits: self.limits.or(other.limits),
        }
    }

    /// Validates the options. `default_data_dir` is used when there is none.
    ///
    /// # Errors
    /// [`ConfigError`] with the key. An empty value is an error: it must not open what it was meant to close.
    pub fn into_config(self, default_data_dir: PathBuf) -> Result<ServerConfig, ConfigError> {
        let mut config = ServerConfig::new(self.data_dir.unwrap_or(default_data_dir));
        if config.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::new("data-dir", "", "expected a directory"));
        }
        if let Some(text) = self.listen {
            config.listen = text
                .parse()
                .map_err(|_| ConfigError::new("listen", &text, "expected ADDRESS:PORT, for example 0.0.0.0:6400"))?;
        }
        if let Some(text) = self.domain {
            let domain = text.trim_end_matches('.').to_ascii_lowercase();
            if !is_domain(&domain) || domain.parse::<IpAddr>().is_ok() {
                return Err(ConfigError::new("domain", &text, "expected a domain, for example tunnel.example.com"));
            }
            config.domain = domain;
        }
        if let Some(text) = self.tcp_ports {
            config.tcp_ports = port_range(&text)?;
        }
        let is_given = |path: &PathBuf| !path.as_os_str().is_empty();
        config.tls = match (self.tls_cert, self.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) if is_given(&cert) && is_given(&key) => Some(TlsFiles { cert, key }),
            (cert, _) => {
                let lacking = if cert.as_ref().is_some_and(is_given) { "tls-key" } else { "tls-cert" };
                return Err(ConfigError::new(lacking, "", "expected a file: a certificate and its key go together"));
            }
        };
        config.registration = match self.registration {
            Some(text) => text.parse()?,
            // Behind a proxy a loopback address is public.
            None if config.listen.ip().is_loopback() && self.public_url.is_none() => Registration::Open,
            None => Registration::Invite,
        };
        config.public_url = self.public_url.map(|text| text.parse()).transpose()?;
        for text in self.trusted_proxies.unwrap_or_default() {
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            config
                .trusted_proxies
                .push(net.map_err(|_| ConfigError::new("trusted-proxies", &text, "expected an address or a network"))?);
        }
        config.dns_resolver = match self.dns_resolver {
            Some(text) => Some(
                text.parse()
                    .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT)))
                    .map_err(|_| {
                        ConfigError::new("dns-resolver", &text, "expected ADDRESS:PORT, for example 1.1.1.1:53")
                    })?,
            ),
            None => None,
        };
        config.access_log = self.access_log.unwrap_or(false);
        config.limits = self.limits.unwrap_or_default();
        Ok(config)
    }
}

fn port_range(text: &str) -> Result<Option<RangeInclusive<u16>>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    let error = || ConfigError::new("tcp-ports", text, "expected FIRST-LAST, for example 20000-29999, or `off`");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.trim().parse().map_err(|_| error())?;
    let last: u16 = last.trim().parse().map_err(|_| error())?;
    if first == 0 || first > last { Err(error()) } else { Ok(Some(first..=last)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Result<ServerConfig, ConfigError> {
        ServerFile::parse(yaml).expect("valid YAML").into_config("data".into())
    }

    #[test]
    fn an_earlier_source_wins_and_defaults_fill_the_rest() {
        let flags = ServerFile { domain: Some("flag.test".into()), ..ServerFile::default() };
        let file =
            ServerFile::parse("domain: file.test\ntcp-ports: 1000-2000\nlimits: {hold_lease: 5}").expect("valid");
        let config = flags.or(file).into_config("data".into()).expect("valid");
        assert_eq!(config.domain, "flag.test");
        assert_eq!(config.tcp_ports, Some(1000..=2000));
        assert_eq!(config.limits.hold_lease, Duration::from_secs(5));
        assert_eq!(config.limits.hold_visitors, Duration::from_secs(10));
        assert_eq!(config.listen, "127.0.0.1:6400".parse().expect("an address"));
    }

    #[test]
    fn row_50_security_settings_take_effect_and_fail_closed() {
        assert_eq!(config("listen: 0.0.0.0:1").expect("valid").registration, Registration::Invite);
        assert_eq!(config("listen: 127.0.0.1:1").expect("valid").registration, Registration::Open);
        let behind_proxy = config("listen: 127.0.0.1:1\npublic-url: https://a.test").expect("valid");
        assert_eq!(behind_proxy.registration, Registration::Invite);
        assert_eq!(config("registration: closed").expect("valid").registration, Registration::Closed);
        assert_eq!(config("trusted-proxies: [10.0.0.0/8, 127.0.0.1]").expect("valid").trusted_proxies.len(), 2);
        for (yaml, key) in [
            ("registration: ''", "registration"),
            ("registration: opened", "registration"),
            ("trusted-proxies: ['']", "trusted-proxies"),
            ("tcp-ports: 0-5", "tcp-ports"),
            ("tcp-ports: 9-5", "tcp-ports"),
            ("listen: localhost", "listen"),
            ("domain: 'a b'", "domain"),
            ("public-url: example.com", "public-url"),
        ] {
            assert_eq!(config(yaml).expect_err(yaml).key, key, "{yaml}");
        }
        assert!(ServerFile::parse("registratoin: closed").expect_err("a typo").contains("registratoin"));
    }

    #[test]
    fn a_certificate_and_its_key_go_together_and_make_urls_https() {
        let both = config("{tls-cert: a.pem, tls-key: b.pem, domain: example.test}").expect("valid");
        assert_eq!(both.tls, Some(TlsFiles { cert: "a.pem".into(), key: "b.pem".into() }));
        assert_eq!(both.http_url("a", 6400), "https://a.example.test:6400");
        assert_eq!(both.http_url("a", 443), "https://a.example.test");
        assert_eq!(both.hostname_url("own.test", 80), "https://own.test:80");
        for (yaml, lacking) in [
            ("tls-cert: a.pem", "tls-key"),
            ("tls-key: b.pem", "tls-cert"),
            ("{tls-cert: a.pem, tls-key: ''}", "tls-key"),
            ("{tls-cert: '', tls-key: ''}", "tls-cert"),
        ] {
            assert_eq!(config(yaml).expect_err(yaml).key, lacking, "{yaml}");
        }
    }

    #[test]
    fn urls_name_the_domain_and_the_port() {
        let mut config = config("domain: example.test").expect("valid");
        assert_eq!(config.http_url("a", 6400), "http://a.example.test:6400");
        assert_eq!(config.http_url("a", 80), "http://a.example.test");
        assert_eq!(config.tcp_url(20_000), "tcp://example.test:20000");
        config.public_url = Some("https://Tunnel.example.com/".parse().expect("a URL"));
        assert_eq!(config.http_url("a", 6400), "https://a.tunnel.example.com");
        assert_eq!(config.base_url(6400), "https://tunnel.example.com");
        assert_eq!(config.tcp_url(1), "tcp://tunnel.example.com:1");
    }
}
