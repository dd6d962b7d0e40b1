//! Heads written anew: what the local service and the visitor get to read.

use std::{fmt::Write, net::IpAddr};

use bytes::{BufMut, Bytes, BytesMut};
use retunnel_proto::{
    dialect::v3::{StreamMode, StreamOpen},
    message::{ProxyRequest, ProxyResponse},
};

use crate::edge::{buffer::Draft, origin::LocalOrigin};

use super::{
    Framing,
    body::Decoder,
    body::Step,
    is_hop_by_hop,
    request::RequestHead,
    response::{self, ResponseHead},
    tokens,
};

/// What a request says about its visitor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visitor<'a> {
    pub(crate) address: IpAddr,
    /// The connection comes from a proxy whose `X-Forwarded-*` are believed.
    pub(crate) by_trusted_proxy: bool,
    /// The connection is.
    pub(crate) is_encrypted: bool,
    /// The tunnel's own password was checked: it is not the local service's business.
    pub(crate) strip_authorization: bool,
    /// What the local service shall take for its public address.
    pub(crate) local: Option<&'a LocalOrigin>,
}

impl Visitor<'_> {
    /// How the visitor reached this connection's other end.
    const fn scheme(self) -> &'static [u8] {
        if self.is_encrypted { b"https" } else { b"http" }
    }

    /// What the visitor sees in the place of the local service's own address.
    pub(crate) fn public_origin(self, head: &RequestHead) -> Vec<u8> {
        let trusted = |name| head.headers.get(name).filter(|_| self.by_trusted_proxy);
        let proto = trusted("x-forwarded-proto").unwrap_or(self.scheme());
        [proto, b"://", trusted("x-forwarded-host").unwrap_or(&head.authority)].concat()
    }
}

fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) {
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

/// Headers that tell who the visitor is, in every spelling that some application takes for one of them (row 23).
fn is_identity(name: &[u8]) -> bool {
    const NAMES: [&str; 8] = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-server",
        "x-forwarded-prefix",
        "x-real-ip",
    ];
    NAMES.iter().any(|known| {
        known.len() == name.len()
            && known.bytes().zip(name).all(|(a, b)| a == b.to_ascii_lowercase() || (a == b'-' && *b == b'_'))
    })
}

/// The headers of a request that go to the local service, in order: hop-by-hop ones and those that `Connection` names
/// are left out, the visitor's identity is ours.
fn forwarded(head: &RequestHead, visitor: Visitor<'_>, mut emit: impl FnMut(&[u8], &[u8])) {
    let named: Vec<&[u8]> = tokens(head.headers.all("connection")).collect();
    let shown_host = visitor.local.map_or(&head.authority[..], LocalOrigin::host);
    let mut host_written = false;
    for (name, value) in head.headers.iter() {
        if eq(name, "host") {
            emit(name, shown_host);
            host_written = true;
            continue;
        }
        if let (Some(local), true) = (visitor.local, eq(name, "origin")) {
            let public_host = head.headers.get("x-forwarded-host").filter(|_| visitor.by_trusted_proxy);
            emit(name, local.translate(value, public_host.unwrap_or(&head.authority)));
            continue;
        }
        let dropped = is_hop_by_hop(name)
            || eq(name, "content-length")
            || is_identity(name)
            || (visitor.local.is_some() && (eq(name, "x-original-host") || eq(name, "x-original-proto")))
            || (visitor.strip_authorization && eq(name, "authorization"))
            || (eq(name, "expect") && !head.expects_continue)
            || named.iter().any(|named| named.eq_ignore_ascii_case(name));
        if !dropped {
            emit(name, value);
        }
    }
    if !host_written {
        emit(b"Host", shown_host);
    }
    let mut chain = Draft::new();
    let (mut proto, mut host) = (None, None);
    if visitor.by_trusted_proxy {
        for value in head.headers.all("x-forwarded-for") {
            chain.extend_from_slice(value);
            chain.extend_from_slice(b", ");
        }
        proto = head.headers.get("x-forwarded-proto");
        host = head.headers.get("x-forwarded-host");
    }
    let _ = write!(chain, "{}", visitor.address);
    emit(b"X-Forwarded-For", &chain);
    let (proto, host) = (proto.unwrap_or(visitor.scheme()), host.unwrap_or(&head.authority));
    let Some(local) = visitor.local else {
        emit(b"X-Forwarded-Proto", proto);
        return emit(b"X-Forwarded-Host", host);
    };
    // Services compare these with Host and Origin; all four must tell the same.
    emit(b"X-Forwarded-Proto", local.scheme());
    emit(b"X-Forwarded-Host", local.host());
    emit(b"X-Original-Proto", proto);
    emit(b"X-Original-Host", host);
}

/// The head of a request for the local service.
pub(crate) fn request(head: &RequestHead, visitor: Visitor<'_>, out: &mut BytesMut) {
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
        // Trailers are passed on, and some services send them only to those who ask.
        put(out, b"Connection", b"TE");
        put(out, b"TE", b"trailers");
    }
    out.put_slice(b"\r\n");
}

/// How the body of an answer is framed for the visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) framing: Framing,
    /// The connection stays open afterwards.
    pub(crate) keep_alive: bool,
    pub(crate) visitor_is_http_11: bool,
}

/// The head of an answer for the visitor.
pub(crate) fn response(head: &ResponseHead, answer: Answer, out: &mut BytesMut) {
    out.reserve(head.len + 64);
    status_line(head.status, &head.reason, out);
    let named: Vec<&[u8]> = tokens(head.headers.all("connection")).collect();
    for (name, value) in head.headers.iter() {
        let names_framing = eq(name, "content-length");
        let announces_trailers = answer.framing == Framing::Chunked && eq(name, "trailer");
        let dropped = (is_hop_by_hop(name) && !announces_trailers)
            || (names_framing && !(head.body == Framing::None && head.status != 204 && head.status >= 200))
            || (!names_framing && named.iter().any(|named| named.eq_ignore_ascii_case(name)));
        if !dropped {
            put(out, name, value);
        }
    }
    match answer.framing {
        Framing::Length(length) => put_number(out, b"Content-Length", length),
        Framing::Chunked => put(out, b"Transfer-Encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
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

fn status_line(status: u16, reason: &[u8], out: &mut BytesMut) {
    let _ = write!(out, "HTTP/1.1 {status} ");
    out.put_slice(reason);
    out.put_slice(b"\r\n");
}

/// A request with its whole body as dialect 2 carries it: one value per name, `Connection: close`, own length.
pub(crate) fn proxy_request(head: &RequestHead, visitor: Visitor<'_>, body: Bytes) -> ProxyRequest {
    let mut headers: Vec<(String, String)> = Vec::new();
    forwarded(head, visitor, |name, value| {
        if eq(name, "expect") {
            return;
        }
        let (name, value) = (String::from_utf8_lossy(name).into_owned(), text(value));
        match headers.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some((known, joined)) => {
                joined.push_str(if known.eq_ignore_ascii_case("cookie") { "; " } else { ", " });
                joined.push_str(&value);
            }
            None => headers.push((name, value)),
        }
    });
    if !body.is_empty() || head.body != Framing::None {
        headers.push(("Content-Length".into(), body.len().to_string()));
    }
    headers.push(("Connection".into(), "close".into()));
    ProxyRequest {
        method: String::from_utf8_lossy(&head.method).into_owned(),
        path: text(head.path()),
        query: text(head.query()),
        headers,
        body,
    }
}

/// A request as dialect 3 carries it. What belongs to one hop of a WebSocket's handshake is left out, too.
pub(crate) fn stream_request(
    head: &RequestHead,
    visitor: Visitor<'_>,
    mode: StreamMode,
    body: Bytes,
    has_body: bool,
) -> StreamOpen {
    let mut headers = Vec::with_capacity(16);
    forwarded(head, visitor, |name, value| {
        let of_this_hop = eq(name, "expect")
            || (mode == StreamMode::WebSocket
                && ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"]
                    .iter()
                    .any(|hop| eq(name, hop)));
        if !of_this_hop {
            headers.push((String::from_utf8_lossy(name).into_owned(), text(value)));
        }
    });
    let length = match head.body {
        Framing::None | Framing::UntilClose => None,
        Framing::Length(length) => Some(length),
        Framing::Chunked if has_body => None,
        Framing::Chunked => Some(body.len() as u64),
    };
    headers.extend(length.map(|length| ("Content-Length".into(), length.to_string())));
    StreamOpen {
        // The session chooses both.
        stream_id: 0,
        tunnel_id: String::new(),
        mode,
        method: String::from_utf8_lossy(&head.method).into_owned(),
        path: text(&head.target),
        headers,
        body,
        has_body,
    }
}

/// The head of an answer that came as values; `None` when it cannot be one (row 26).
pub(crate) fn response_head(status: u16, headers: &[(String, String)], to_head: bool) -> Option<ResponseHead> {
    let mut raw = BytesMut::with_capacity(512);
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    status_line(status, reason.unwrap_or_default().as_bytes(), &mut raw);
    let was_chunked = headers.iter().any(|(name, _)| eq(name.as_bytes(), "transfer-encoding"));
    for (name, value) in headers {
        if value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) || name.bytes().any(|byte| byte <= b' ') {
            return None;
        }
        let frames = eq(name.as_bytes(), "transfer-encoding") || (was_chunked && eq(name.as_bytes(), "content-length"));
        if !frames {
            put(&mut raw, name.as_bytes(), value.as_bytes());
        }
    }
    raw.put_slice(b"\r\n");
    response::parse(&raw.freeze(), to_head).ok().flatten().filter(|head| head.status >= 200)
}

/// UTF-8 where it is, otherwise each byte as the Latin-1 character of its number.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// The answer of a 2.x client cannot be passed on: a header with line breaks, or a status that is none (row 26).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidAnswer;

/// A 2.x client's answer as a whole HTTP/1.1 message. `answer.framing` is not used: the length is always known.
///
/// # Errors
/// [`InvalidAnswer`]; nothing may be written then.
pub(crate) fn proxy_response(
    response: &ProxyResponse,
    to_head: bool,
    answer: Answer,
) -> Result<(BytesMut, Bytes), InvalidAnswer> {
    if !(200..=999).contains(&response.status) {
        return Err(InvalidAnswer);
    }
    let header = |wanted: &str| {
        response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    };
    let has_body = !to_head && response.status != 204 && response.status != 304;
    let chunked = header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let body = match (has_body, chunked) {
        (false, _) => Bytes::new(),
        (true, false) => response.body.clone(),
        (true, true) => dechunked(&response.body),
    };
    let connection = header("connection").unwrap_or_default();
    let mut out = BytesMut::with_capacity(512);
    let reason = http::StatusCode::from_u16(response.status).ok().and_then(|status| status.canonical_reason());
    status_line(response.status, reason.unwrap_or_default().as_bytes(), &mut out);
    for (name, value) in &response.headers {
        let name_is_token = !name.is_empty() && http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        let value = latin1(value);
        if !name_is_token || value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(InvalidAnswer);
        }
        let is_named =
            tokens(std::iter::once(connection.as_bytes())).any(|token| token.eq_ignore_ascii_case(name.as_bytes()));
        let keeps_length = !has_body && response.status != 204 && eq(name.as_bytes(), "content-length");
        if keeps_length || !(is_hop_by_hop(name.as_bytes()) || is_named || eq(name.as_bytes(), "content-length")) {
            put(&mut out, name.as_bytes(), &value);
        }
    }
    if has_body {
        put(&mut out, b"Content-Length", body.len().to_string().as_bytes());
    }
    if !answer.keep_alive {
        put(&mut out, b"Connection", b"close");
    } else if !answer.visitor_is_http_11 {
        put(&mut out, b"Connection", b"keep-alive");
    }
    out.put_slice(b"\r\n");
    Ok((out, body))
}

/// The clients decode header bytes as Latin-1; characters beyond it were UTF-8 from the start.
fn latin1(value: &str) -> Vec<u8> {
    value
        .chars()
        .map(|character| u8::try_from(u32::from(character)))
        .collect::<Result<Vec<_>, _>>()
        .unwrap_or_else(|_| value.as_bytes().to_vec())
}

/// The payload of a chunked body that may have been cut short or, from some clients, was never chunked at all.
fn dechunked(raw: &Bytes) -> Bytes {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut payload = BytesMut::with_capacity(raw.len());
    let mut at = 0;
    while !decoder.is_done() && at < raw.len() {
        match decoder.step(&raw[at..]) {
            Ok(Step { framing: 0, payload: 0 }) => break,
            Ok(step) => {
                payload.put_slice(&raw[at + step.framing..at + step.framing + step.payload]);
                at += step.framing + step.payload;
            }
            Err(_) if payload.is_empty() => return raw.clone(),
            Err(_) => break,
        }
    }
    payload.freeze()
}
