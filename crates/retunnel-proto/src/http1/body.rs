//! Bodies: where payload lies in received bytes, and how payload is framed to be sent.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Framing, Headers, MAX_HEADERS};

/// Longest line of a chunk's size with its extensions, in bytes.
const MAX_CHUNK_LINE: usize = 4 * 1024;
/// Most digits of a chunk's size: 2^60 is more than anyone sends in one chunk.
const MAX_CHUNK_DIGITS: usize = 15;
/// Longest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;

/// A body does not follow the rules of its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadBody;

/// One step of a [`Decoder`]: skip `framing` bytes, then `payload` bytes are the body's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Bytes of framing to skip.
    pub framing: usize,
    /// Bytes of payload after them.
    pub payload: usize,
}

/// Finds the payload of a body in received bytes, however they are split.
///
/// ```
/// use retunnel_proto::http1::{Framing, body::Decoder};
///
/// let mut decoder = Decoder::new(Framing::Chunked);
/// let input = b"5\r\nhello\r\n0\r\n\r\n";
/// let step = decoder.step(input).unwrap();
/// assert_eq!(&input[step.framing..step.framing + step.payload], b"hello");
/// ```
#[derive(Debug)]
pub struct Decoder {
    state: State,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// In a chunk's first line: value and count of its digits, bytes of the line.
    Size(u64, usize, usize),
    /// In the extensions of a chunk: its size, bytes of the line.
    Extension(u64, usize),
    SizeLf(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers,
    Done,
}

impl Decoder {
    /// A decoder for a body with this framing.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0, 0),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, trailers: Vec::new() }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the body is complete when the connection ends now.
    #[must_use]
    pub fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Bytes that are left of a body with a length; `None` for others.
    #[must_use]
    pub fn sized_left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// How many of the next bytes are payload for certain: they may be moved without this decoder.
    #[must_use]
    pub const fn payload_left(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunk(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// Counts payload that was moved without this decoder, at most [`Self::payload_left`].
    pub fn skip(&mut self, count: u64) {
        match &mut self.state {
            State::Length(left) | State::Chunk(left) => *left = left.saturating_sub(count),
            _ => {}
        }
        match self.state {
            State::Length(0) => self.state = State::Done,
            State::Chunk(0) => self.state = State::ChunkCr,
            _ => {}
        }
    }

    /// Decodes the bytes that follow the last step. A step of zeros means that more are needed, or that the body is
    /// complete.
    ///
    /// # Errors
    /// [`BadBody`]: the end of the body cannot be found any more.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BadBody> {
        let mut used = 0;
        loop {
            let Some(byte) = input.get(used).copied() else { return Ok(Step { framing: used, payload: 0 }) };
            let available = (input.len() - used) as u64;
            match self.state {
                State::Done => return Ok(Step { framing: used, payload: 0 }),
                State::UntilClose => return Ok(Step { framing: used, payload: input.len() - used }),
                State::Length(left) => {
                    let payload = left.min(available);
                    self.state = if payload == left { State::Done } else { State::Length(left - payload) };
                    return Ok(Step { framing: used, payload: payload as usize });
                }
                State::Chunk(left) => {
                    let payload = left.min(available);
                    self.state = if payload == left { State::ChunkCr } else { State::Chunk(left - payload) };
                    return Ok(Step { framing: used, payload: payload as usize });
                }
                State::Size(value, digits, line) => {
                    self.state = match (byte, char::from(byte).to_digit(16)) {
                        (_, Some(digit)) if digits < MAX_CHUNK_DIGITS => {
                            State::Size(value << 4 | u64::from(digit), digits + 1, line + 1)
                        }
                        (b';' | b' ' | b'\t', _) if digits > 0 => State::Extension(value, line + 1),
                        (b'\r', _) if digits > 0 => State::SizeLf(value),
                        _ => return Err(BadBody),
                    };
                }
                State::Extension(value, line) => {
                    self.state = match byte {
                        b'\r' => State::SizeLf(value),
                        b'\n' | 0 => return Err(BadBody),
                        _ if line >= MAX_CHUNK_LINE => return Err(BadBody),
                        _ => State::Extension(value, line + 1),
                    };
                }
                State::SizeLf(value) => {
                    if byte != b'\n' {
                        return Err(BadBody);
                    }
                    self.state = if value == 0 { State::Trailers } else { State::Chunk(value) };
                }
                State::ChunkCr => {
                    if byte != b'\r' {
                        return Err(BadBody);
                    }
                    self.state = State::ChunkLf;
                }
                State::ChunkLf => {
                    if byte != b'\n' {
                        return Err(BadBody);
                    }
                    self.state = State::Size(0, 0, 0);
                }
                State::Trailers => self.trailer_byte(byte)?,
            }
            used += 1;
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(), BadBody> {
        if self.trailers.len() >= MAX_TRAILERS || (byte == b'\n' && self.trailers.last() != Some(&b'\r')) {
            return Err(BadBody);
        }
        self.trailers.push(byte);
        if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
            self.state = State::Done;
        }
        Ok(())
    }

    /// The trailers of a complete body that may be passed on: none that frames, routes or authorises (row 7).
    ///
    /// # Errors
    /// [`BadBody`] when they are not headers.
    pub fn trailers(&mut self) -> Result<Vec<(Bytes, Bytes)>, BadBody> {
        if self.trailers.len() <= 2 {
            return Ok(Vec::new());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.trailers));
        let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
        match httparse::parse_headers(&bytes, &mut storage) {
            Ok(httparse::Status::Complete((_, parsed))) => Ok(Headers::new(bytes.clone(), parsed)
                .iter()
                .filter(|(name, _)| may_trail(name))
                .map(|(name, value)| (bytes.slice_ref(name), bytes.slice_ref(value)))
                .collect()),
            _ => Err(BadBody),
        }
    }
}

fn may_trail(name: &[u8]) -> bool {
    let forbidden = [
        &b"content-length"[..],
        b"host",
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"location",
        b"expect",
        b"cache-control",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ];
    !super::is_hop_by_hop(name) && !forbidden.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

/// Room for the size line of a chunk of at most 2^32 bytes.
pub const CHUNK_HEAD: usize = 10;
/// What follows a chunk.
pub const CHUNK_TAIL: &[u8] = b"\r\n";

/// Writes the size line of a chunk right before its payload at `buffer[CHUNK_HEAD..]` and returns its start.
pub fn chunk_head(buffer: &mut [u8], len: usize) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut at = CHUNK_HEAD - 2;
    buffer[at..CHUNK_HEAD].copy_from_slice(b"\r\n");
    let mut rest = len;
    loop {
        at -= 1;
        buffer[at] = DIGITS[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return at;
        }
    }
}

/// Writes a payload as one chunk.
pub fn put_chunk(payload: &[u8], out: &mut BytesMut) {
    let mut size = [0; CHUNK_HEAD];
    let start = chunk_head(&mut size, payload.len());
    out.put_slice(&size[start..]);
    out.put_slice(payload);
    out.put_slice(CHUNK_TAIL);
}

/// Writes the end of a chunked body with its trailers.
pub fn last_chunk(trailers: &[(Bytes, Bytes)], out: &mut BytesMut) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers {
        out.put_slice(name);
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}
