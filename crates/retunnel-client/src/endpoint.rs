//! The address of a server, as people write it.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::validation::ValidationError;

/// Port of a server when none is given.
const DEFAULT_PORT: u16 = 6400;

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerEndpoint {
    host: String,
    port: u16,
    tls: bool,
    is_default: bool,
}

impl Default for ServerEndpoint {
    fn default() -> Self {
        Self { host: "localhost".into(), port: DEFAULT_PORT, tls: false, is_default: true }
    }
}

impl ServerEndpoint {
    /// Whether this is `localhost:6400` because no server was given.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.is_default
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether this is this machine, judged by the name or address alone.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, for the Host header and for people.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text means the same server when it is read again.
        if self.tls {
            f.write_str("https://")?;
        } else if !self.is_loopback() {
            f.write_str("http://")?;
        }
        f.write_str(&self.authority())
    }
}

impl FromStr for ServerEndpoint {
    type Err = ValidationError;

    /// Reads `host`, `host:port`, and URLs with `http`, `https`, `ws` or `wss`. Without a scheme, TLS is used except for this
    /// machine's loopback addresses, and for those on port 443 too.
    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let error = |reason| ValidationError { what: "server", value: text.to_owned(), reason };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "http" | "ws" => (Some(false), rest),
                "https" | "wss" => (Some(true), rest),
                _ => return Err(error("expected http://, https://, ws:// or wss://")),
            },
            None => (None, text),
        };
        // Published clients were given URLs with the path of the control socket.
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| error("expected [ADDRESS]:PORT"))?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || !host.chars().all(valid) {
            return Err(error("expected HOST or HOST:PORT"));
        }
        let port = match port {
            Some(port) => Some(
                port.parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| error("the port is not a number from 1 to 65535"))?,
            ),
            None => None,
        };
        let tls = scheme.unwrap_or(port == Some(443) || !is_loopback(host));
        let port = port.unwrap_or(match (scheme, tls) {
            (_, true) => 443,
            (Some(false), false) => 80,
            (None, false) | (Some(true), _) => DEFAULT_PORT,
        });
        Ok(Self { host: host.to_ascii_lowercase(), port, tls, is_default: false })
    }
}

/// Whether a host is this machine, judged by its name or address alone.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let is_name = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    is_name || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_all_their_forms() {
        for (text, shown) in [
            ("localhost:6400", "localhost:6400"),
            ("localhost", "localhost:6400"),
            ("127.0.0.1", "127.0.0.1:6400"),
            ("[::1]:7000", "[::1]:7000"),
            ("tunnel.example.com", "https://tunnel.example.com:443"),
            ("tunnel.example.com:8080", "https://tunnel.example.com:8080"),
            ("tunnel.example.com:443", "https://tunnel.example.com:443"),
            ("192.168.0.7", "https://192.168.0.7:443"),
            ("192.168.0.7:6400", "https://192.168.0.7:6400"),
            ("127.0.0.1:443", "https://127.0.0.1:443"),
            ("app.localhost:6400", "app.localhost:6400"),
            ("http://192.168.0.7:6400", "http://192.168.0.7:6400"),
            ("http://a.test", "http://a.test:80"),
            ("HTTPS://a.test", "https://a.test:443"),
            ("wss://a.test/api/v1/ws/tunnel", "https://a.test:443"),
            ("ws://A.test:1", "http://a.test:1"),
        ] {
            let endpoint = text.parse::<ServerEndpoint>().expect(text);
            assert_eq!(endpoint.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<ServerEndpoint>().expect(shown), endpoint, "{shown}");
        }
        for text in ["", ":80", "a b", "ftp://a", "a:0", "a:99999", "[::1", "a:b"] {
            assert!(text.parse::<ServerEndpoint>().is_err(), "{text}");
        }
        assert!(ServerEndpoint::default().is_default());
    }
}
