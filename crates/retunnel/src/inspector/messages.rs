//! The messages of a WebSocket and the events of an event stream, parsed while they pass.

mod events;
mod parsed;
mod websocket;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use retunnel_client::tap::Side;

use self::{events::EventParser, parsed::Parsed, websocket::FrameParser};
use super::{head::Head, sides::Sides};

/// Maximum number of messages of one exchange.
const MAX_MESSAGES: usize = 500;
/// Maximum bytes of the messages of one exchange.
const MAX_MEMORY: usize = 1024 * 1024;

/// A protocol whose messages are shown one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `deflate`: its messages are compressed.
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
    /// The beginning of the message.
    pub(crate) data: Vec<u8>,
    /// Its complete length on the wire.
    pub(crate) size: u64,
}

/// The newest messages of an exchange. A copy is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Messages {
    protocol: Protocol,
    pub(crate) kept: VecDeque<Arc<Message>>,
    pub(crate) count: u64,
    held: usize,
    charged: usize,
}

/// Finds the messages of one exchange in its bytes.
#[derive(Debug)]
pub(crate) struct MessageParser {
    protocol: Protocol,
    frames: Sides<FrameParser>,
    events: EventParser,
}

impl Protocol {
    /// The protocol that a response starts.
    pub(crate) fn of(response: &[u8]) -> Option<Self> {
        // Most responses start neither. A cheap look at their bytes rules them out.
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

impl MessageParser {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let frames = match protocol {
            Protocol::WebSocket { deflate: true } => {
                Sides { request: FrameParser::inflating(), response: FrameParser::inflating() }
            }
            _ => Sides::default(),
        };
        Self { protocol, frames, events: EventParser::default() }
    }

    /// Adds the messages that these bytes complete. Returns whether there are any.
    pub(crate) fn add(&mut self, side: Side, bytes: &[u8], at: Duration, messages: &mut Messages) -> bool {
        let mut found = Vec::new();
        match self.protocol {
            Protocol::WebSocket { .. } => self.frames[side].add(bytes, &mut found),
            Protocol::Events if side == Side::Response => self.events.add(bytes, &mut found),
            Protocol::Events => {}
        }
        let any = !found.is_empty();
        messages.add(side, found, at);
        any
    }
}

impl Messages {
    pub(crate) const fn new(protocol: Protocol) -> Self {
        Self { protocol, kept: VecDeque::new(), count: 0, held: 0, charged: 0 }
    }

    pub(crate) const fn is_websocket(&self) -> bool {
        matches!(self.protocol, Protocol::WebSocket { .. })
    }

    /// Whether the bytes are also shown as a body.
    pub(crate) const fn keeps_body(&self) -> bool {
        !self.is_websocket()
    }

    /// Bytes held in addition to those returned before. Old messages make room for new ones, so the sum is bounded.
    pub(crate) const fn newly_held(&mut self) -> usize {
        let more = self.held.saturating_sub(self.charged);
        self.charged += more;
        more
    }

    fn add(&mut self, side: Side, found: Vec<Parsed>, at: Duration) {
        for Parsed { kind, data, size } in found {
            self.count += 1;
            self.held += data.len() + size_of::<Message>();
            self.kept.push_back(Arc::new(Message { number: self.count, at, side, kind, data, size }));
            while self.kept.len() > MAX_MESSAGES || self.held > MAX_MEMORY {
                let Some(oldest) = self.kept.pop_front() else { break };
                self.held -= oldest.data.len() + size_of::<Message>();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{parsed::MAX_MESSAGE, *};

    /// The messages of the bytes of one side.
    fn found<'a>(protocol: Protocol, side: Side, pieces: impl IntoIterator<Item = &'a [u8]>) -> Messages {
        let (mut parser, mut messages) = (MessageParser::new(protocol), Messages::new(protocol));
        for piece in pieces {
            parser.add(side, piece, Duration::ZERO, &mut messages);
        }
        messages
    }

    fn all(messages: &Messages) -> Vec<(&'static str, String, u64)> {
        messages.kept.iter().map(|m| (m.kind, String::from_utf8_lossy(&m.data).into_owned(), m.size)).collect()
    }

    #[test]
    fn websocket_messages_are_found_byte_by_byte() {
        // "Hello" in two fragments with a ping in between, masked (RFC 6455, 5.7), and a long binary one.
        let mut bytes = vec![0x01, 0x83, 1, 2, 3, 4];
        bytes.extend(b"Hel".iter().zip([1, 2, 3]).map(|(byte, mask)| byte ^ mask));
        bytes.extend([0x89, 0x00, 0x80, 0x02, b'l', b'o', 0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1]);
        bytes.extend(vec![b'x'; 65_537]);
        let mut messages = found(Protocol::WebSocket { deflate: false }, Side::Request, bytes.chunks(1));
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
                let mut messages = found(protocol, Side::Response, bytes.chunks(cut));
                prop_assert!(messages.newly_held() <= MAX_MEMORY);
            }
        }
    }

    #[test]
    fn compressed_messages_are_shown_plain() {
        // RFC 7692, 7.2.3.2: the second "Hello" refers to the first.
        let frames: [&[u8]; 2] =
            [&[0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xc1, 0x05, 0xf2, 0x00, 0x11, 0x00, 0x00]];
        let messages = found(Protocol::WebSocket { deflate: true }, Side::Response, frames);
        assert_eq!(all(&messages), [("text", "Hello".to_owned(), 7), ("text", "Hello".to_owned(), 5)]);
    }

    #[test]
    fn events_are_found_in_every_line_end_and_bounded() {
        let pieces = ["event: a\nda", "ta: 1\n\n", "data: 2\r", "\n\r\ndata: 3\r\r: comment\n"];
        let messages = found(Protocol::Events, Side::Response, pieces.map(str::as_bytes));
        let texts: Vec<String> = all(&messages).into_iter().map(|(_, text, _)| text).collect();
        assert_eq!(texts, ["event: a\ndata: 1\n", "data: 2\n", "data: 3\n"]);
        let long = format!("data: {}\n\n", "y".repeat(40_000));
        let mut messages = found(Protocol::Events, Side::Response, [long.as_bytes(); 600]);
        assert!(messages.newly_held() <= MAX_MEMORY && messages.count == 600);
        assert_eq!(messages.newly_held(), 0);
    }
}
