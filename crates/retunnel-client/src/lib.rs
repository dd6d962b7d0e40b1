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
//! A [`Client`] keeps one session: it reconnects with growing, random pauses and opens its tunnels again at the same
//! addresses. [`Client::events`] reports what happens, and [`Tunnel::stats`] counts it.

#![cfg_attr(
    not(all(feature = "dialects", feature = "diagnose")),
    allow(dead_code, reason = "some parts serve only modules that this build leaves out")
)]

#[cfg(feature = "api")]
pub mod api;
mod client;
mod connection;
mod credentials;
#[cfg(feature = "diagnose")]
pub mod diagnose;
mod dialect;
mod endpoint;
pub mod error;
mod event;
#[cfg(feature = "dialects")]
mod exchange;
mod listener;
mod local;
mod reconnect;
mod relay;
mod service;
mod session;
mod spec;
mod state;
mod stats;
pub mod tap;
mod target;
mod transport;
mod trust;
mod tunnel;
mod validation;
mod version;

pub use client::{Client, ClientBuilder};
pub use credentials::{Credentials, Issuer};
pub use dialect::Dialect;
pub use endpoint::ServerEndpoint;
pub use error::{ApiError, ConnectError, Error, RelayError, TunnelError, ValidationError};
pub use event::{Event, Events, SessionInfo};
pub use listener::{LocalListener, LocalStream};
pub use local::LocalConnection;
pub use retunnel_link::LinkError;
pub use retunnel_proto::{
    PageCode, RequestId,
    message::{Refusal, RefusalCode, RequestSummary, Token, TunnelProtocol},
    rules::Rule,
};
pub use spec::{SHORT_RULES, ShortRule, TunnelInfo, TunnelSpec};
pub use stats::StatsSnapshot;
pub use target::LocalTarget;
pub use transport::proxy::{Proxies, Proxy};
pub use tunnel::Tunnel;
pub use version::VERSION;
