//! Stable error codes, for programs to read; `docs/errors.md` lists them. Codes are variants of enums, so that no other
//! code can be sent.

/// Declares an enum of stable codes and their texts.
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
            /// All codes.
            $visible const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The text of the code, as programs read it.
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
    /// Why the edge answered a visitor instead of the local service: the header `X-Retunnel-Error`, and `error` of
    /// [`crate::message::RequestSummary`].
    pub enum PageCode {
        /// The request is not valid HTTP/1.1, or it is ambiguous.
        BadRequest = "bad_request";
        /// The server accepts HTTPS only.
        HttpsRequired = "https_required";
        /// The tunnel asks for a password.
        Unauthorized = "unauthorized";
        /// No tunnel has this host name.
        TunnelNotFound = "tunnel_not_found";
        /// The method is CONNECT.
        MethodNotAllowed = "method_not_allowed";
        /// The request did not arrive in time.
        RequestTimeout = "request_timeout";
        /// The client's dialect cannot carry a body of this size.
        RequestTooLarge = "request_too_large";
        /// The target is too long.
        UriTooLong = "uri_too_long";
        /// The request has an `Expect` header with an unknown value.
        ExpectationFailed = "expectation_failed";
        /// The request has too many headers, or they are too long.
        HeadersTooLarge = "headers_too_large";
        /// The client's dialect cannot carry a WebSocket.
        UpgradeUnsupported = "upgrade_unsupported";
        /// The local service does not accept connections.
        LocalUnreachable = "local_unreachable";
        /// The local service closed the connection before its response was complete.
        LocalClosedEarly = "local_closed_early";
        /// The local service's response is not valid HTTP/1.1.
        LocalInvalidResponse = "local_invalid_response";
        /// The local service did not answer in time.
        LocalTimeout = "local_timeout";
        /// The client's dialect cannot carry a response of this size.
        ResponseTooLarge = "response_too_large";
        /// The client has lost its session and is expected to reconnect.
        TunnelOffline = "tunnel_offline";
        /// A limit of connections is reached.
        TooManyConnections = "too_many_connections";
        /// The server is stopping.
        ShuttingDown = "shutting_down";
        /// The request has an unsupported version of HTTP.
        HttpVersion = "http_version";
        /// The local service refused the public host name. The response is its own.
        HostNotAllowed = "host_not_allowed";
    }
}
