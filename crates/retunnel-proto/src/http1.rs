//! HTTP/1.1 (RFC 9112) as bytes: heads are parsed strictly and rewritten, bodies are re-framed. No sockets, no clock.
//!
//! Why not a library: the edge must see conflicting framing to refuse it, keep the order and spelling of headers, and
//! cost little more than a relay. hyper hides the first two (`docs/decisions/0002-own-http1-edge.md`).

pub mod body;
pub mod host;
pub mod request;
pub mod response;
pub mod write;

use std::ops::Range;

use bytes::Bytes;

/// Bounds of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes, the empty line included.
    pub bytes: usize,
    /// Header lines.
    pub lines: usize,
}

impl HeadLimits {
    /// Defaults for requests: 64 KiB, 100 lines.
    pub const REQUEST: Self = Self { bytes: 64 * 1024, lines: MAX_HEADERS };
    /// Defaults for answers: 256 KiB, 256 lines. Applications set many cookies, and long policies.
    pub const RESPONSE: Self = Self { bytes: 256 * 1024, lines: 256 };
}

/// Longest request target, in bytes.
pub const MAX_TARGET: usize = 16 * 1024;
/// Most lines of trailers, and by default of a request's headers.
pub const MAX_HEADERS: usize = crate::limits::MAX_HEADERS;
/// Headers that a parser has room for without an allocation.
const INLINE_HEADERS: usize = 128;

/// The headers of a message in the order and spelling they came in.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    bytes: Bytes,
    fields: Vec<(Range<u32>, Range<u32>)>,
}

impl Headers {
    /// Refers to headers that a parser found in `bytes`.
    pub(crate) fn new(bytes: Bytes, parsed: &[httparse::Header<'_>]) -> Self {
        let base = bytes.as_ptr() as usize;
        let range = |part: &[u8]| {
            let start = u32::try_from(part.as_ptr() as usize - base).unwrap_or(u32::MAX);
            start..start + u32::try_from(part.len()).unwrap_or_default()
        };
        let fields = parsed.iter().map(|header| (range(header.name.as_bytes()), range(header.value))).collect();
        Self { bytes, fields }
    }

    /// Name and value of each header.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(name, value)| (self.part(name), self.part(value)))
    }

    /// Every value of a header.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// Replaces the value of the first header with this name, if there is one.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let position = self.fields.iter().position(|(found, _)| self.part(found).eq_ignore_ascii_case(name.as_bytes()));
        let Some(position) = position else { return };
        let end = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let bytes = [&self.bytes[..], value].concat();
        self.fields[position].1 = end(self.bytes.len())..end(bytes.len());
        self.bytes = bytes.into();
    }

    fn part(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// The comma-separated members of a header, trimmed.
pub fn tokens<'a>(values: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Headers that concern one connection only (RFC 9110, 7.6.1). They are never passed on as they are.
#[must_use]
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    [
        &b"connection"[..],
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
    .iter()
    .any(|hop| name.eq_ignore_ascii_case(hop))
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// A number of bytes.
    Length(u64),
    /// Chunks, perhaps with trailers.
    Chunked,
    /// Until the connection ends (responses only).
    UntilClose,
}

/// Why the framing of a message cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFraming;

/// Content-Length and Transfer-Encoding of a request: `Ok(None)` when it has neither. Both together, repeated ones, and
/// every coding other than a single `chunked` are refused (reliability rows 1 to 4).
fn declared_framing(headers: &Headers, is_http_11: bool) -> Result<Option<Framing>, BadFraming> {
    let mut lengths = headers.all("content-length");
    let mut codings = headers.all("transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(BadFraming),
        (Some(length), None) if lengths.next().is_none() => content_length(length).map(Framing::Length).map(Some),
        (None, Some(coding)) if codings.next().is_none() && is_http_11 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        _ => Err(BadFraming),
    }
}

fn content_length(text: &[u8]) -> Result<u64, BadFraming> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(BadFraming);
    }
    Ok(text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests;
