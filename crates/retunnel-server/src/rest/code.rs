//! Stable codes of the REST API's failures.

retunnel_proto::stable_codes! {
    /// Why a call failed: `code` of the answer.
    pub enum ApiCode {
        /// No token was given.
        AuthRequired = "auth_required";
        /// An account has this address already.
        EmailTaken = "email_taken";
        /// The host name is not valid, or is below the server's domain.
        HostnameInvalid = "hostname_invalid";
        /// The account has reached its limit of host names.
        HostnameLimit = "hostname_limit";
        /// The account has not registered this host name.
        HostnameNotRegistered = "hostname_not_registered";
        /// The host name belongs to another account.
        HostnameTaken = "hostname_taken";
        /// The request is not valid.
        InvalidRequest = "invalid_request";
        /// The invitation is unknown or was used.
        InviteInvalid = "invite_invalid";
        /// Registration requires an invitation.
        InviteRequired = "invite_required";
        /// A lane is unknown, used or too late.
        LaneUnavailable = "lane_unavailable";
        /// The path does not support the method.
        MethodNotAllowed = "method_not_allowed";
        /// The path does not exist.
        NotFound = "not_found";
        /// Too many attempts from this address.
        RateLimited = "rate_limited";
        /// Registration is closed.
        RegistrationClosed = "registration_closed";
        /// The body is too large.
        RequestTooLarge = "request_too_large";
        /// The server is stopping.
        ShuttingDown = "shutting_down";
        /// The database does not answer.
        StoreUnavailable = "store_unavailable";
        /// The token is unknown or was replaced.
        TokenUnknown = "token_unknown";
        /// The token is unknown, revoked or expired.
        Unauthorized = "unauthorized";
        /// The path opens a session.
        UpgradeRequired = "upgrade_required";
    }
}
