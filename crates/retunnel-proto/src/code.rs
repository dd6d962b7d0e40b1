//! Stable codes of failures: what programs may look at, and what `docs/errors.md` lists. A code exists only as a variant of an
//! enum, so that no other one can be said.

/// Declares an enum of stable codes with their texts.
///
/// ```
/// retunnel_proto::stable_codes! {
///     /// Why nothing happens.
///     pub enum Reason {
///         /// It is too early.
///         TooEarly = "too_early";
///     }
/// }
/// assert_eq!(Reason::ALL[0].as_str(), "too_early");
/// ```
#[macro_export]
macro_rules! stable_codes {
    ($(#[$about:meta])* $visible:vis enum $enum:ident { $($(#[$doc:meta])* $name:ident = $text:literal;)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        $visible enum $enum {
            $($(#[$doc])* $name,)*
        }

        impl $enum {
            /// All of them.
            $visible const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code as programs see it.
            #[must_use]
            $visible const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

stable_codes! {
    /// Why a visitor got an answer that is not the local service's: the header `X-Retunnel-Error`, and `error` of a request's
    /// summary.
    pub enum PageCode {
        /// The request is not valid HTTP/1.1, or two programs could read it differently.
        BadRequest = "bad_request";
        /// The server speaks TLS only.
        HttpsRequired = "https_required";
        /// The tunnel asks for a password.
        Unauthorized = "unauthorized";
        /// Nothing is served at this name.
        TunnelNotFound = "tunnel_not_found";
        /// The method CONNECT.
        MethodNotAllowed = "method_not_allowed";
        /// The request did not arrive in time.
        RequestTimeout = "request_timeout";
        /// What lies between cannot carry the body.
        RequestTooLarge = "request_too_large";
        /// The target is too long.
        UriTooLong = "uri_too_long";
        /// An expectation that nobody knows.
        ExpectationFailed = "expectation_failed";
        /// Too many headers, or too long ones.
        HeadersTooLarge = "headers_too_large";
        /// What lies between cannot carry WebSocket.
        UpgradeUnsupported = "upgrade_unsupported";
        /// The local service takes no connection.
        LocalUnreachable = "local_unreachable";
        /// The local service ended the connection before its answer was complete.
        LocalClosedEarly = "local_closed_early";
        /// The local service's answer is not HTTP/1.1.
        LocalInvalidResponse = "local_invalid_response";
        /// The local service did not answer in time.
        LocalTimeout = "local_timeout";
        /// What lies between cannot carry the answer.
        ResponseTooLarge = "response_too_large";
        /// The client lost its session and is expected back.
        TunnelOffline = "tunnel_offline";
        /// A bound was met.
        TooManyConnections = "too_many_connections";
        /// The server stops.
        ShuttingDown = "shutting_down";
        /// Another version of HTTP.
        HttpVersion = "http_version";
        /// The answer is the local service's: it refused the public host name.
        HostNotAllowed = "host_not_allowed";
    }
}
