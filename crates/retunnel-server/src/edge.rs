//! Where visitors arrive: connections, HTTP policy, routing, and the way to a tunnel's upstream.

pub(crate) mod accept;
pub(crate) mod access;
mod buffer;
pub(crate) mod connection;
pub(crate) mod exchange;
pub(crate) mod host;
pub(crate) mod http1;
pub(crate) mod origin;
pub(crate) mod page;
pub(crate) mod relay;
pub(crate) mod rewind;
pub(crate) mod socket;
pub(crate) mod tcp;
pub(crate) mod tls;
