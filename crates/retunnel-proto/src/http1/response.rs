//! The head of a local service's answer.

use std::mem::MaybeUninit;

use bytes::Bytes;
use thiserror::Error;

use super::{Framing, HeadLimits, Headers, INLINE_HEADERS, content_length, tokens};

/// An answer's head: checked, and in the spelling it came in.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Bytes of the head, its empty line included.
    pub len: usize,
    /// Status code, 100 to 999.
    pub status: u16,
    /// Reason phrase; may be empty.
    pub reason: Bytes,
    /// Headers as received.
    pub headers: Headers,
    /// How the body is framed.
    pub body: Framing,
    /// The length that the head declares. An answer to HEAD has one without a body.
    pub length: Option<u64>,
    /// Whether the local service takes another request on this connection.
    pub keep_alive: bool,
}

/// The local service's answer is not HTTP, or its framing cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidResponse(pub &'static str);

impl ResponseHead {
    /// Whether this is not the final answer. A 101 is final.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Parses a head as soon as it is complete; `None` while it is not. `to_head`: the request's method was HEAD.
///
/// # Errors
/// [`InvalidResponse`].
pub fn parse(received: &Bytes, to_head: bool, limits: HeadLimits) -> Result<Option<ResponseHead>, InvalidResponse> {
    let mut storage = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
    let inline = &mut storage[..limits.lines.min(INLINE_HEADERS)];
    match parse_with(received, to_head, limits, inline) {
        Err(httparse::Error::TooManyHeaders) if limits.lines > INLINE_HEADERS => {
            parse_with(received, to_head, limits, Vec::with_capacity(limits.lines).spare_capacity_mut())
        }
        parsed => parsed,
    }
    .map_err(|error| {
        InvalidResponse(match error {
            httparse::Error::TooManyHeaders => "it has too many headers",
            httparse::Error::HeaderName => "the name of a header is not valid",
            httparse::Error::HeaderValue => "the value of a header is not valid",
            httparse::Error::Version | httparse::Error::Status => "its first line is not that of HTTP/1.1",
            httparse::Error::NewLine => "a line of its head does not end in CR LF",
            httparse::Error::Token => "its head cannot be parsed",
        })
    })?
}

fn parse_with<'a>(
    received: &'a Bytes,
    to_head: bool,
    limits: HeadLimits,
    storage: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<Result<Option<ResponseHead>, InvalidResponse>, httparse::Error> {
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, received, storage)?;
    Ok(match parsed {
        httparse::Status::Complete(len) if len <= limits.bytes => check(received, len, &response, to_head).map(Some),
        httparse::Status::Partial if received.len() < limits.bytes => Ok(None),
        _ => Err(InvalidResponse("its head is too large")),
    })
}

fn check(
    received: &Bytes,
    len: usize,
    response: &httparse::Response<'_, '_>,
    to_head: bool,
) -> Result<ResponseHead, InvalidResponse> {
    let is_http_11 = response.version == Some(1);
    let bad_status = InvalidResponse("its status is not between 100 and 999");
    let status = response.code.filter(|code| (100..=999).contains(code)).ok_or(bad_status)?;
    // httparse gives an empty constant for reasons with unusual bytes, which does not lie in the buffer.
    let reason = response.reason.filter(|reason| !reason.is_empty());
    let reason = reason.map_or_else(Bytes::new, |reason| received.slice_ref(reason.as_bytes()));
    let headers = Headers::new(received.slice(..len), response.headers);
    let is_chunked = is_chunked(headers.all("transfer-encoding"))?;
    let declared = length_of(&headers);
    // A length beside chunks does not count (RFC 9112, 6.3), whatever it is.
    let length = if is_chunked { None } else { declared? };
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Framing::None
    } else if is_chunked {
        Framing::Chunked
    } else {
        length.map_or(Framing::UntilClose, Framing::Length)
    };
    let (mut close, mut keep) = (false, false);
    for token in tokens(headers.all("connection")) {
        close |= token.eq_ignore_ascii_case(b"close");
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
    // A service that frames a body twice may mean either: nothing after its answer is trusted.
    let is_ambiguous = is_chunked && headers.get("content-length").is_some();
    let keep_alive = !close && !is_ambiguous && (is_http_11 || keep) && body != Framing::UntilClose;
    Ok(ResponseHead { len, status, reason, headers, body, length, keep_alive })
}

/// Whether a body with these values of `Transfer-Encoding` is chunked. `identity` means nothing, and some stacks of servers
/// name `chunked` twice.
///
/// # Errors
/// [`InvalidResponse`] for any other coding.
pub fn is_chunked<'a>(codings: impl Iterator<Item = &'a [u8]>) -> Result<bool, InvalidResponse> {
    let mut is_chunked = false;
    for coding in tokens(codings) {
        if coding.eq_ignore_ascii_case(b"chunked") {
            is_chunked = true;
        } else if !coding.eq_ignore_ascii_case(b"identity") {
            return Err(InvalidResponse("its Transfer-Encoding is neither chunked nor identity"));
        }
    }
    Ok(is_chunked)
}

/// The length that is declared; it may be repeated with the same value.
fn length_of(headers: &Headers) -> Result<Option<u64>, InvalidResponse> {
    let mut length = None;
    for value in headers.all("content-length").flat_map(|value| value.split(|byte| *byte == b',')) {
        let this = content_length(value.trim_ascii());
        let this = this.map_err(|_| InvalidResponse("its Content-Length is not a number"))?;
        if length.is_some_and(|length| length != this) {
            return Err(InvalidResponse("it has two different values of Content-Length"));
        }
        length = Some(this);
    }
    Ok(length)
}
