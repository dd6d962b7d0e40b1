//! Finds requests and answers in the two byte streams of an HTTP/1.1 connection, piece by piece and without holding the bytes
//! up. It trusts both sides: the edge has checked the requests, and what cannot be parsed is ignored from then on.

use std::{collections::VecDeque, mem::MaybeUninit, sync::Arc};

use super::observer::{Exchange, Observer, Side};

/// Bytes of a head; the edge allows 16 KiB of target and 64 KiB of headers.
const MAX_HEAD: usize = 128 * 1024;
/// Headers of a head.
const MAX_HEADERS: usize = 256;
/// Requests that wait for their answers; the edge sends one at a time.
const MAX_WAITING: usize = 16;

/// The exchanges of one connection to the local service.
#[derive(Debug)]
pub(crate) struct Tap {
    observer: Arc<dyn Observer>,
    tunnel: String,
    request: Half,
    response: Half,
    /// Requests whose answers are not over, oldest first; bodies of requests belong to the last, answers to the first.
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    exchange: Option<Box<dyn Exchange>>,
    is_head: bool,
    asks_upgrade: bool,
    request_ended: bool,
    response_ended: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// A head of which not all is there.
    head: Vec<u8>,
    next: Next,
}

/// What a direction's next bytes are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    #[default]
    Head,
    Sized(u64),
    Chunked(Chunk),
    /// Until the connection ends.
    Rest,
    /// After a 101.
    Upgraded,
    /// Not parsed, or without an exchange.
    Ignored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// In the line with the size; `true` once the digits are over.
    Size(u64, bool),
    Data(u64),
    /// In the line end after the data.
    DataEnd,
    /// In the trailers; `true` when the line has something in it.
    Trailer(bool),
}

/// What a head says about the bytes after it.
struct Framing {
    len: usize,
    status: u16,
    is_head: bool,
    asks_upgrade: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Tap {
    pub(crate) fn new(observer: Arc<dyn Observer>, tunnel: String) -> Self {
        Self { observer, tunnel, request: Half::default(), response: Half::default(), open: VecDeque::new() }
    }

    /// Bytes have passed.
    pub(crate) fn seen(&mut self, side: Side, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.half(side).next {
                Next::Head => self.head(side, bytes),
                Next::Sized(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    self.body(side, &bytes[..taken]);
                    self.sized(side, left - taken as u64);
                    taken
                }
                Next::Chunked(chunk) => self.chunked(side, chunk, bytes),
                Next::Rest | Next::Upgraded => {
                    self.body(side, bytes);
                    bytes.len()
                }
                Next::Ignored => return,
            };
            bytes = &bytes[taken..];
        }
    }

    /// How many of the next bytes of a side need not be seen.
    pub(crate) fn unseen(&self, side: Side) -> u64 {
        let half = if side == Side::Request { &self.request } else { &self.response };
        let wanted = self.current(side).and_then(|open| open.exchange.as_ref()).is_some_and(|open| open.wants(side));
        match half.next {
            Next::Ignored => u64::MAX,
            _ if wanted => 0,
            Next::Sized(left) | Next::Chunked(Chunk::Data(left)) => left,
            Next::Rest | Next::Upgraded => u64::MAX,
            _ => 0,
        }
    }

    /// Bytes have passed that were not seen; at most [`Tap::unseen`] of them.
    pub(crate) fn skip(&mut self, side: Side, count: u64) {
        if let Some(exchange) = self.current_mut(side).and_then(|open| open.exchange.as_mut()) {
            exchange.passed(side, count);
        }
        match self.half(side).next {
            Next::Sized(left) => self.sized(side, left.saturating_sub(count)),
            Next::Chunked(Chunk::Data(left)) => self.data(side, left.saturating_sub(count)),
            _ => {}
        }
    }

    /// A side has said all it will say.
    pub(crate) fn closed(&mut self, side: Side) {
        if matches!(self.half(side).next, Next::Rest | Next::Upgraded) {
            self.end(side);
        }
        self.half(side).next = Next::Ignored;
    }

    /// What was seen did not reach the local service.
    pub(crate) fn failed(&mut self, reason: &str) {
        for exchange in self.open.iter_mut().filter_map(|open| open.exchange.as_mut()) {
            exchange.failed(reason);
        }
    }

    const fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn current(&self, side: Side) -> Option<&Open> {
        if side == Side::Request { self.open.back() } else { self.open.front() }
    }

    fn current_mut(&mut self, side: Side) -> Option<&mut Open> {
        if side == Side::Request { self.open.back_mut() } else { self.open.front_mut() }
    }

    fn body(&mut self, side: Side, bytes: &[u8]) {
        if let Some(exchange) = self.current_mut(side).and_then(|open| open.exchange.as_mut()) {
            exchange.body(side, bytes);
        }
    }

    fn sized(&mut self, side: Side, left: u64) {
        self.half(side).next = Next::Sized(left);
        if left == 0 {
            self.end(side);
        }
    }

    fn data(&mut self, side: Side, left: u64) {
        self.half(side).next = Next::Chunked(if left == 0 { Chunk::DataEnd } else { Chunk::Data(left) });
    }

    /// A message is over; the next is a head.
    fn end(&mut self, side: Side) {
        self.half(side).next = Next::Head;
        if let Some(open) = self.current_mut(side) {
            match side {
                Side::Request => open.request_ended = true,
                Side::Response => open.response_ended = true,
            }
            if let Some(exchange) = &mut open.exchange {
                exchange.end(side);
            }
        }
        if self.open.front().is_some_and(|open| open.request_ended && open.response_ended) {
            self.open.pop_front();
        }
    }

    /// Nothing that follows can be parsed.
    fn give_up(&mut self) {
        self.request.next = Next::Ignored;
        self.response.next = Next::Ignored;
        self.open.clear();
    }

    /// Takes bytes of a head; all of them, or up to its end.
    fn head(&mut self, side: Side, bytes: &[u8]) -> usize {
        let half = self.half(side);
        let before = half.head.len();
        // Most heads come in one piece and are read where they are.
        let mut whole = std::mem::take(&mut half.head);
        let text = if before == 0 {
            bytes
        } else {
            whole.extend_from_slice(bytes);
            &whole
        };
        // A piece without a line end ends no head.
        let parsed = if bytes.contains(&b'\n') { parse(side, text) } else { Ok(None) };
        match parsed {
            Ok(Some(framing)) => {
                let taken = framing.len - before;
                self.begin(side, &text[..framing.len], &framing);
                taken
            }
            Ok(None) if text.len() <= MAX_HEAD => {
                if before == 0 {
                    whole.extend_from_slice(bytes);
                }
                self.half(side).head = whole;
                bytes.len()
            }
            _ => {
                self.give_up();
                bytes.len()
            }
        }
    }

    fn begin(&mut self, side: Side, head: &[u8], framing: &Framing) {
        match side {
            Side::Request => {
                if self.open.len() == MAX_WAITING {
                    return self.give_up();
                }
                self.open.push_back(Open {
                    exchange: self.observer.request(&self.tunnel, head),
                    is_head: framing.is_head,
                    asks_upgrade: framing.asks_upgrade,
                    request_ended: false,
                    response_ended: false,
                });
                if framing.chunked {
                    self.request.next = Next::Chunked(Chunk::Size(0, false));
                } else {
                    self.sized(side, framing.length.unwrap_or(0));
                }
            }
            Side::Response => {
                let Some(open) = self.open.front_mut().filter(|open| !open.response_ended) else {
                    return self.give_up();
                };
                if matches!(framing.status, 100 | 102..200) {
                    return;
                }
                if let Some(exchange) = &mut open.exchange {
                    exchange.response(head);
                }
                if framing.status == 101 && open.asks_upgrade {
                    self.request.next = Next::Upgraded;
                    self.response.next = Next::Upgraded;
                } else if open.is_head || matches!(framing.status, 101 | 204 | 304) {
                    self.end(side);
                } else if framing.chunked {
                    self.response.next = Next::Chunked(Chunk::Size(0, false));
                } else if let Some(length) = framing.length {
                    self.sized(side, length);
                } else {
                    self.response.next = Next::Rest;
                }
            }
        }
    }

    /// Takes one part of a chunked body.
    fn chunked(&mut self, side: Side, chunk: Chunk, bytes: &[u8]) -> usize {
        if let Chunk::Data(left) = chunk {
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            self.body(side, &bytes[..taken]);
            self.data(side, left - taken as u64);
            return taken;
        }
        let byte = bytes[0];
        let next = match (chunk, byte) {
            (Chunk::Size(0, _), b'\n') => Chunk::Trailer(false),
            (Chunk::Size(size, _), b'\n') => Chunk::Data(size),
            (Chunk::Size(size, false), byte) if byte.is_ascii_hexdigit() => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
                match size.checked_mul(16) {
                    Some(size) => Chunk::Size(size + digit, false),
                    None => {
                        self.give_up();
                        return bytes.len();
                    }
                }
            }
            (Chunk::Size(size, _), _) => Chunk::Size(size, true),
            (Chunk::DataEnd, b'\n') => Chunk::Size(0, false),
            (Chunk::Trailer(false), b'\n') => {
                self.end(side);
                return 1;
            }
            (Chunk::Trailer(true), b'\n') => Chunk::Trailer(false),
            (Chunk::Trailer(filled), byte) => Chunk::Trailer(filled || byte != b'\r'),
            (other, _) => other,
        };
        self.half(side).next = Next::Chunked(next);
        1
    }
}

/// The framing of a head; `None` when it is not complete.
fn parse(side: Side, bytes: &[u8]) -> Result<Option<Framing>, httparse::Error> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut framing = Framing { len: 0, status: 0, is_head: false, asks_upgrade: false, length: None, chunked: false };
    let headers = match side {
        Side::Request => {
            let mut request = httparse::Request::new(&mut []);
            match request.parse_with_uninit_headers(bytes, &mut room)? {
                httparse::Status::Complete(len) => framing.len = len,
                httparse::Status::Partial => return Ok(None),
            }
            framing.is_head = request.method == Some("HEAD");
            request.headers
        }
        Side::Response => {
            let mut response = httparse::Response::new(&mut []);
            match httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut response,
                bytes,
                &mut room,
            )? {
                httparse::Status::Complete(len) => framing.len = len,
                httparse::Status::Partial => return Ok(None),
            }
            framing.status = response.code.unwrap_or(0);
            response.headers
        }
    };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            framing.length = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            framing.chunked = header.value.to_ascii_lowercase().ends_with(b"chunked");
        } else if header.name.eq_ignore_ascii_case("upgrade") {
            framing.asks_upgrade = true;
        }
    }
    Ok(Some(framing))
}

#[cfg(test)]
mod tests;
