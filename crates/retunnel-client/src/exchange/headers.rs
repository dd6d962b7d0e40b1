//! Headers between visitor and local service: which stay on one connection, and which address each side sees.

use hyper::{
    HeaderMap, Request,
    header::{self, HeaderName, HeaderValue},
};
use retunnel_proto::{
    http1::is_hop_by_hop,
    rules::{LocalOrigin, RESTORED},
};

/// Removes headers that concern one connection only, and those that `Connection` names.
pub(super) fn strip_hop(headers: &mut HeaderMap) {
    let named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH));
    let known = headers.keys().filter(|name| is_hop_by_hop(name.as_str().as_bytes())).cloned();
    for name in named.chain(known).collect::<Vec<HeaderName>>() {
        headers.remove(name);
    }
}

/// Shows the local service its own address instead of the public one, as servers do it on the native link. Returns the
/// public origin.
pub(super) fn localize(local: &LocalOrigin, headers: &mut HeaderMap) -> Vec<u8> {
    const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let value = |headers: &HeaderMap, name: &HeaderName| headers.get(name).cloned();
    let host = value(headers, &header::HOST).or_else(|| value(headers, &HOST));
    let host = host.unwrap_or(HeaderValue::from_static(""));
    let proto = value(headers, &PROTO).unwrap_or(HeaderValue::from_static("http"));
    let set = |headers: &mut HeaderMap, name: HeaderName, bytes: &[u8]| {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.insert(name, value);
        }
    };
    if let Some(origin) = value(headers, &header::ORIGIN) {
        set(headers, header::ORIGIN, local.translate(origin.as_bytes(), host.as_bytes()));
    }
    set(headers, header::HOST, local.host());
    set(headers, HOST, local.host());
    set(headers, PROTO, local.scheme());
    set(headers, HeaderName::from_static("x-original-host"), host.as_bytes());
    set(headers, HeaderName::from_static("x-original-proto"), proto.as_bytes());
    [proto.as_bytes(), b"://", host.as_bytes()].concat()
}

/// Replaces the local service's own address in an answer by the public one.
pub(super) fn restore(local: &LocalOrigin, headers: &mut HeaderMap, public_origin: &[u8]) {
    for name in RESTORED {
        let restored = headers.get(name).and_then(|value| local.restored(value.as_bytes(), public_origin));
        if let Some(value) = restored.and_then(|value| HeaderValue::from_bytes(&value).ok()) {
            headers.insert(name, value);
        }
    }
}

/// A request's head as HTTP/1.1 writes it.
pub(super) fn head_of<B>(request: &Request<B>) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
    for (name, value) in request.headers() {
        head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Headers in order, as texts of a dialect.
pub(crate) fn texts(headers: &HeaderMap, text: fn(&[u8]) -> String) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}

/// Bytes of a header as 2.x carries them.
pub(crate) fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Bytes of a header as 3.x carries them. What is not UTF-8 it cannot carry, so the nearest text is sent.
pub(crate) fn utf_8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| latin_1(bytes))
}

/// The visitor's address as the server's headers name it.
pub(crate) fn visitor_in(headers: &[(String, String)]) -> Option<&str> {
    let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))?;
    value.split(',').next().map(str::trim)
}
