//! This library's version.

/// Version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
