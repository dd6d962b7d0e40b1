//! The version of this server.

/// Version of this server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
