//! Finds requests and answers in the two byte streams of an HTTP/1.1 connection, piece by piece and without delaying the
//! bytes. It trusts both sides: the edge has checked the requests, and what cannot be parsed is ignored from there on.

use std::{collections::VecDeque, mem::MaybeUninit, sync::Arc};

use retunnel_proto::http1::{Framing, body::Decoder};
use tokio::time::Instant;

use super::observer::{Exchange, Observer, Side};

/// Largest head, in bytes; the edge allows 16 KiB of target and 64 KiB of headers.
const MAX_HEAD: usize = 128 * 1024;
/// Most headers of a head.
const MAX_HEADERS: usize = 256;
/// Most requests that wait for their answers; the edge sends one at a time.
const MAX_WAITING: usize = 16;

/// The exchanges of one connection to the local service.
#[derive(Debug)]
pub(crate) struct Tap {
    observer: Arc<dyn Observer>,
    tunnel: String,
    request: Half,
    response: Half,
    /// Requests whose answers are not complete, oldest first. Request bodies belong to the last, answers to the first.
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
    /// An incomplete head, and when it began.
    head: Vec<u8>,
    began: Option<Instant>,
    next: Next,
}

/// What a direction's next bytes are.
#[derive(Debug, Default)]
enum Next {
    #[default]
    Head,
    Body(Decoder),
    /// After a 101.
    Upgraded,
    /// Not understood, or part of no exchange.
    Ignored,
}

/// What a head says about the bytes after it.
struct Head {
    len: usize,
    status: u16,
    is_head: bool,
    asks_upgrade: bool,
    framing: Option<Framing>,
}

impl Tap {
    pub(crate) fn new(observer: Arc<dyn Observer>, tunnel: String) -> Self {
        Self { observer, tunnel, request: Half::default(), response: Half::default(), open: VecDeque::new() }
    }

    /// Bytes have passed; `at` is the time before they did.
    pub(crate) fn seen(&mut self, side: Side, mut bytes: &[u8], at: Instant) {
        while !bytes.is_empty() {
            let taken = match &mut self.half(side).next {
                Next::Head => self.head(side, bytes, at),
                Next::Body(decoder) => match decoder.step(bytes) {
                    Ok(step) => {
                        let is_done = decoder.is_done();
                        let taken = step.framing + step.payload;
                        if step.payload > 0 {
                            self.body(side, &bytes[step.framing..taken]);
                        }
                        if is_done {
                            self.end(side);
                        }
                        taken
                    }
                    Err(_) => return self.give_up(),
                },
                Next::Upgraded => {
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
        match &half.next {
            Next::Ignored => u64::MAX,
            _ if wanted => 0,
            Next::Upgraded => u64::MAX,
            Next::Body(decoder) => decoder.payload_left(),
            Next::Head => 0,
        }
    }

    /// Bytes have passed that were not seen; at most [`Tap::unseen`] of them.
    pub(crate) fn skip(&mut self, side: Side, count: u64) {
        if let Some(exchange) = self.current_mut(side).and_then(|open| open.exchange.as_mut()) {
            exchange.passed(side, count);
        }
        if let Next::Body(decoder) = &mut self.half(side).next {
            decoder.skip(count);
            if decoder.is_done() {
                self.end(side);
            }
        }
    }

    /// A side sends nothing more.
    pub(crate) fn closed(&mut self, side: Side) {
        let is_complete = match &self.half(side).next {
            Next::Body(decoder) => decoder.may_end_here(),
            Next::Upgraded => true,
            Next::Head | Next::Ignored => false,
        };
        if is_complete {
            self.end(side);
        }
        for open in &mut self.open {
            let has_ended = if side == Side::Request { open.request_ended } else { open.response_ended };
            if let Some(exchange) = open.exchange.as_mut().filter(|_| !has_ended) {
                exchange.cut(side);
            }
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

    /// A body with this framing comes next.
    fn begin_body(&mut self, side: Side, framing: Framing) {
        let decoder = Decoder::new(framing);
        if decoder.is_done() {
            self.end(side);
        } else {
            self.half(side).next = Next::Body(decoder);
        }
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
    fn head(&mut self, side: Side, bytes: &[u8], at: Instant) -> usize {
        let half = self.half(side);
        let began = *half.began.get_or_insert(at);
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
            Ok(Some(head)) => {
                let taken = head.len - before;
                half.began = None;
                self.begin(side, &text[..head.len], &head, began);
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

    fn begin(&mut self, side: Side, text: &[u8], head: &Head, began: Instant) {
        match side {
            Side::Request => {
                if self.open.len() == MAX_WAITING {
                    return self.give_up();
                }
                self.open.push_back(Open {
                    exchange: self.observer.request(&self.tunnel, text, began),
                    is_head: head.is_head,
                    asks_upgrade: head.asks_upgrade,
                    request_ended: false,
                    response_ended: false,
                });
                self.begin_body(side, head.framing.unwrap_or(Framing::None));
            }
            Side::Response => {
                let Some(open) = self.open.front_mut().filter(|open| !open.response_ended) else {
                    return self.give_up();
                };
                if matches!(head.status, 100 | 102..200) {
                    return;
                }
                if let Some(exchange) = &mut open.exchange {
                    exchange.response(text);
                }
                if head.status == 101 && open.asks_upgrade {
                    self.request.next = Next::Upgraded;
                    self.response.next = Next::Upgraded;
                } else if open.is_head || matches!(head.status, 101 | 204 | 304) {
                    self.end(side);
                } else {
                    self.begin_body(side, head.framing.unwrap_or(Framing::UntilClose));
                }
            }
        }
    }
}

/// Reads a head; `None` when it is not complete. The parsers of `retunnel_proto::http1` are for the edge: they need a copy
/// of the bytes, and refuse what the edge must refuse. Here a head is read where it lies, and was accepted already.
fn parse(side: Side, bytes: &[u8]) -> Result<Option<Head>, httparse::Error> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = Head { len: 0, status: 0, is_head: false, asks_upgrade: false, framing: None };
    let headers = match side {
        Side::Request => {
            let mut request = httparse::Request::new(&mut []);
            match request.parse_with_uninit_headers(bytes, &mut room)? {
                httparse::Status::Complete(len) => head.len = len,
                httparse::Status::Partial => return Ok(None),
            }
            head.is_head = request.method == Some("HEAD");
            request.headers
        }
        Side::Response => {
            let mut response = httparse::Response::new(&mut []);
            match httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut response,
                bytes,
                &mut room,
            )? {
                httparse::Status::Complete(len) => head.len = len,
                httparse::Status::Partial => return Ok(None),
            }
            head.status = response.code.unwrap_or(0);
            response.headers
        }
    };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
            head.framing = head.framing.or(length.map(Framing::Length));
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if header.value.to_ascii_lowercase().ends_with(b"chunked") {
                head.framing = Some(Framing::Chunked);
            }
        } else if header.name.eq_ignore_ascii_case("upgrade") {
            head.asks_upgrade = true;
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests;
