//! Rewritten heads: what the local service and the visitor receive.

use std::{
    fmt::{self, Write},
    net::IpAddr,
};

use bytes::{BufMut, BytesMut};

use super::{Framing, is_hop_by_hop, request::RequestHead, response::ResponseHead, tokens};
use crate::rules::{LocalOrigin, TRANSLATED};

/// What a forwarded request says about its visitor, and what it hides.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// The peer of the visitor's connection.
    pub address: IpAddr,
    /// Whether that peer is a proxy whose `X-Forwarded-*` headers are trusted.
    pub by_trusted_proxy: bool,
    /// Whether the visitor's connection uses TLS.
    pub is_encrypted: bool,
    /// Whether the tunnel's own password was checked; then `Authorization` is not forwarded.
    pub strip_authorization: bool,
    /// The origin that the local service sees instead of the public one.
    pub local: Option<&'a LocalOrigin>,
}

impl Visitor<'_> {
    /// The scheme of the visitor's own connection.
    const fn scheme(self) -> &'static [u8] {
        if self.is_encrypted { b"https" } else { b"http" }
    }

    /// The origin that the visitor sees in its address bar.
    #[must_use]
    pub fn public_origin(self, head: &RequestHead) -> Vec<u8> {
        let trusted = |name| head.headers.get(name).filter(|_| self.by_trusted_proxy);
        let proto = trusted("x-forwarded-proto").unwrap_or(self.scheme());
        [proto, b"://", trusted("x-forwarded-host").unwrap_or(&head.authority)].concat()
    }
}

/// Writes one header line.
pub fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_number(out: &mut BytesMut, name: &[u8], number: u64) {
    out.put_slice(name);
    // Writing to memory does not fail.
    let _ = write!(out, ": {number}\r\n");
}

fn eq(name: &[u8], other: &str) -> bool {
    name.eq_ignore_ascii_case(other.as_bytes())
}

/// Whether `name` starts with `known`, in any spelling that an application may take for it: gateways turn all separators
/// into one.
fn is_like(name: &[u8], known: &str) -> bool {
    name.len() >= known.len()
        && known
            .bytes()
            .zip(name)
            .all(|(a, b)| a == b.to_ascii_lowercase() || (a == b'-' && !b.is_ascii_alphanumeric()))
}

/// Headers that this side writes itself.
fn is_own(name: &[u8]) -> bool {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
        .iter()
        .any(|known| known.len() == name.len() && is_like(name, known))
}

/// Headers by which applications recognize a visitor, its connection or the page that it asks for. Only proxies may set
/// them (reliability row 23).
fn is_identity(name: &[u8]) -> bool {
    const NAMES: [&str; 13] = [
        "forwarded",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-originating-ip",
        "x-remote-ip",
        "x-remote-addr",
        "x-original-url",
        "x-rewrite-url",
        "true-client-ip",
        "cf-connecting-ip",
        "front-end-https",
        "fastly-client-ip",
    ];
    is_like(name, "x-forwarded-") || NAMES.iter().any(|known| known.len() == name.len() && is_like(name, known))
}

/// Emits the headers of a request for the local service, in order. Hop-by-hop headers and those that `Connection` names
/// are left out; headers that identify the visitor are replaced by ours.
pub fn forwarded(head: &RequestHead, visitor: Visitor<'_>, mut emit: impl FnMut(&[u8], &[u8])) {
    let named: Vec<&[u8]> = tokens(head.headers.all("connection")).collect();
    let shown_host = visitor.local.map_or(&head.authority[..], LocalOrigin::host);
    let mut host_written = false;
    for (name, value) in head.headers.iter() {
        if eq(name, "host") {
            emit(name, shown_host);
            host_written = true;
            continue;
        }
        if let Some(local) = visitor.local
            && TRANSLATED.iter().any(|translated| eq(name, translated))
        {
            let public_host = head.headers.get("x-forwarded-host").filter(|_| visitor.by_trusted_proxy);
            emit(name, &local.translate(value, public_host.unwrap_or(&head.authority)));
            continue;
        }
        let dropped = is_hop_by_hop(name)
            || eq(name, "content-length")
            || is_own(name)
            || (!visitor.by_trusted_proxy && is_identity(name))
            // Gateways make it the variable HTTP_PROXY, which programs take for the proxy of their own requests.
            || eq(name, "proxy")
            || (visitor.local.is_some() && (eq(name, "x-original-host") || eq(name, "x-original-proto")))
            || (visitor.strip_authorization && eq(name, "authorization"))
            || (eq(name, "expect") && !head.expects_continue)
            || eq(name, "http2-settings")
            || named.iter().any(|named| named.eq_ignore_ascii_case(name));
        if !dropped {
            emit(name, value);
        }
    }
    if !host_written {
        emit(b"Host", shown_host);
    }
    let address = AddressText::of(visitor.address);
    let (mut proto, mut host) = (None, None);
    if visitor.by_trusted_proxy {
        let mut chain = Vec::new();
        for value in head.headers.all("x-forwarded-for") {
            chain.extend_from_slice(value);
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(address.as_bytes());
        emit(b"X-Forwarded-For", &chain);
        proto = head.headers.get("x-forwarded-proto");
        host = head.headers.get("x-forwarded-host");
    } else {
        emit(b"X-Forwarded-For", address.as_bytes());
    }
    let (proto, host) = (proto.unwrap_or(visitor.scheme()), host.unwrap_or(&head.authority));
    let Some(local) = visitor.local else {
        emit(b"X-Forwarded-Proto", proto);
        return emit(b"X-Forwarded-Host", host);
    };
    // Services compare these with Host and Origin; all four must agree.
    emit(b"X-Forwarded-Proto", local.scheme());
    emit(b"X-Forwarded-Host", local.host());
    emit(b"X-Original-Proto", proto);
    emit(b"X-Original-Host", host);
}

/// An IP address as text, without an allocation for each request.
struct AddressText {
    text: [u8; Self::LONGEST],
    len: usize,
}

impl AddressText {
    /// `INET6_ADDRSTRLEN` less its terminating zero.
    const LONGEST: usize = 45;

    fn of(address: IpAddr) -> Self {
        let mut text = Self { text: [0; Self::LONGEST], len: 0 };
        // The longest address fits.
        let _ = write!(text, "{address}");
        text
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

impl Write for AddressText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.len + part.len();
        self.text.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Writes the head of a request for the local service.
pub fn request(head: &RequestHead, visitor: Visitor<'_>, out: &mut BytesMut) {
    out.reserve(head.len + 160);
    out.put_slice(&head.method);
    out.put_u8(b' ');
    out.put_slice(&head.target);
    out.put_slice(b" HTTP/1.1\r\n");
    forwarded(head, visitor, |name, value| put(out, name, value));
    match head.body {
        Framing::Length(length) => put_number(out, b"Content-Length", length),
        Framing::Chunked => put(out, b"Transfer-Encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
    }
    if let Some(protocols) = &head.upgrade {
        put(out, b"Connection", b"Upgrade");
        put(out, b"Upgrade", protocols);
    } else if tokens(head.headers.all("te")).any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
        // Trailers are passed on, and some services send them only on request.
        put(out, b"Connection", b"TE");
        put(out, b"TE", b"trailers");
    }
    out.put_slice(b"\r\n");
}

/// How the body of an answer is framed for the visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Framing towards the visitor.
    pub framing: Framing,
    /// Whether the connection stays open afterwards.
    pub keep_alive: bool,
    /// Whether the visitor speaks HTTP/1.1.
    pub visitor_is_http_11: bool,
}

/// Writes the head of an answer for the visitor.
pub fn response(head: &ResponseHead, answer: Answer, out: &mut BytesMut) {
    out.reserve(head.len + 64);
    status_line(head.status, &head.reason, out);
    let named: Vec<&[u8]> = tokens(head.headers.all("connection")).collect();
    for (name, value) in head.headers.iter() {
        let announces_trailers = answer.framing == Framing::Chunked && eq(name, "trailer");
        let dropped = (is_hop_by_hop(name) && !announces_trailers)
            || eq(name, "content-length")
            || named.iter().any(|named| named.eq_ignore_ascii_case(name));
        if !dropped {
            put(out, name, value);
        }
    }
    match (answer.framing, head.length) {
        (Framing::Length(length), _) => put_number(out, b"Content-Length", length),
        (Framing::Chunked, _) => put(out, b"Transfer-Encoding", b"chunked"),
        // Of the body that another method would get.
        (Framing::None, Some(length)) if head.status >= 200 && head.status != 204 => {
            put_number(out, b"Content-Length", length);
        }
        (Framing::None | Framing::UntilClose, _) => {}
    }
    if head.status == 101 {
        put(out, b"Connection", b"Upgrade");
        for protocols in head.headers.all("upgrade") {
            put(out, b"Upgrade", protocols);
        }
    } else if !answer.keep_alive && head.status >= 200 {
        put(out, b"Connection", b"close");
    } else if !answer.visitor_is_http_11 && head.status >= 200 {
        put(out, b"Connection", b"keep-alive");
    }
    out.put_slice(b"\r\n");
}

/// Writes the first line of an answer.
pub fn status_line(status: u16, reason: &[u8], out: &mut BytesMut) {
    let _ = write!(out, "HTTP/1.1 {status} ");
    out.put_slice(reason);
    out.put_slice(b"\r\n");
}
