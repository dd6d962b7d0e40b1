//! What the REST API says when it fails.

retunnel_proto::stable_codes! {
    /// Why a call failed: `code` of the answer.
    pub enum ApiCode {
        /// No token was given.
        AuthRequired = "auth_required";
        /// An account has this address already.
        EmailTaken = "email_taken";
        /// The host name is none, or lies below the server's domain.
        HostnameInvalid = "hostname_invalid";
        /// The account has as many host names as it may have.
        HostnameLimit = "hostname_limit";
        /// The account has not registered this host name.
        HostnameNotRegistered = "hostname_not_registered";
        /// The host name belongs to another account.
        HostnameTaken = "hostname_taken";
        /// The request cannot be read.
        InvalidRequest = "invalid_request";
        /// The invitation is unknown or was used.
        InviteInvalid = "invite_invalid";
        /// Accounts are made by invitation only.
        InviteRequired = "invite_required";
        /// A lane is unknown, used or too late; said by the edge.
        LaneUnavailable = "lane_unavailable";
        /// The path has another method.
        MethodNotAllowed = "method_not_allowed";
        /// There is nothing at the path.
        NotFound = "not_found";
        /// Too many attempts from this address.
        RateLimited = "rate_limited";
        /// No accounts are made.
        RegistrationClosed = "registration_closed";
        /// The body is too large.
        RequestTooLarge = "request_too_large";
        /// The server stops.
        ShuttingDown = "shutting_down";
        /// The database does not answer.
        StoreUnavailable = "store_unavailable";
        /// The token was never known, or was replaced.
        TokenUnknown = "token_unknown";
        /// The token is unknown, revoked or expired.
        Unauthorized = "unauthorized";
        /// The path opens a session.
        UpgradeRequired = "upgrade_required";
    }
}
