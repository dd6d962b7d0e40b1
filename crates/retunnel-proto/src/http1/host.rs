//! Hosts that requests name: the key they are routed by.

use std::net::{IpAddr, Ipv6Addr};

/// Longest host name (RFC 1035), in bytes.
const MAX_HOST: usize = 253;
/// Longest label of a host name (RFC 1035), in bytes.
pub const MAX_LABEL: usize = 63;

/// A host as a key: lower case, without port and trailing dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name.
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

impl Host {
    /// Reads `host`, `host:port`, `1.2.3.4:port` or `[::1]:port`; `None` when it is none of these.
    #[must_use]
    pub fn parse(authority: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(authority).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, after) = rest.split_once(']')?;
                let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
                (inside.parse::<Ipv6Addr>().ok().map(|address| Self::Address(address.into()))?, port)
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                (Self::name(host)?, port)
            }
        };
        // RFC 3986 allows an empty port.
        let valid = port.is_none_or(|port| {
            port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
        });
        valid.then_some(host)
    }

    fn name(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        (name.len() <= MAX_HOST && name.split('.').all(label)).then(|| Self::Name(name.to_ascii_lowercase()))
    }
}
