//! Maps failures to exit codes and hints, in one place (`docs/errors.md`).

use retunnel_client::{ApiError, ConnectError, RefusalCode, ServerEndpoint, TunnelError, ValidationError};
use retunnel_config::ConfigError;

/// A failure that retrying does not fix.
pub(crate) const FAILURE: u8 = 1;
/// Invalid options or files.
pub(crate) const USAGE: u8 = 2;
/// The server cannot be reached, or refuses the session or the tunnel permanently (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// Refused temporarily (`EX_TEMPFAIL`).
pub(crate) const TEMPORARY: u8 = 75;
/// The configuration file is not valid (`EX_CONFIG`).
pub(crate) const CONFIG: u8 = 78;

/// Another client of the same account took over the tunnel: not a failure of the server, and starting again would take the tunnel
/// away from the other client. The first number after those of `sysexits.h`.
pub(crate) const REPLACED: u8 = 79;

/// Ctrl+C before there was a result (128 plus the signal number, the convention of shells).
pub(crate) const INTERRUPTED: u8 = 130;

/// All exit codes.
#[cfg(test)]
pub(crate) const ALL: [u8; 8] = [0, FAILURE, USAGE, UNAVAILABLE, TEMPORARY, CONFIG, REPLACED, INTERRUPTED];

/// A usage error with its description.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// `retunnel register` created no account.
#[derive(Debug, thiserror::Error)]
#[error("cannot register with {server}: {source}")]
pub(crate) struct RegisterError {
    pub(crate) server: ServerEndpoint,
    pub(crate) source: ApiError,
}

/// `retunnel hostname` failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HostnameError(pub(crate) ApiError);

/// The inspector cannot listen on its address.
#[derive(Debug, thiserror::Error)]
#[error("the inspector cannot listen on {address}: {source}")]
pub(crate) struct InspectorListenError {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) source: std::io::Error,
}

/// A diagnosis that found a failure or was stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiagnosisError {
    /// The names of the checks that failed. Their problems were already printed.
    #[error("failed checks: {0}")]
    Failed(String),
    /// Some checks did not run.
    #[error("stopped before all checks were done")]
    Interrupted,
}

/// A failure and its causes in one line. A cause that the text already contains is not repeated.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The exit code of a failure, and a hint.
pub(crate) fn of(error: &anyhow::Error) -> (u8, Option<String>) {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<retunnel_client::Error>() {
            return match error {
                retunnel_client::Error::Connect(error) => connect(error),
                retunnel_client::Error::Tunnel(error) => tunnel(error),
                retunnel_client::Error::Validation(_) => (USAGE, None),
                retunnel_client::Error::Api(error) => (api(error), None),
                _ => (FAILURE, None),
            };
        }
        if let Some(error) = cause.downcast_ref::<ConnectError>() {
            return connect(error);
        }
        if let Some(error) = cause.downcast_ref::<TunnelError>() {
            return tunnel(error);
        }
        if let Some(error) = cause.downcast_ref::<ApiError>() {
            return (api(error), None);
        }
        if let Some(RegisterError { server, source }) = cause.downcast_ref::<RegisterError>() {
            return (api(source), register(server, source));
        }
        if let Some(HostnameError(error)) = cause.downcast_ref::<HostnameError>() {
            let is_unknown = matches!(error, ApiError::Status { status: 401, .. });
            let hint = "save a valid token with `retunnel authtoken --server SERVER`".to_owned();
            return (if is_unknown { UNAVAILABLE } else { api(error) }, is_unknown.then_some(hint));
        }
        if cause.is::<InspectorListenError>() {
            return (
                UNAVAILABLE,
                Some("choose another `--inspect-addr`, or disable the inspector with `--no-inspect`".into()),
            );
        }
        if let Some(error) = cause.downcast_ref::<DiagnosisError>() {
            return match error {
                DiagnosisError::Failed(_) => (UNAVAILABLE, None),
                DiagnosisError::Interrupted => (INTERRUPTED, None),
            };
        }
        if cause.is::<ConfigError>() {
            let hint = "fix the file or move it away; it was not changed";
            return (CONFIG, Some(hint.into()));
        }
        if cause.is::<Usage>() || cause.is::<ValidationError>() {
            return (USAGE, None);
        }
        #[cfg(feature = "server")]
        if let Some(error) = cause.downcast_ref::<retunnel_server::StartError>() {
            return start(error);
        }
    }
    (FAILURE, None)
}

#[cfg(feature = "server")]
fn start(error: &retunnel_server::StartError) -> (u8, Option<String>) {
    match error {
        retunnel_server::StartError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => (
            UNAVAILABLE,
            Some("another program uses this address; stop it, or choose another address with `--listen`".into()),
        ),
        retunnel_server::StartError::Listen { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => (
            UNAVAILABLE,
            Some(
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE: `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the \
                 systemd unit, or `sudo setcap cap_net_bind_service=+ep \"$(command -v retunnel)\"`; or listen on a higher \
                 port behind a proxy"
                    .into(),
            ),
        ),
        retunnel_server::StartError::Tls(_) => (
            CONFIG,
            Some("pass PEM files: the certificate with `--tls-cert` and its private key with `--tls-key`".into()),
        ),
        retunnel_server::StartError::Data { .. } => (CONFIG, Some("choose another directory with `--data-dir`".into())),
        _ => (UNAVAILABLE, None),
    }
}

fn connect(error: &ConnectError) -> (u8, Option<String>) {
    match error {
        ConnectError::Unreachable { endpoint, .. } if endpoint.is_default() && error.is_connection_refused() => {
            let hint = "no server is configured and none runs on this machine. Choose one with `--server HOST`, \
                        run your own with `retunnel server`, or try `retunnel demo`";
            (UNAVAILABLE, Some(hint.into()))
        }
        ConnectError::Refused { refusal, endpoint } => {
            let hint = match refusal.code {
                RefusalCode::Unauthorized | RefusalCode::AuthRequired => Some(token(endpoint)),
                _ => hint(&refusal.code),
            };
            (refused(&refusal.code), hint)
        }
        ConnectError::Register { source: ApiError::Connect(cause), .. } => connect(cause),
        ConnectError::Register { source, endpoint } => (api(source), register(endpoint, source)),
        ConnectError::Proxy { .. } => (
            UNAVAILABLE,
            Some(
                "the proxy is set by `--proxy`, RETUNNEL_PROXY, HTTPS_PROXY, HTTP_PROXY or ALL_PROXY; `--proxy none` disables it"
                    .into(),
            ),
        ),
        ConnectError::NotAServer { .. } => (
            UNAVAILABLE,
            Some(
                "check the address in `--server`; a server of the published clients 2.x or 3.x needs `--dialect 2` or \
                 `--dialect 3` once, which is then remembered"
                    .into(),
            ),
        ),
        ConnectError::OtherDomain { .. } => (UNAVAILABLE, Some("check the address in `--server`".into())),
        ConnectError::Tls { .. } if error.is_untrusted() => {
            let hint = "trust its certificate, or the authority that signed it, with `--ca-file FILE`, or install a \
                        certificate on the server that this machine trusts; `--insecure` skips verification, for tests only";
            (UNAVAILABLE, Some(hint.into()))
        }
        ConnectError::Tls { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
            let hint = "the server needs a certificate that is valid today and for the name in `--server`, as a \
                        subjectAltName; `--insecure` skips verification, for tests only";
            (UNAVAILABLE, Some(hint.into()))
        }
        _ => (UNAVAILABLE, None),
    }
}

/// What to do about a token that a server does not accept.
fn token(server: &ServerEndpoint) -> String {
    format!(
        "save a valid token with `retunnel authtoken --server {server}`, or create another account, which does not have the \
         names of this one, with `retunnel register --server {server}`"
    )
}

/// What to do if a server creates no account.
fn register(server: &ServerEndpoint, error: &ApiError) -> Option<String> {
    let ApiError::Status { status: 403, code, .. } = error else { return None };
    Some(match code.as_str() {
        "invite_required" => format!(
            "ask the server's operator for an invitation (`retunnel server invite` on the server), then run \
             `retunnel register --server {server} --invite CODE`; if you have a token: `retunnel authtoken --server {server}`"
        ),
        "invite_invalid" => format!(
            "an invitation is valid for one account; if it was used for yours, save its token with \
             `retunnel authtoken --server {server}`, otherwise ask the server's operator for another"
        ),
        _ => format!("ask the server's operator for a token and save it with `retunnel authtoken --server {server}`"),
    })
}

fn tunnel(error: &TunnelError) -> (u8, Option<String>) {
    match error {
        TunnelError::Refused(refusal) => (refused(&refusal.code), hint(&refusal.code)),
        TunnelError::SessionEnded(cause) => connect(cause),
        _ => (UNAVAILABLE, None),
    }
}

fn api(error: &ApiError) -> u8 {
    match error {
        ApiError::Status { status: 429 | 503, .. } => TEMPORARY,
        ApiError::Connect(_) => UNAVAILABLE,
        _ => FAILURE,
    }
}

const fn refused(code: &RefusalCode) -> u8 {
    if matches!(code, RefusalCode::Superseded) {
        return REPLACED;
    }
    if code.is_final() { UNAVAILABLE } else { TEMPORARY }
}

fn hint(code: &RefusalCode) -> Option<String> {
    let text = match code {
        RefusalCode::Superseded => {
            "another client of your account uses this address; give each its own `--subdomain`, or let only one run"
        }
        RefusalCode::NameUnavailable => "choose another `--subdomain`, or omit it to get a random one",
        RefusalCode::PortUnavailable | RefusalCode::PortOutOfRange => {
            "choose another `--remote-port`, or omit it to get any free port"
        }
        _ => return None,
    };
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    fn refused_by(status: u16) -> ConnectError {
        let source = ApiError::Status { status, code: String::new(), detail: "no".into(), retry_after: Some(9) };
        ConnectError::Register { endpoint: ServerEndpoint::default(), source }
    }

    #[test]
    fn an_unreachable_default_server_suggests_server_and_demo() {
        let error = ConnectError::Unreachable {
            endpoint: ServerEndpoint::default(),
            source: Arc::new(io::ErrorKind::ConnectionRefused.into()),
        };
        let (code, hint) = of(&anyhow::Error::from(error).context("connecting"));
        let hint = hint.expect("a hint");
        assert_eq!(code, UNAVAILABLE);
        assert!(hint.contains("`retunnel server`") && hint.contains("`retunnel demo`"), "{hint}");
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let code = |error: anyhow::Error| of(&error).0;
        assert_eq!(code(refused_by(429).into()), TEMPORARY);
        assert_eq!(code(refused_by(503).into()), TEMPORARY);
        assert_eq!(code(refused_by(403).into()), FAILURE);
        assert_eq!(code(Usage("x".into()).into()), USAGE);
        assert_eq!(code(ConfigError::Invalid { path: "a".into(), reason: "b".into() }.into()), CONFIG);
        assert_eq!(code(anyhow::anyhow!("anything")), FAILURE);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_port_that_only_root_may_use_names_the_capability() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
        let source = io::ErrorKind::PermissionDenied.into();
        let (code, hint) = of(&retunnel_server::StartError::Listen { address, source }.into());
        assert_eq!(code, UNAVAILABLE);
        assert!(hint.expect("a hint").contains("AmbientCapabilities=CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn a_refused_registration_names_the_command() {
        let of = |code: &str| {
            let code = code.to_owned();
            let source = ApiError::Status { status: 403, code, detail: "no".into(), retry_after: None };
            of(&ConnectError::Register { endpoint: ServerEndpoint::default(), source }.into()).1.expect("a hint")
        };
        assert!(of("invite_required").contains("`retunnel register --server localhost:6400 --invite CODE`"));
        assert!(of("invite_invalid").contains("ask the server's operator for another"));
        assert!(of("registration_closed").contains("`retunnel authtoken --server localhost:6400`"));
    }

    #[test]
    fn a_cause_is_not_repeated() {
        let error = anyhow::anyhow!("deep").context("cannot do it: deep").context("starting");
        assert_eq!(text(&error), "starting: cannot do it: deep");
    }
}
