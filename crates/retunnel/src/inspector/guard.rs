//! Access control. A page of another site in the user's browser must neither read nor change anything, even if its own name
//! resolves to this address (DNS rebinding). Scripts of the user may do both without a token.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq;

use super::failure::{Failure, FailureCode};

/// The header with the token of the pages.
const TOKEN: &str = "x-retunnel-token";
/// Pages may run this program's scripts and connect to it, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Checks requests.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) token: String,
    /// Host names allowed in addition to addresses and `localhost`.
    hosts: Vec<String>,
    is_loopback: bool,
}

impl Guard {
    pub(crate) fn new(address: SocketAddr, hosts: &[String]) -> Self {
        let token = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 32]>());
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { token, hosts, is_loopback: address.ip().is_loopback() }
    }

    /// # Errors
    /// Why the request is rejected.
    fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
        let reject = |code, detail: &str| Err(Failure::new(StatusCode::FORBIDDEN, code, detail));
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next().map(|value| value.to_str().unwrap_or_default()), hosts.next()) {
            (Some(host), None) if self.allows(host) => host,
            _ => {
                return reject(
                    FailureCode::HostNotAllowed,
                    "the inspector does not answer to this host name; use its address, or allow the name with --inspect-host",
                );
            }
        };
        let origin = text(header::ORIGIN);
        let is_ours = origin.is_none_or(|origin| origin.strip_prefix("http://").is_some_and(|rest| rest == host));
        let fetch = text(header::HeaderName::from_static("sec-fetch-site"));
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        // Following a link to a page of the inspector is fine.
        let navigates = is_read && text(header::HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
        let is_foreign = !fetch.is_none_or(|site| matches!(site, "same-origin" | "none") || navigates);
        if !is_ours || is_foreign {
            return reject(FailureCode::OriginNotAllowed, "pages of other sites cannot use the inspector");
        }
        if is_read {
            return Ok(());
        }
        if let Some(token) = text(header::HeaderName::from_static(TOKEN)) {
            if bool::from(token.as_bytes().ct_eq(self.token.as_bytes())) {
                return Ok(());
            }
            return reject(FailureCode::TokenInvalid, "the page was loaded from an earlier run; reload it");
        }
        // A browser that sends a request for a page names its origin or its site, and cannot send JSON to another site
        // without a preflight. So a request with neither that does not look like a form comes from a script.
        let has_body = headers.contains_key(header::CONTENT_TYPE)
            || headers.contains_key(header::TRANSFER_ENCODING)
            || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        let is_json = text(header::CONTENT_TYPE).is_some_and(|kind| {
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        });
        let is_script = origin.is_none() && fetch.is_none() && (is_json || (!has_body && *method == Method::DELETE));
        if is_script {
            return Ok(());
        }
        reject(
            FailureCode::TokenRequired,
            "pages must send the inspector's token; scripts must send Content-Type: application/json",
        )
    }

    /// Whether a `Host` belongs to this program. An address cannot be rebound; a name could be.
    fn allows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        match bare.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || !self.is_loopback,
            Err(_) => {
                let name = name.to_ascii_lowercase();
                name == "localhost" || self.hosts.contains(&name)
            }
        }
    }
}

/// Rejects requests that are not allowed, and makes browsers strict with the rest.
pub(crate) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, method: Method, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                header::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                value.parse().expect("a value"),
            );
        }
        guard.check(&method, &map).map_err(|failure| failure.code.as_str())
    }

    fn local() -> Guard {
        Guard::new("127.0.0.1:4040".parse().expect("an address"), &["Box.lan".into()])
    }

    #[test]
    fn only_names_of_this_program_are_answered() {
        let guard = local();
        for host in ["127.0.0.1:4040", "localhost:4040", "LOCALHOST", "[::1]:9", "127.9.9.9", "box.lan:4040"] {
            assert_eq!(check(&guard, Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.test", "evil.test:4040", "localhost.evil.test", "192.168.1.1:4040", "", "[::1", "a.localhost"]
        {
            assert_eq!(check(&guard, Method::GET, &[("host", host)]), Err("host_not_allowed"), "{host}");
        }
        assert!(check(&guard, Method::GET, &[]).is_err());
        assert!(check(&guard, Method::GET, &[("host", "localhost"), ("host", "localhost")]).is_err());
        let open = Guard::new("0.0.0.0:4040".parse().expect("an address"), &[]);
        assert_eq!(check(&open, Method::GET, &[("host", "192.168.1.1:4040")]), Ok(()));
        assert!(check(&open, Method::GET, &[("host", "evil.test")]).is_err());
    }

    #[test]
    fn pages_of_other_sites_neither_read_nor_act() {
        let guard = local();
        let host = ("host", "localhost:4040");
        for foreign in [
            ("origin", "http://evil.test"),
            ("origin", "http://localhost:3000"),
            ("origin", "https://localhost:4040"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let headers = [host, foreign, ("content-type", "application/json"), (TOKEN, guard.token.as_str())];
                assert_eq!(check(&guard, method, &headers), Err("origin_not_allowed"), "{foreign:?}");
            }
        }
        let link = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(check(&guard, Method::GET, &link), Ok(()));
        assert!(check(&guard, Method::POST, &link).is_err());
    }

    #[test]
    fn pages_act_with_the_token_and_scripts_with_json() {
        let guard = local();
        let host = ("host", "localhost:4040");
        let ours = [host, ("origin", "http://localhost:4040"), ("sec-fetch-site", "same-origin")];
        let json = ("content-type", "application/json; charset=utf-8");
        assert_eq!(check(&guard, Method::POST, &[&ours[..], &[json]].concat()), Err("token_required"));
        assert_eq!(check(&guard, Method::POST, &[&ours[..], &[json, (TOKEN, "x")]].concat()), Err("token_invalid"));
        assert_eq!(check(&guard, Method::POST, &[&ours[..], &[json, (TOKEN, &guard.token)]].concat()), Ok(()));
        assert_eq!(check(&guard, Method::POST, &[host, json]), Ok(()));
        assert_eq!(check(&guard, Method::DELETE, &[host]), Ok(()));
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
            assert_eq!(check(&guard, Method::POST, &[host, ("content-type", kind)]), Err("token_required"), "{kind}");
        }
        assert_eq!(check(&guard, Method::POST, &[host]), Err("token_required"));
    }
}
