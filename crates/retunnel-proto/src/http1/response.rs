//! The head of a local service's answer.

use std::mem::MaybeUninit;

use bytes::Bytes;

use super::{Framing, Headers, MAX_HEAD, MAX_HEADERS, declared_framing, tokens};

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
    /// Whether the local service takes another request on this connection.
    pub keep_alive: bool,
}

/// The local service's answer is not HTTP, or its framing cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidResponse;

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
pub fn parse(received: &Bytes, to_head: bool) -> Result<Option<ResponseHead>, InvalidResponse> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, received, &mut storage);
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if received.len() < MAX_HEAD => return Ok(None),
        _ => return Err(InvalidResponse),
    };
    let is_http_11 = response.version == Some(1);
    let status = response.code.filter(|code| (100..=999).contains(code)).ok_or(InvalidResponse)?;
    // httparse gives an empty constant for reasons with unusual bytes, which does not lie in the buffer.
    let reason = response.reason.filter(|reason| !reason.is_empty());
    let reason = reason.map_or_else(Bytes::new, |reason| received.slice_ref(reason.as_bytes()));
    let headers = Headers::new(received.slice(..len), response.headers);
    let declared = declared_framing(&headers, is_http_11).map_err(|_| InvalidResponse)?;
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Framing::None
    } else {
        declared.unwrap_or(Framing::UntilClose)
    };
    let (mut close, mut keep) = (false, false);
    for token in tokens(headers.all("connection")) {
        close |= token.eq_ignore_ascii_case(b"close");
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
    let keep_alive = !close && (is_http_11 || keep) && body != Framing::UntilClose;
    Ok(Some(ResponseHead { len, status, reason, headers, body, keep_alive }))
}
