//! The self-hosted ReTunnel server. Visitors arrive at the `edge`, clients at `control`; they meet in the `registry`.
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

mod account;
pub mod auth;
mod clock;
pub mod config;
mod control;
mod edge;
#[doc(hidden)]
pub mod fuzzing;
mod hostnames;
mod html;
pub mod limits;
mod net;
mod policy;
mod registry;
mod rest;
mod running;
mod server;
pub mod store;
mod tunnel;
mod upstream;
mod version;

pub use net::tls::{TlsCode, TlsError};
pub use rest::ApiCode;
pub use server::{Server, ServerHandle, StartError};
pub use version::VERSION;
