//! Connections: to the server (proxy, name, socket, TLS, and the HTTP upgrade that turns the connection into a link), and the
//! type that connections to local services share with them.

pub(crate) mod dialer;
pub(crate) mod path;
pub(crate) mod proxy;
pub(crate) mod race;
mod resolver;
pub(crate) mod socket;
pub(crate) mod tls;
pub(crate) mod upgrade;
#[cfg(feature = "websocket")]
pub(crate) mod websocket;
#[cfg(not(feature = "websocket"))]
mod without_websocket;

pub(crate) use self::{dialer::Dialer, socket::Socket};
