//! Refusals by the codes of the published clients. A client stops after some of them, retries some without a limit, and all
//! others a few times (`docs/protocol.md`, dialect 3).

use crate::message::RefusalCode;

/// The published code for a refusal. `by_path`: a path tunnel was requested, which has separate codes.
#[must_use]
pub fn error_code(code: &RefusalCode, by_path: bool) -> &str {
    match code {
        RefusalCode::Unauthorized => "UNAUTHORIZED",
        RefusalCode::AuthRequired => "AUTH_REQUIRED",
        RefusalCode::NameInvalid if by_path => "INVALID_PATH",
        RefusalCode::NameReserved | RefusalCode::NameUnavailable if by_path => "PATH_TAKEN",
        RefusalCode::TunnelLimit if by_path => "PATH_LIMIT",
        // The only code for an unavailable name after which every version stops at once.
        RefusalCode::NameInvalid
        | RefusalCode::NameReserved
        | RefusalCode::NameUnavailable
        | RefusalCode::TunnelLimit
        | RefusalCode::PortOutOfRange
        | RefusalCode::PortUnavailable => "SUBDOMAIN_UNAVAILABLE",
        // `HostnameIgnored` is found by clients and is never sent.
        RefusalCode::HostnameNotRegistered | RefusalCode::HostnameIgnored => "HOSTNAME_NOT_REGISTERED",
        RefusalCode::HostnameNotVerified => "HOSTNAME_NOT_VERIFIED",
        RefusalCode::HostnameTaken => "HOSTNAME_TAKEN",
        RefusalCode::HostnameInvalid => "INVALID_HOSTNAME",
        RefusalCode::TcpDisabled => "TCP_DISABLED",
        RefusalCode::InvalidRequest | RefusalCode::UnsupportedVersion | RefusalCode::DialectUnsupported => {
            "UNSUPPORTED_PROTOCOL"
        }
        RefusalCode::Superseded => "SUBDOMAIN_TAKEN",
        RefusalCode::PortsExhausted => "POOL_EXHAUSTED",
        RefusalCode::Internal => "TUNNEL_CREATE_FAILED",
        RefusalCode::RateLimited | RefusalCode::SessionLimit | RefusalCode::ShuttingDown => "SERVICE_UNAVAILABLE",
        RefusalCode::Other(text) => text,
    }
}

/// The meaning of a published code. Codes that are not final are kept unchanged and count as temporary.
#[must_use]
pub fn refusal_code(code: &str) -> RefusalCode {
    match code {
        "UNAUTHORIZED" => RefusalCode::Unauthorized,
        "AUTH_REQUIRED" => RefusalCode::AuthRequired,
        "INVALID_PATH" => RefusalCode::NameInvalid,
        "SUBDOMAIN_UNAVAILABLE" | "PATH_TAKEN" => RefusalCode::NameUnavailable,
        "PATH_LIMIT" => RefusalCode::TunnelLimit,
        "HOSTNAME_NOT_REGISTERED" => RefusalCode::HostnameNotRegistered,
        "HOSTNAME_NOT_VERIFIED" => RefusalCode::HostnameNotVerified,
        "HOSTNAME_TAKEN" => RefusalCode::HostnameTaken,
        "INVALID_HOSTNAME" => RefusalCode::HostnameInvalid,
        "TCP_DISABLED" => RefusalCode::TcpDisabled,
        "UNSUPPORTED_PROTOCOL" => RefusalCode::InvalidRequest,
        "POOL_EXHAUSTED" => RefusalCode::PortsExhausted,
        "TUNNEL_CREATE_FAILED" => RefusalCode::Internal,
        other => RefusalCode::Other(other.chars().take(64).collect()),
    }
}
