//! The messages of a WebSocket and the events of an event stream, found while they flow.

use std::{collections::VecDeque, time::Duration};

use flate2::{Decompress, FlushDecompress};
use retunnel_client::tap::Side;

use super::{head::Head, store::index};

/// Messages that are kept of one exchange.
const MAX_MESSAGES: usize = 500;
/// Bytes of one message that are kept.
const MAX_MESSAGE: usize = 64 * 1024;
/// Bytes that the messages of one exchange may hold.
const MAX_MEMORY: usize = 1024 * 1024;
/// Bytes of the longest line of an event stream.
const MAX_LINE: usize = MAX_MESSAGE;

/// What the bytes of an exchange are beside a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// With its messages compressed, or not.
    WebSocket {
        deflate: bool,
    },
    Events,
}

/// One message or event.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) at: Duration,
    pub(crate) side: Side,
    pub(crate) kind: &'static str,
    /// The beginning of it.
    pub(crate) data: Vec<u8>,
    /// Its whole length as it passed.
    pub(crate) size: u64,
}

/// The last messages of an exchange.
#[derive(Debug)]
pub(crate) struct Messages {
    protocol: Protocol,
    pub(crate) kept: VecDeque<Message>,
    pub(crate) count: u64,
    held: usize,
    charged: usize,
    frames: [Frames; 2],
    events: Lines,
}

impl Protocol {
    /// What an answer makes of its connection.
    pub(crate) fn of(response: &[u8]) -> Option<Self> {
        // Most answers are neither, and are told by a look at their bytes.
        if response.get(9..12) == Some(b"101") {
            let head = Head::parse(response);
            let is_websocket = head.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
            let deflate =
                head.header("sec-websocket-extensions").is_some_and(|value| value.contains("permessage-deflate"));
            return is_websocket.then_some(Self::WebSocket { deflate });
        }
        let mark = b"/event-stream";
        let mut slashes = response.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &response[at..]);
        if !slashes.any(|rest| rest.len() > mark.len() && rest[..mark.len()].eq_ignore_ascii_case(mark)) {
            return None;
        }
        let head = Head::parse(response);
        (head.media_type() == "text/event-stream" && head.header("content-encoding").is_none()).then_some(Self::Events)
    }
}

impl Messages {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let frames = match protocol {
            Protocol::WebSocket { deflate: true } => [Frames::inflating(), Frames::inflating()],
            _ => [Frames::default(), Frames::default()],
        };
        Self { protocol, kept: VecDeque::new(), count: 0, held: 0, charged: 0, frames, events: Lines::default() }
    }

    pub(crate) const fn is_websocket(&self) -> bool {
        matches!(self.protocol, Protocol::WebSocket { .. })
    }

    /// Whether the bytes are a body too.
    pub(crate) const fn keeps_body(&self) -> bool {
        !self.is_websocket()
    }

    /// Bytes held beyond what was asked for before. Old messages make room for new ones, so this comes to an end.
    pub(crate) const fn newly_held(&mut self) -> usize {
        let more = self.held.saturating_sub(self.charged);
        self.charged += more;
        more
    }

    /// Takes bytes; `true` when a message is complete.
    pub(crate) fn add(&mut self, side: Side, bytes: &[u8], at: Duration) -> bool {
        let mut found = Vec::new();
        match self.protocol {
            Protocol::WebSocket { .. } => self.frames[index(side)].add(bytes, &mut found),
            Protocol::Events if side == Side::Response => self.events.add(bytes, &mut found),
            Protocol::Events => {}
        }
        let any = !found.is_empty();
        for (kind, data, size) in found {
            self.count += 1;
            self.held += data.len() + size_of::<Message>();
            self.kept.push_back(Message { number: self.count, at, side, kind, data, size });
            while self.kept.len() > MAX_MESSAGES || self.held > MAX_MEMORY {
                let Some(oldest) = self.kept.pop_front() else { break };
                self.held -= oldest.data.len() + size_of::<Message>();
            }
        }
        any
    }
}

type Found = Vec<(&'static str, Vec<u8>, u64)>;

/// Frames of one direction of a WebSocket (RFC 6455, 5.2).
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of a frame's header.
    header: Vec<u8>,
    /// Bytes of the frame's payload that are still to come.
    left: u64,
    in_payload: bool,
    opcode: u8,
    is_last: bool,
    mask: Option<[u8; 4]>,
    masked: usize,
    /// The message so far; control frames come in between.
    message: Gathered,
    control: Gathered,
    inflate: Option<Inflate>,
}

#[derive(Debug, Default)]
struct Gathered {
    kind: &'static str,
    data: Vec<u8>,
    size: u64,
    compressed: bool,
}

/// Decompression that goes on from message to message (RFC 7692). A message that is not kept whole breaks it off.
#[derive(Debug)]
struct Inflate {
    state: Decompress,
    broken: bool,
}

impl Frames {
    fn inflating() -> Self {
        let inflate = Inflate { state: Decompress::new(false), broken: false };
        Self { inflate: Some(inflate), ..Self::default() }
    }

    fn add(&mut self, mut bytes: &[u8], found: &mut Found) {
        while !bytes.is_empty() {
            if !self.in_payload {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                self.begin();
            } else {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.payload(&bytes[..taken]);
                self.left -= taken as u64;
                bytes = &bytes[taken..];
            }
            if self.in_payload && self.left == 0 {
                self.in_payload = false;
                self.finish(found);
            }
        }
    }

    /// Reads the header once all of it is there.
    fn begin(&mut self) {
        let &[first, second, ref rest @ ..] = self.header.as_slice() else { return };
        let (len, mut rest) = match second & 0x7f {
            126 if rest.len() >= 2 => (u64::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 if rest.len() >= 8 => (rest[..8].iter().fold(0, |len, byte| len << 8 | u64::from(*byte)), &rest[8..]),
            126 | 127 => return,
            len => (u64::from(len), rest),
        };
        self.mask = None;
        if second & 0x80 != 0 {
            let Some(mask) = rest.first_chunk::<4>() else { return };
            self.mask = Some(*mask);
            rest = &rest[4..];
        }
        debug_assert!(rest.is_empty(), "the header is read byte by byte");
        (self.opcode, self.is_last, self.left, self.masked) = (first & 0x0f, first & 0x80 != 0, len, 0);
        self.header.clear();
        self.in_payload = true;
        let kind = match self.opcode {
            0 => return,
            1 => "text",
            2 => "binary",
            8 => "close",
            9 => "ping",
            10 => "pong",
            _ => "unknown",
        };
        let gathered = Gathered { kind, compressed: first & 0x40 != 0, ..Gathered::default() };
        *self.current() = gathered;
    }

    const fn current(&mut self) -> &mut Gathered {
        if self.opcode >= 8 { &mut self.control } else { &mut self.message }
    }

    fn payload(&mut self, bytes: &[u8]) {
        let (mask, start) = (self.mask, self.masked);
        self.masked = (start + bytes.len()) % 4;
        let gathered = self.current();
        gathered.size += bytes.len() as u64;
        let room = MAX_MESSAGE.saturating_sub(gathered.data.len()).min(bytes.len());
        match mask {
            Some(mask) => {
                let plain = bytes[..room].iter().enumerate().map(|(at, byte)| byte ^ mask[(start + at) % 4]);
                gathered.data.extend(plain);
            }
            None => gathered.data.extend_from_slice(&bytes[..room]),
        }
    }

    fn finish(&mut self, found: &mut Found) {
        if !self.is_last {
            return;
        }
        let Gathered { kind, data, size, compressed } = std::mem::take(self.current());
        let data = match &mut self.inflate {
            Some(inflate) if compressed => inflate.message(data, size),
            _ => data,
        };
        found.push((if kind.is_empty() { "unknown" } else { kind }, data, size));
    }
}

impl Inflate {
    fn message(&mut self, mut data: Vec<u8>, size: u64) -> Vec<u8> {
        if self.broken || data.len() as u64 != size {
            self.broken = true;
            return data;
        }
        data.extend_from_slice(&[0, 0, 0xff, 0xff]);
        let mut plain = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        let mut input = data.as_slice();
        // A megabyte of zeros fits into a kilobyte: what is too long is not worth the time.
        while plain.len() < 4 * MAX_MESSAGE {
            let (read, written) = (self.state.total_in(), self.state.total_out());
            if self.state.decompress(input, &mut buffer, FlushDecompress::Sync).is_err() {
                self.broken = true;
                return data;
            }
            let read = usize::try_from(self.state.total_in() - read).unwrap_or(0);
            let written = usize::try_from(self.state.total_out() - written).unwrap_or(0);
            plain.extend_from_slice(&buffer[..written]);
            input = &input[read..];
            if input.is_empty() && written < buffer.len() {
                plain.truncate(MAX_MESSAGE);
                return plain;
            }
            if read == 0 && written == 0 {
                break;
            }
        }
        self.broken = true;
        plain.truncate(MAX_MESSAGE);
        plain
    }
}

/// Events of an event stream: blocks of lines with an empty line behind them.
#[derive(Debug, Default)]
struct Lines {
    block: Vec<u8>,
    size: u64,
    line_is_empty: bool,
    after_cr: bool,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], found: &mut Found) {
        for &byte in bytes {
            self.size += 1;
            let second_half = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            if byte != b'\n' && byte != b'\r' {
                self.line_is_empty = false;
                if self.block.len() < MAX_LINE {
                    self.block.push(byte);
                }
            } else if second_half {
                // The line has ended already.
            } else if self.line_is_empty {
                let block = std::mem::take(&mut self.block);
                let size = std::mem::take(&mut self.size);
                if !block.is_empty() {
                    found.push(("event", block, size));
                }
            } else {
                self.line_is_empty = true;
                if self.block.len() < MAX_LINE {
                    self.block.push(b'\n');
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(messages: &Messages) -> Vec<(&'static str, String, u64)> {
        messages.kept.iter().map(|m| (m.kind, String::from_utf8_lossy(&m.data).into_owned(), m.size)).collect()
    }

    #[test]
    fn websocket_messages_are_found_byte_by_byte() {
        let mut messages = Messages::new(Protocol::WebSocket { deflate: false });
        // "Hello" in two fragments with a ping in between, masked (RFC 6455, 5.7), and a long binary one.
        let mut bytes = vec![0x01, 0x83, 1, 2, 3, 4];
        bytes.extend(b"Hel".iter().zip([1, 2, 3]).map(|(byte, mask)| byte ^ mask));
        bytes.extend([0x89, 0x00, 0x80, 0x02, b'l', b'o', 0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1]);
        bytes.extend(vec![b'x'; 65_537]);
        for byte in bytes {
            messages.add(Side::Request, &[byte], Duration::ZERO);
        }
        let all = all(&messages);
        assert_eq!(all[0], ("ping", String::new(), 0));
        assert_eq!(all[1], ("text", "Hello".into(), 5));
        assert_eq!((all[2].0, all[2].1.len(), all[2].2), ("binary", MAX_MESSAGE, 65_537));
        assert!(messages.kept.len() == 3 && messages.newly_held() < MAX_MEMORY);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_bounded(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 1_usize..50) {
            for protocol in [
                Protocol::WebSocket { deflate: false },
                Protocol::WebSocket { deflate: true },
                Protocol::Events,
            ] {
                let mut messages = Messages::new(protocol);
                for piece in bytes.chunks(cut) {
                    messages.add(Side::Response, piece, Duration::ZERO);
                }
                prop_assert!(messages.newly_held() <= MAX_MEMORY);
            }
        }
    }

    #[test]
    fn compressed_messages_are_shown_plain() {
        let mut messages = Messages::new(Protocol::WebSocket { deflate: true });
        // RFC 7692, 7.2.3.2: the second "Hello" refers to the first.
        messages.add(Side::Response, &[0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], Duration::ZERO);
        messages.add(Side::Response, &[0xc1, 0x05, 0xf2, 0x00, 0x11, 0x00, 0x00], Duration::ZERO);
        assert_eq!(all(&messages), [("text", "Hello".to_owned(), 7), ("text", "Hello".to_owned(), 5)]);
    }

    #[test]
    fn events_are_found_in_every_line_end_and_bounded() {
        let mut messages = Messages::new(Protocol::Events);
        for piece in ["event: a\nda", "ta: 1\n\n", "data: 2\r", "\n\r\ndata: 3\r\r: comment\n"] {
            messages.add(Side::Response, piece.as_bytes(), Duration::ZERO);
        }
        let texts: Vec<String> = all(&messages).into_iter().map(|(_, text, _)| text).collect();
        assert_eq!(texts, ["event: a\ndata: 1\n", "data: 2\n", "data: 3\n"]);
        let long = format!("data: {}\n\n", "y".repeat(40_000));
        for _ in 0..600 {
            messages.add(Side::Response, long.as_bytes(), Duration::ZERO);
        }
        assert!(messages.newly_held() <= MAX_MEMORY && messages.count == 603);
        assert_eq!(messages.newly_held(), 0);
    }
}
