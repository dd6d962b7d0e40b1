//! Connections below any protocol: accepting, sockets, TLS, buffers, and moving bytes without copies.

pub(crate) mod accept;
pub(crate) mod buffer;
pub(crate) mod handover;
pub(crate) mod relay;
pub(crate) mod rewind;
pub(crate) mod socket;
pub(crate) mod tls;
