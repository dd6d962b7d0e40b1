//! The self-hosted ReTunnel server: visitors arrive at the `edge`, clients at `control`, both meet in the `registry`.
//!
//! ```no_run
//! # async fn run() -> Result<(), retunnel_server::StartError> {
//! use retunnel_server::{Server, config::ServerConfig};
//!
//! let server = Server::start(ServerConfig::new("data".into())).await?;
//! println!("listening on http://{}", server.address());
//! server.wait().await;
//! # Ok(())
//! # }
//! ```

pub mod auth;
pub mod config;
mod control;
mod core;
mod edge;
#[doc(hidden)]
pub mod fuzzing;
mod guarded;
mod hostnames;
pub mod limits;
mod registry;
mod rest;
mod server;
pub mod store;
mod tunnel;

pub use edge::tls::{TlsCode, TlsError};
pub use rest::ApiCode;
pub use server::{Server, ServerHandle, StartError};

/// Version of this server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
