//! Public addresses of tunnels.

use std::fmt;

/// A public address that can be leased.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PublicAddress {
    /// A name below the base domain, lower case.
    Name(String),
    /// A custom host name, lower case.
    Host(String),
    /// A public TCP port.
    Port(u16),
}

impl PublicAddress {
    /// The name or host name, unless it is a port.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) | Self::Host(name) => Some(name),
            Self::Port(_) => None,
        }
    }

    /// The port, unless it is a name.
    pub(crate) const fn port(&self) -> Option<u16> {
        match self {
            Self::Name(_) | Self::Host(_) => None,
            Self::Port(port) => Some(*port),
        }
    }
}

impl fmt::Display for PublicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) | Self::Host(name) => f.write_str(name),
            Self::Port(port) => write!(f, "port {port}"),
        }
    }
}
