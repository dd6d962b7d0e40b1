//! Address of a local service.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use crate::{
    endpoint::is_loopback,
    listener::{Connector, LocalListener},
    trust::Trust,
    validation::ValidationError,
};

/// A local service: `8080`, `host:port`, `http(s)://host:port`, `unix:/path`, or a [`listener`](Self::listener) within this
/// program.
#[derive(Debug, Clone)]
pub struct LocalTarget {
    pub(crate) address: Address,
    pub(crate) tls: bool,
    /// Which certificates of a TLS service are accepted; `None` until the client is known.
    pub(crate) trust: Option<Trust>,
    /// Whether the service delays until its bytes are acknowledged; learned from its answers ([`crate::relay`]).
    pub(crate) waits_for_acknowledgements: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp {
        host: String,
        port: u16,
        /// The address that answered last.
        remembered: Arc<Mutex<Option<SocketAddr>>>,
    },
    Unix(PathBuf),
    Listener(Connector),
}

impl LocalTarget {
    /// A TCP port on this machine.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self::tcp("localhost", port, false)
    }

    /// A service within this program that needs no port: each visitor's connection arrives at the returned listener. `name`
    /// is shown as the target.
    #[must_use]
    pub fn listener(name: &str) -> (Self, LocalListener) {
        let (connector, listener) = Connector::new(name);
        (Self::new(Address::Listener(connector), false, None), listener)
    }

    fn tcp(host: &str, port: u16, tls: bool) -> Self {
        // A service on this machine has a self-signed certificate, and its bytes do not leave the machine.
        let trust = (tls && is_loopback(host)).then(Trust::everything);
        Self::new(Address::Tcp { host: host.to_owned(), port, remembered: Arc::default() }, tls, trust)
    }

    fn new(address: Address, tls: bool, trust: Option<Trust>) -> Self {
        Self { address, tls, trust, waits_for_acknowledgements: Arc::default() }
    }

    /// The port of a TCP service.
    #[must_use]
    pub const fn local_port(&self) -> Option<u16> {
        match &self.address {
            Address::Tcp { port, .. } => Some(*port),
            Address::Unix(_) | Address::Listener(_) => None,
        }
    }

    /// Whether certainly nothing accepts connections on this machine at this address, found without a connection: some services
    /// serve only one. `false` if it cannot be known, for example for other machines.
    #[must_use]
    pub fn has_no_listener(&self) -> bool {
        match &self.address {
            Address::Unix(path) => !path.exists(),
            Address::Listener(_) => false,
            Address::Tcp { host, port, .. } => match host.parse::<IpAddr>() {
                Ok(ip) => ip.is_loopback() && is_free(SocketAddr::new(ip, *port)) == Some(true),
                Err(_) if is_loopback(host) => {
                    // A machine may have only one of the two.
                    let free = Self::loopbacks(*port).map(is_free);
                    free.contains(&Some(true)) && !free.contains(&Some(false))
                }
                Err(_) => false,
            },
        }
    }

    /// What a browser on this machine sends as Host.
    pub(crate) fn authority(&self) -> String {
        match &self.address {
            Address::Unix(_) | Address::Listener(_) => "localhost".into(),
            Address::Tcp { host, port, .. } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if *port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{port}") }
            }
        }
    }

    /// Addresses of `localhost`, in the order to try.
    pub(crate) const fn loopbacks(port: u16) -> [SocketAddr; 2] {
        [SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)]
    }
}

/// Whether a program could listen there; `None` if this one may not, or if there is no such address.
fn is_free(address: SocketAddr) -> Option<bool> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).ok()?;
    match socket.bind(&address.into()) {
        Ok(()) => Some(true),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Some(false),
        Err(_) => None,
    }
}

impl From<u16> for LocalTarget {
    fn from(port: u16) -> Self {
        Self::port(port)
    }
}

impl FromStr for LocalTarget {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let error = |reason| ValidationError { what: "local target", value: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(error("expected unix:/absolute/path"));
            }
            return Ok(Self::new(Address::Unix(path.into()), false, None));
        }
        let (rest, tls, default_port) = match text.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "http" | "tcp" => (rest, false, Some(80)),
                "https" => (rest, true, Some(443)),
                _ => return Err(error("expected http://, https:// or unix:")),
            },
            None => (text, false, None),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@', ' ']) {
            return Err(error("expected a host and a port without a path"));
        }
        let digits = authority.strip_prefix(':').unwrap_or(authority);
        if default_port.is_none() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let port = digits.parse().ok().filter(|port| *port != 0);
            return port.map(Self::port).ok_or_else(|| error("a port is a number from 1 to 65535"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
                let port = port.parse().ok().filter(|port: &u16| *port != 0);
                (host, port.ok_or_else(|| error("a port is a number from 1 to 65535"))?)
            }
            _ => match default_port {
                Some(port) if !authority.is_empty() => (authority, port),
                _ => return Err(error("expected PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path")),
            },
        };
        Ok(Self::tcp(host.trim_start_matches('[').trim_end_matches(']'), port, tls))
    }
}

impl fmt::Display for LocalTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Listener(connector) => f.write_str(connector.name()),
            Address::Tcp { host, port, .. } => {
                let scheme = if self.tls { "https://" } else { "" };
                if host.contains(':') {
                    write!(f, "{scheme}[{host}]:{port}")
                } else {
                    write!(f, "{scheme}{host}:{port}")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_listener_is_noticed_without_a_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("possible");
        let port = listener.local_addr().expect("an address").port();
        let targets = [format!("{port}"), format!("127.0.0.1:{port}"), format!("http://localhost:{port}")]
            .map(|text| text.parse::<LocalTarget>().expect("a target"));
        assert!(targets.iter().all(|target| !target.has_no_listener()));
        assert!(listener.accept().is_err(), "nobody has connected");
        drop(listener);
        assert!(targets.iter().all(LocalTarget::has_no_listener));
        assert!(!"192.0.2.1:1".parse::<LocalTarget>().expect("a target").has_no_listener(), "not known");
        assert!("unix:/nowhere/at/all".parse::<LocalTarget>().expect("a target").has_no_listener());
    }

    #[test]
    fn targets_are_read_in_all_their_forms() {
        for (text, shown) in [
            ("8080", "localhost:8080"),
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("http://localhost:3000/", "localhost:3000"),
            ("https://localhost", "https://localhost:443"),
            (":8080", "localhost:8080"),
            ("HTTP://localhost:3000", "localhost:3000"),
            ("Https://localhost", "https://localhost:443"),
            ("[::1]:80", "[::1]:80"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(text.parse::<LocalTarget>().expect(text).to_string(), shown);
        }
        for (text, host) in [
            ("5173", "localhost:5173"),
            ("http://127.0.0.1", "127.0.0.1"),
            ("https://[::1]:8443", "[::1]:8443"),
            ("unix:/run/app.sock", "localhost"),
        ] {
            assert_eq!(text.parse::<LocalTarget>().expect(text).authority(), host);
        }
        for text in [
            "",
            "0",
            "65536",
            "host",
            "host:0",
            "http://",
            "ftp://a:1",
            "a:1/path",
            "unix:rel",
            "::1:80",
            ":",
            ":0",
            "-1",
        ] {
            assert!(text.parse::<LocalTarget>().is_err(), "{text}");
        }
    }
}
