//! Gives local services a public address through a ReTunnel server.
//!
//! ```no_run
//! # async fn run() -> Result<(), retunnel_client::Error> {
//! use retunnel_client::Client;
//!
//! let client = Client::builder().server("localhost:6400".parse()?).connect().await?;
//! let tunnel = client.http(8080).await?;
//! println!("{} -> localhost:8080", tunnel.url());
//! # client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] keeps one session up: it reconnects with growing, random pauses and opens its tunnels again at the same
//! addresses. What happens is told by [`Client::events`] and counted by [`Tunnel::stats`].

pub mod api;
mod client;
pub mod diagnose;
mod dialect;
pub mod error;
mod event;
mod exchange;
mod local;
mod reconnect;
mod relay;
mod session;
mod stats;
pub mod tap;
mod target;
mod transport;
mod tunnel;

pub use client::{Client, ClientBuilder};
pub use dialect::Dialect;
pub use error::{ApiError, ConnectError, Error, RelayError, TunnelError, ValidationError};
pub use event::{Event, Events, SessionInfo};
pub use local::LocalConnection;
pub use retunnel_proto::{
    PageCode, RequestId,
    message::{Refusal, RefusalCode, RequestSummary, Token, TunnelProtocol},
};
pub use stats::StatsSnapshot;
pub use target::LocalTarget;
pub use transport::{
    ServerEndpoint,
    proxy::{Proxies, Proxy},
};
pub use tunnel::{Tunnel, TunnelInfo, TunnelSpec};

/// Version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
