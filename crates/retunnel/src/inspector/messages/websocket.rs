//! Finds the messages of a WebSocket in its frames.

use flate2::{Decompress, FlushDecompress};

use super::parsed::{MAX_MESSAGE, Parsed};

/// Parses the frames of one direction of a WebSocket (RFC 6455, 5.2).
#[derive(Debug, Default)]
pub(super) struct FrameParser {
    /// The frame's header so far.
    header: Vec<u8>,
    /// Remaining bytes of the frame's payload.
    left: u64,
    in_payload: bool,
    opcode: u8,
    is_last: bool,
    mask: Option<[u8; 4]>,
    masked: usize,
    /// The message so far. Control frames may come between its frames.
    message: PartialMessage,
    control: PartialMessage,
    inflate: Option<Inflate>,
}

#[derive(Debug, Default)]
struct PartialMessage {
    kind: &'static str,
    data: Vec<u8>,
    size: u64,
    compressed: bool,
}

/// Decompression whose state spans messages (RFC 7692). It stops at a message that was not captured in full.
#[derive(Debug)]
struct Inflate {
    state: Decompress,
    broken: bool,
}

impl FrameParser {
    pub(super) fn inflating() -> Self {
        let inflate = Inflate { state: Decompress::new(false), broken: false };
        Self { inflate: Some(inflate), ..Self::default() }
    }

    pub(super) fn add(&mut self, mut bytes: &[u8], found: &mut Vec<Parsed>) {
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

    /// Parses the header once it is complete.
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
        let partial = PartialMessage { kind, compressed: first & 0x40 != 0, ..PartialMessage::default() };
        *self.current() = partial;
    }

    const fn current(&mut self) -> &mut PartialMessage {
        if self.opcode >= 8 { &mut self.control } else { &mut self.message }
    }

    fn payload(&mut self, bytes: &[u8]) {
        let (mask, start) = (self.mask, self.masked);
        self.masked = (start + bytes.len()) % 4;
        let partial = self.current();
        partial.size += bytes.len() as u64;
        let room = MAX_MESSAGE.saturating_sub(partial.data.len()).min(bytes.len());
        match mask {
            Some(mask) => {
                let plain = bytes[..room].iter().enumerate().map(|(at, byte)| byte ^ mask[(start + at) % 4]);
                partial.data.extend(plain);
            }
            None => partial.data.extend_from_slice(&bytes[..room]),
        }
    }

    fn finish(&mut self, found: &mut Vec<Parsed>) {
        if !self.is_last {
            return;
        }
        let PartialMessage { kind, data, size, compressed } = std::mem::take(self.current());
        let data = match &mut self.inflate {
            Some(inflate) if compressed => inflate.message(data, size),
            _ => data,
        };
        found.push(Parsed { kind: if kind.is_empty() { "unknown" } else { kind }, data, size });
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
        // A kilobyte can hold a megabyte of zeros: stop at a limit.
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
