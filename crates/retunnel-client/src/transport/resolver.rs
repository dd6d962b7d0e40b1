//! Finds the addresses of a name.

use std::{fmt, io, net::SocketAddr};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::net::lookup_host;

/// Finds addresses. A trait so that tests can choose them.
pub(crate) trait Resolver: fmt::Debug + Send + Sync {
    /// The addresses of a host in the order of preference.
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver, with its order (RFC 6724).
#[derive(Debug)]
pub(crate) struct System;

impl Resolver for System {
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        async move { Ok(lookup_host((host, port)).await?.collect()) }.boxed()
    }
}
