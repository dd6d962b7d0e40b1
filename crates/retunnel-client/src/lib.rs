//! Gives a service on this machine a public address through a ReTunnel server.
//!
//! Use it to show a development server to others, to receive webhooks in a test, or to reach devices behind NAT, from within
//! your own program. The server is the program `retunnel server`, or the crate `retunnel-server`.
//!
//! # A complete first program
//!
//! ```no_run
//! use retunnel_client::{Client, Error};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     // Without a token the client registers an account.
//!     let client = Client::builder().server("localhost:6400".parse()?).connect().await?;
//!     let tunnel = client.http(8080).await?;
//!     println!("{} -> localhost:8080", tunnel.url());
//!
//!     // The tunnel survives reconnects. This returns if the server closes it for good.
//!     println!("closed: {}", tunnel.closed().await);
//!     client.close().await;
//!     Ok(())
//! }
//! ```
//!
//! # Concepts
//!
//! A [`Client`] keeps one session with one server. It reconnects with growing, random pauses and opens its tunnels again at
//! the same addresses. A [`Tunnel`] is one public address and the local service behind it, a [`LocalTarget`]: a port, a Unix
//! socket, another host, or a [`LocalListener`] within the program. [`TunnelSpec`] has the options of a tunnel, for example
//! its name or a password. [`Client::events`] reports what happens, and [`Tunnel::stats`] counts it.
//!
//! Dropping a value ends what it owns: dropping a [`Tunnel`] closes it, dropping the [`Client`] ends its tasks.
//!
//! # Features
//!
//! All are enabled by default.
//!
//! * `api`: the server's REST API, and registering an account when there is no token.
//! * `diagnose`: checks of the path to a server, step by step. Enables `api` and `websocket`.
//! * `dialects`: servers that speak only the published protocols 2.x or 3.x. Enables `websocket`.
//! * `websocket`: links within a WebSocket, for networks that refuse the upgrade of a connection.

#![cfg_attr(
    not(all(feature = "dialects", feature = "diagnose")),
    allow(dead_code, reason = "some parts serve only modules that this build leaves out")
)]

mod account;
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

pub use account::{AccountStore, LockedAccount};
pub use client::{Client, ClientBuilder};
pub use credentials::{Credentials, Origin};
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
