//! What a tunnel's policy must be able to do. Implemented in [`crate::policy`].

use std::{fmt, net::IpAddr, time::Duration};

use retunnel_proto::{PageCode, http1::request::RequestHead, rules::LocalOrigin};

/// What holds for a tunnel's visitors and their requests. Evaluated once for each HTTP request, and once for each
/// connection of a TCP tunnel.
pub(crate) trait Policy: fmt::Debug + Send + Sync {
    /// Decides about a request. `visitor`: the visitor's own address, also behind trusted proxies.
    ///
    /// # Errors
    /// The request is denied.
    fn on_http_request(&self, request: &RequestHead, visitor: IpAddr) -> Result<Rewrite<'_>, &'static Denied>;

    /// Decides about a connection.
    ///
    /// # Errors
    /// The connection is denied.
    fn on_tcp_connect(&self, visitor: IpAddr) -> Result<(), &'static Denied>;
}

/// How an admitted request is changed on its way to the local service.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rewrite<'a> {
    /// `Authorization` was meant for the tunnel; the local service does not receive it.
    pub(crate) strip_authorization: bool,
    /// The origin that the local service sees instead of the public one.
    pub(crate) local_origin: Option<&'a LocalOrigin>,
    /// How long the local service may take to begin its answer.
    pub(crate) response_timeout: Option<Duration>,
    /// The connection to the local service serves this request only.
    pub(crate) close_local: bool,
}

/// Why a visitor is not admitted, as the answer that an HTTP visitor gets. A TCP connection is closed. Every rule has its own,
/// so that a new one does not change the edge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Status of the answer.
    pub(crate) status: u16,
    /// Stable code of the answer, and of the request in logs and events.
    pub(crate) code: PageCode,
    /// What is wrong, in a few words.
    pub(crate) heading: &'static str,
    /// What the visitor can do.
    pub(crate) detail: &'static str,
    /// Value of `WWW-Authenticate`.
    pub(crate) challenge: Option<&'static str>,
}
