//! The head of a visitor's request.

use std::mem::MaybeUninit;

use bytes::Bytes;

use thiserror::Error;

use super::{Framing, HeadLimits, Headers, INLINE_HEADERS, MAX_TARGET, declared_framing, host::Host, tokens};

/// A request's head: checked, and in the spelling it came in.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Bytes of the head, its empty line included.
    pub len: usize,
    /// Method, case kept.
    pub method: Bytes,
    /// Path and query as received, without scheme and authority; `*` for `OPTIONS *`.
    pub target: Bytes,
    /// HTTP/1.1, or 1.0.
    pub is_http_11: bool,
    /// Headers as received.
    pub headers: Headers,
    /// How the body is framed.
    pub body: Framing,
    /// Whether the visitor lets the connection stay open.
    pub keep_alive: bool,
    /// The visitor waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// The protocols of `Upgrade`, when the request asks for one.
    pub upgrade: Option<Bytes>,
    /// What the request is routed by: the authority of an absolute target, else the Host header.
    pub host: Host,
    /// The value for the Host header.
    pub authority: Bytes,
}

/// Why a request's head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request breaks a rule of HTTP/1.1, or two programs could read it differently.
    #[error("{0}")]
    Malformed(&'static str),
    /// The method CONNECT.
    #[error("the method CONNECT is not served")]
    MethodNotAllowed,
    /// The target is longer than [`MAX_TARGET`].
    #[error("the target is too long")]
    UriTooLong,
    /// A head beyond its [`HeadLimits`].
    #[error("the head is too large")]
    HeadersTooLarge,
    /// An expectation other than `100-continue`.
    #[error("the expectation is not known")]
    ExpectationFailed,
    /// Another major version of HTTP.
    #[error("the version of HTTP is not supported")]
    HttpVersion,
}

impl RequestHead {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name)
    }

    /// The target without its query.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.target.split(|byte| *byte == b'?').next().unwrap_or_default()
    }

    /// The query without `?`; empty when there is none.
    #[must_use]
    pub fn query(&self) -> &[u8] {
        let path = self.path().len();
        self.target.get(path + 1..).unwrap_or_default()
    }

    /// Whether the request asks for the head of an answer only.
    #[must_use]
    pub fn is_head(&self) -> bool {
        &self.method[..] == b"HEAD"
    }
}

/// Finds the end of a head. `scanned` keeps how far earlier calls scanned, so that a slow head costs no more than a
/// fast one.
///
/// # Errors
/// A line that does not end in CR LF, or a head beyond its limits.
pub fn find_end(received: &[u8], scanned: &mut usize, limits: HeadLimits) -> Result<Option<usize>, RequestError> {
    // A TLS handshake never has a line end to wait for.
    if received.first() == Some(&0x16) {
        return Err(RequestError::Malformed("this is a TLS handshake, and this port does not speak TLS: use http://"));
    }
    while let Some(offset) = received[*scanned..].iter().position(|byte| *byte == b'\n') {
        let line_end = *scanned + offset;
        if line_end == 0 || received[line_end - 1] != b'\r' {
            return Err(RequestError::Malformed("a line does not end in CR LF"));
        }
        *scanned = line_end + 1;
        if line_end >= 3 && &received[line_end - 3..=line_end] == b"\r\n\r\n" {
            return if line_end < limits.bytes { Ok(Some(line_end + 1)) } else { Err(RequestError::HeadersTooLarge) };
        }
    }
    *scanned = received.len();
    if received.len() < limits.bytes {
        return Ok(None);
    }
    // Which part is too long decides the status.
    let first_line = received.iter().position(|byte| *byte == b'\n').unwrap_or(received.len());
    Err(if first_line > MAX_TARGET { RequestError::UriTooLong } else { RequestError::HeadersTooLarge })
}

/// Parses a complete head.
///
/// # Errors
/// [`RequestError`]. The connection must be closed then: where the request ends is unknown.
pub fn parse(head: Bytes, limits: HeadLimits) -> Result<RequestHead, RequestError> {
    let mut storage = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
    let inline = &mut storage[..limits.lines.min(INLINE_HEADERS)];
    match parse_with(&head, inline) {
        Err(httparse::Error::TooManyHeaders) if limits.lines > INLINE_HEADERS => {
            parse_with(&head, Vec::with_capacity(limits.lines).spare_capacity_mut())
        }
        Err(httparse::Error::Token) if has_raw_target(&head) => return parse_raw_target(&head, limits),
        parsed => parsed,
    }
    .map_err(|error| match error {
        httparse::Error::TooManyHeaders => RequestError::HeadersTooLarge,
        httparse::Error::Version if has_space_in_target(&head) => {
            RequestError::Malformed("the target contains a space; it must be written as %20")
        }
        httparse::Error::Version => RequestError::HttpVersion,
        _ => RequestError::Malformed("the request cannot be parsed"),
    })?
}

/// The first line of a head.
fn first_line(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b'\r').next().unwrap_or_default()
}

fn has_space_in_target(head: &[u8]) -> bool {
    first_line(head).iter().filter(|byte| **byte == b' ').count() > 2
}

/// Whether the target is a path with bytes beyond ASCII. Browsers escape them; some programs send them as they are, and
/// servers take them.
fn has_raw_target(head: &[u8]) -> bool {
    let target = first_line(head).split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    target.starts_with(b"/") && !target.is_ascii()
}

/// Parses a head whose target has bytes beyond ASCII. httparse refuses those that are not UTF-8, so a stand-in of the same
/// length is parsed.
fn parse_raw_target(head: &Bytes, limits: HeadLimits) -> Result<RequestHead, RequestError> {
    let mut stand_in = head.to_vec();
    let line = first_line(head).len();
    for byte in stand_in[..line].iter_mut().filter(|byte| !byte.is_ascii()) {
        *byte = b'x';
    }
    let mut parsed = parse(stand_in.into(), limits)?;
    let start = parsed.method.len() + 1;
    parsed.target = head.slice(start..start + parsed.target.len());
    Ok(parsed)
}

fn parse_with<'a>(
    head: &'a Bytes,
    storage: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<Result<RequestHead, RequestError>, httparse::Error> {
    let mut request = httparse::Request::new(&mut []);
    Ok(match request.parse_with_uninit_headers(head, storage)? {
        httparse::Status::Complete(len) => check(head, len, &request),
        httparse::Status::Partial => Err(RequestError::Malformed("the head is incomplete")),
    })
}

fn check(head: &Bytes, len: usize, request: &httparse::Request<'_, '_>) -> Result<RequestHead, RequestError> {
    let method = head.slice_ref(request.method.unwrap_or_default().as_bytes());
    let target = head.slice_ref(request.path.unwrap_or_default().as_bytes());
    let is_http_11 = request.version == Some(1);
    let headers = Headers::new(head.clone(), request.headers);

    if &method[..] == b"CONNECT" {
        return Err(RequestError::MethodNotAllowed);
    }
    let (target, authority) = split_target(&method, target)?;
    let (host, authority) = host(head, &headers, is_http_11, authority)?;
    let mut body = declared_framing(&headers, is_http_11)
        .map_err(|_| RequestError::Malformed("Content-Length and Transfer-Encoding are ambiguous"))?
        .unwrap_or(Framing::None);
    let expects_continue = match headers.get("expect") {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => is_http_11 && body != Framing::None,
        Some(_) => return Err(RequestError::ExpectationFailed),
    };

    let (mut close, mut keep, mut upgrades) = (false, false, false);
    for token in tokens(headers.all("connection")) {
        close |= token.eq_ignore_ascii_case(b"close");
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
        upgrades |= token.eq_ignore_ascii_case(b"upgrade");
    }
    let keep_alive = !close && (is_http_11 || keep);
    let upgrade = (upgrades && is_http_11 && matches!(body, Framing::None | Framing::Length(0)))
        .then(|| headers.get("upgrade").map(|value| upgrades_of(head, value)))
        .flatten()
        .filter(|value| !value.is_empty());
    if upgrade.is_some() {
        // Some clients send `Content-Length: 0` with a handshake.
        body = Framing::None;
    }
    Ok(RequestHead {
        len,
        method,
        target,
        is_http_11,
        headers,
        body,
        keep_alive,
        expects_continue,
        upgrade,
        host,
        authority,
    })
}

/// The protocols of an `Upgrade` header, without HTTP/2. Its upgrade needs a header that concerns one connection only, and
/// a service that took it would speak a protocol that is not relayed. RFC 9113 has removed it.
fn upgrades_of(head: &Bytes, value: &[u8]) -> Bytes {
    let is_http_2 = |token: &[u8]| token.eq_ignore_ascii_case(b"h2c") || token.eq_ignore_ascii_case(b"h2");
    if !tokens(std::iter::once(value)).any(is_http_2) {
        return head.slice_ref(value);
    }
    let others: Vec<&[u8]> = tokens(std::iter::once(value)).filter(|token| !is_http_2(token)).collect();
    others.join(&b", "[..]).into()
}

/// Separates an absolute target into authority and the rest.
fn split_target(method: &[u8], target: Bytes) -> Result<(Bytes, Option<Bytes>), RequestError> {
    if target.len() > MAX_TARGET {
        return Err(RequestError::UriTooLong);
    }
    if target.contains(&b'#') {
        return Err(RequestError::Malformed("the target has a fragment"));
    }
    if target.starts_with(b"/") {
        return Ok((target, None));
    }
    if &target[..] == b"*" && method == b"OPTIONS" {
        return Ok((target, None));
    }
    let scheme = if target.len() > 7 && target[..7].eq_ignore_ascii_case(b"http://") {
        7
    } else if target.len() > 8 && target[..8].eq_ignore_ascii_case(b"https://") {
        8
    } else {
        return Err(RequestError::Malformed("the target is neither a path nor a URL"));
    };
    let rest = target.slice(scheme..);
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let authority = rest.slice(..end);
    let path = match rest.get(end) {
        Some(b'/') => rest.slice(end..),
        Some(_) => return Err(RequestError::Malformed("the target has a query but no path")),
        None => Bytes::from_static(b"/"),
    };
    Ok((path, Some(authority)))
}

fn host(
    head: &Bytes,
    headers: &Headers,
    is_http_11: bool,
    authority: Option<Bytes>,
) -> Result<(Host, Bytes), RequestError> {
    let mut hosts = headers.all("host");
    let given = hosts.next();
    if hosts.next().is_some() {
        return Err(RequestError::Malformed("there are two Host headers"));
    }
    if given.is_none() && is_http_11 {
        return Err(RequestError::Malformed("there is no Host header"));
    }
    let bad = || RequestError::Malformed("the Host header is not a host");
    if let Some(given) = given
        && authority.is_some()
    {
        Host::parse(given).ok_or_else(bad)?;
    }
    let value = match (authority, given) {
        (Some(authority), _) => authority,
        (None, Some(given)) => head.slice_ref(given),
        (None, None) => return Err(RequestError::Malformed("HTTP/1.0 without a Host header cannot be routed")),
    };
    Ok((Host::parse(&value).ok_or_else(bad)?, value))
}
