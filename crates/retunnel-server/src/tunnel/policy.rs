//! What a tunnel's policy must be able to do. Implemented in [`crate::policy`].

use std::{fmt, net::IpAddr};

use retunnel_proto::{http1::request::RequestHead, rules::LocalOrigin};

/// What holds for a tunnel's visitors and their requests. Evaluated once for each HTTP request, and once for each
/// connection of a TCP tunnel.
pub(crate) trait Policy: fmt::Debug + Send + Sync {
    /// Decides about a request. `visitor`: the visitor's own address, also behind trusted proxies.
    ///
    /// # Errors
    /// The request is denied.
    fn on_http_request(&self, request: &RequestHead, visitor: IpAddr) -> Result<Rewrite<'_>, Denied>;

    /// Decides about a connection.
    ///
    /// # Errors
    /// The connection is denied.
    fn on_tcp_connect(&self, visitor: IpAddr) -> Result<(), Denied>;
}

/// How an admitted request is changed on its way to the local service.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rewrite<'a> {
    /// `Authorization` was meant for the tunnel; the local service does not receive it.
    pub(crate) strip_authorization: bool,
    /// The origin that the local service sees instead of the public one.
    pub(crate) local_origin: Option<&'a LocalOrigin>,
}

/// Why a visitor is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Credentials are missing or wrong.
    Unauthorized,
}
