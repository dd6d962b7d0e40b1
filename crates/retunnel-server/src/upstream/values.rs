//! Heads as values, as the published dialects carry them.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, StatusCode};
use retunnel_proto::http1::{
    HeadLimits,
    response::{self, ResponseHead},
    write,
};

/// Why an answer from values is refused.
pub(super) const BAD_VALUES: &str = "its status or a header is not valid";

/// UTF-8 where it is, otherwise each byte as the Latin-1 character of its number.
pub(super) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// An answer's head from values. Framing headers among them are left out; `length` is the body's, where it is known.
/// `None` when they cannot be a head: nothing of a client's text may end a header (reliability row 26).
pub(super) fn response_head(
    status: u16,
    headers: impl Iterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
    length: Option<usize>,
    to_head: bool,
) -> Option<ResponseHead> {
    if !(200..=999).contains(&status) && status != 101 {
        return None;
    }
    let mut raw = BytesMut::with_capacity(512);
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    write::status_line(status, reason.unwrap_or_default().as_bytes(), &mut raw);
    for (name, value) in headers {
        let (name, value) = (name.as_ref(), value.as_ref());
        if HeaderName::from_bytes(name.as_bytes()).is_err()
            || value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
        {
            return None;
        }
        write::put(&mut raw, name.as_bytes(), value);
    }
    if let Some(length) = length {
        write::put(&mut raw, b"Content-Length", length.to_string().as_bytes());
    }
    raw.put_slice(b"\r\n");
    response::parse(&raw.freeze(), to_head, HeadLimits::RESPONSE).ok().flatten()
}

/// Whether a header says how a body is framed.
pub(super) fn is_framing(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
}
