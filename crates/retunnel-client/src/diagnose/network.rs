//! The path to the server: proxy, name, connection, encryption.

use std::{io, net::IpAddr, net::SocketAddr, time::Duration};

use super::{
    certificate,
    check::{Finding, Problem, plain},
};
use crate::{
    endpoint::{ServerEndpoint, is_loopback},
    error::{ConnectError, RefusedCertificate},
    transport::{
        Dialer, Socket,
        dialer::for_a_link,
        proxy::{Proxies, Route},
        race::{Attempt, Race},
    },
    trust::Watch,
};
use rustls::CertificateError;
use serde_json::json;

/// How long the attempts may take together; less than the whole check, so that each one is reported.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);
/// Addresses that are tried.
const MAX_ADDRESSES: usize = 16;

/// Which proxy applies, and why.
pub(super) fn proxy(server: &ServerEndpoint, proxies: &Proxies) -> Finding {
    let (through, variable, found) = match proxies.route(server.host(), server.port(), server.is_tls()) {
        Route::Through(proxy, Some(variable)) => (Some(proxy), Some(variable), format!("{proxy}, from {variable}")),
        Route::Through(proxy, None) => (Some(proxy), None, format!("{proxy}")),
        Route::Direct => (None, None, "none is configured".into()),
        Route::Loopback => {
            (None, None, "none for a server on this machine, although one is configured for others".into())
        }
        Route::Excepted => (None, None, format!("none for {}: NO_PROXY lists it", server.host())),
    };
    Finding::fine(found).with(json!({ "proxy": through.map(ToString::to_string), "variable": variable }))
}

/// The addresses of the server, or of its proxy.
pub(super) async fn look_up(dialer: &Dialer) -> (Finding, Option<Vec<SocketAddr>>) {
    let (host, port) = match &dialer.proxy {
        Some(proxy) => proxy.address(),
        None => (dialer.endpoint.host(), dialer.endpoint.port()),
    };
    let addresses: Vec<SocketAddr> = match dialer.look_up(host, port).await {
        Ok(found) => found.into_iter().take(MAX_ADDRESSES).collect(),
        Err(error) => {
            let (problem, whose) = match &dialer.proxy {
                Some(_) => (Problem::ProxyFailed, "the proxy's name "),
                None => (Problem::NameNotFound, ""),
            };
            let finding = Finding::failed(problem, format!("{whose}`{host}` has no address: {error}"));
            return (finding.with(json!({ "name": host })), None);
        }
    };
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let list = addresses.iter().map(|address| {
        let kind = if address.is_ipv4() { "v4" } else { "v6" };
        format!("{} ({kind})", address.ip())
    });
    let list = list.collect::<Vec<_>>().join(", ");
    let found = match &dialer.proxy {
        Some(_) if is_number(dialer.endpoint.host()) => format!("the proxy {host}: {list}"),
        Some(proxy) if proxy.wants_address() => {
            // This proxy needs the server's address.
            if let Err(source) = dialer.look_up(dialer.endpoint.host(), dialer.endpoint.port()).await {
                let error = ConnectError::resolve(&dialer.endpoint, source);
                return (Finding::failed(Problem::NameNotFound, error.to_string()), None);
            }
            format!("the proxy {host}: {list}; {} is looked up here as well", dialer.endpoint.host())
        }
        Some(_) => format!("the proxy {host}: {list}; it looks up {} itself", dialer.endpoint.host()),
        None if is_number(host) => format!("{host} is an address"),
        None => format!("{host}: {list}"),
    };
    (Finding::fine(found).with(json!({ "name": host, "addresses": shown })), Some(addresses))
}

fn is_number(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}

/// A connection whose bytes reach the server.
pub(super) async fn connect(dialer: &Dialer, addresses: &[SocketAddr]) -> (Finding, Option<Socket>) {
    if let Some(proxy) = &dialer.proxy {
        return match dialer.dial().await {
            Ok(socket) => {
                let server = dialer.endpoint.authority();
                (Finding::fine(format!("{proxy} connects to {server}")), Some(socket))
            }
            Err(error @ ConnectError::Proxy { .. }) => (Finding::failed(Problem::ProxyFailed, error.to_string()), None),
            Err(error) => (Finding::failed(Problem::Unreachable, error.to_string()), None),
        };
    }
    let mut race = Race::new(addresses, ADDRESS_WITHIN);
    let mut results = Vec::with_capacity(addresses.len());
    while let Some(attempt) = race.next().await {
        if attempt.result.is_ok() {
            // A session would stop here; the others are checked as well.
            race.start_all();
        }
        results.push(attempt);
    }
    let found = results.iter().map(described).collect::<Vec<_>>().join("; ");
    let details = json!({ "addresses": results.iter().map(|Attempt { address, result, took }| json!({
        "address": address.to_string(), "connected": result.is_ok(), "took_ms": took.as_secs_f64() * 1e3,
        "error": result.as_ref().err().map(ToString::to_string),
    })).collect::<Vec<_>>() });
    let all = results.len();
    let answered = results.iter().filter(|attempt| attempt.result.is_ok()).count();
    let all_refuse = results
        .iter()
        .all(|attempt| attempt.result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused));
    let socket = results.into_iter().find_map(|attempt| attempt.result.ok());
    let socket = socket.map(|socket| Socket::Plain(for_a_link(socket)));
    let finding = match answered {
        0 if all_refuse => Finding::failed(Problem::ConnectionRefused, found),
        0 => Finding::failed(Problem::Unreachable, found),
        // `localhost` has two addresses and most programs listen on one.
        _ if answered < all && !is_loopback(dialer.endpoint.host()) => {
            Finding::warning(Problem::PartlyUnreachable, found)
        }
        _ => Finding::fine(found),
    };
    (finding.with(details), socket)
}

fn described(Attempt { address, result, took }: &Attempt) -> String {
    match result {
        Ok(_) => format!("{address} answers in {:.1} ms", took.as_secs_f64() * 1e3),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => format!("nothing listens at {address}"),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            format!("{address} does not answer within {:.0} s", took.as_secs_f64())
        }
        Err(error) => format!("{address}: {error}"),
    }
}

/// The TLS handshake and the certificate.
pub(super) async fn secure(dialer: &Dialer, socket: Socket, watch: &Watch) -> (Finding, Option<Socket>) {
    if !dialer.endpoint.is_tls() {
        let details = json!({ "encrypted": false });
        let finding = if is_loopback(dialer.endpoint.host()) {
            Finding::fine("not encrypted; the traffic stays on this machine")
        } else {
            let found = "not encrypted: others on the network can read the traffic, including the token";
            Finding::warning(Problem::NotEncrypted, found)
        };
        return (finding.with(details), Some(socket));
    }
    let result = dialer.secure(socket).await;
    let seen = watch.seen().clone();
    let certificate = seen.certificate.as_deref().and_then(certificate::read);
    let shown = certificate.as_ref().map_or_else(|| "no certificate".to_owned(), ToString::to_string);
    let details = json!({
        "encrypted": true, "version": seen.version, "vouched_by": dialer.trust.authorities(),
        "certificate": certificate.as_ref().map(certificate::Certificate::json),
    });
    let finding = match &result {
        Ok(_) if dialer.trust.is_everything() => {
            let found = format!("{}, {shown}; not checked", seen.version.unwrap_or("TLS"));
            Finding::warning(Problem::CertificateNotChecked, found)
        }
        Ok(_) => {
            let found =
                format!("{}, {shown}; trusted by {}", seen.version.unwrap_or("TLS"), dialer.trust.authorities());
            if certificate.is_some_and(|certificate| certificate.expires_soon()) {
                Finding::warning(Problem::CertificateExpiresSoon, found)
            } else {
                Finding::fine(found)
            }
        }
        Err(error) => {
            let (problem, why) = why_not(error, dialer.endpoint.host());
            let found = if seen.certificate.is_some() { format!("{why}; the server shows {shown}") } else { why };
            Finding::failed(problem, found)
        }
    };
    (finding.with(details), result.ok())
}

fn why_not(error: &ConnectError, host: &str) -> (Problem, String) {
    let ConnectError::Tls { source, .. } = error else { return (Problem::TlsFailed, plain(&error.to_string())) };
    let Some(refused) = RefusedCertificate::of(source) else {
        return (Problem::TlsFailed, plain(&source.to_string()));
    };
    match &refused.0 {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (Problem::CertificateExpired, "the certificate has expired by this machine's clock".into())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (Problem::CertificateNotYetValid, "the certificate is not valid yet by this machine's clock".into())
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (Problem::CertificateWrongName, format!("the certificate is not for `{host}`"))
        }
        CertificateError::UnknownIssuer => {
            (Problem::CertificateUntrusted, "no trusted authority signed the certificate".into())
        }
        _ if refused.is_self_signed() => {
            (Problem::CertificateUntrusted, "the certificate is self-signed and not among the trusted ones".into())
        }
        other => {
            (Problem::CertificateUntrusted, format!("the certificate is not accepted: {}", plain(&other.to_string())))
        }
    }
}
