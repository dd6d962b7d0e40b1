//! Frames of the native link: many streams and one control channel over one byte stream.
//!
//! Every frame is an 8-byte header and a payload. All numbers are big-endian.
//!
//! ```text
//! byte 0      kind (low 4 bits) and flags (high 4 bits)
//! bytes 1-3   payload length, unsigned
//! bytes 4-7   stream id; 0 is the control channel
//! ```
//!
//! Streams are opened by the server, one per visitor connection. Ids grow by one and wrap after 2^32; an id is not
//! reused while either side still knows it.
//!
//! A bulk stream may move to a *lane*, a dedicated connection, at an exact byte in each direction. Its half-closes and
//! resets stay on the link, with counts of bytes, so that a lane that is cut is never taken for an end.

pub mod control;

use bytes::{Buf, BufMut};

use crate::{DecodeError, limits};

/// Version of the link protocol, sent in [`control::Hello`]. Version 2 carries a tunnel's rules as a list.
pub const VERSION: u16 = 2;
/// Oldest version that a server still serves.
pub const MIN_VERSION: u16 = 1;
/// First version whose servers apply [`crate::message::ReqTunnel::rules`]. Older ones ignore them.
pub const RULES_VERSION: u16 = 2;

/// Name of a link that is carried in a WebSocket, for `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "retunnel-link.1";

/// Size of a frame header in bytes.
pub const HEADER_LEN: usize = 8;

/// Flag of [`FrameKind::Data`]: the sender sends nothing more on this stream (half-close).
pub const FLAG_FIN: u8 = 0x1;

/// Flag of [`FrameKind::Ping`]: this is the answer to a ping.
pub const FLAG_ACK: u8 = 0x1;

/// Flag of [`FrameKind::Moved`]: the client has no such lane, and the stream stays on the link.
pub const FLAG_DECLINED: u8 = 0x1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Control message as MessagePack, on stream 0.
    Control = 0,
    /// The server opens a stream. The payload is a [`control::Open`] as MessagePack.
    Open = 1,
    /// Bytes of a stream. They use up credit.
    Data = 2,
    /// Credit for the peer's data on this stream, added to what it has: 4 bytes, a count of bytes.
    Credit = 3,
    /// Ends a stream at once in both directions: 4 bytes [`ReasonCode`], then a reason in UTF-8.
    Reset = 4,
    /// Liveness and round-trip time: 8 opaque bytes, which the peer returns with [`FLAG_ACK`].
    Ping = 5,
    /// The sender is about to end the link: 4 bytes [`ReasonCode`], then a reason in UTF-8. Streams may finish.
    GoAway = 6,
    /// The server offers to carry a stream on a lane: 4 bytes, the number of the lane.
    Move = 7,
    /// The sender's further bytes go to the lane: 8 bytes, the count of bytes that it sent on the link. The client answers
    /// [`FrameKind::Move`] with this, then the server sends it too.
    Moved = 8,
    /// The sender sends nothing more on a stream that moved (half-close): 8 bytes, the count of all bytes it sent.
    End = 9,
}

impl FrameKind {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Control,
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Credit,
            4 => Self::Reset,
            5 => Self::Ping,
            6 => Self::GoAway,
            7 => Self::Move,
            8 => Self::Moved,
            9 => Self::End,
            _ => return None,
        })
    }
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Flag bits (0-15); unknown ones are ignored.
    pub flags: u8,
    /// Payload length in bytes.
    pub len: u32,
    /// Stream id, 0 for the link itself.
    pub stream: u32,
}

impl FrameHeader {
    /// The header as bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        debug_assert!(self.len < 1 << 24, "payload length has 24 bits");
        let mut out = [0; HEADER_LEN];
        let mut buf = &mut out[..];
        buf.put_u32((u32::from(self.kind as u8 | self.flags << 4) << 24) | self.len);
        buf.put_u32(self.stream);
        out
    }

    /// Decodes a header and checks everything that can be checked without the payload: kind, stream id, and the length
    /// against the limit of the kind (`max_control` bytes for control messages and opens).
    ///
    /// # Errors
    /// [`DecodeError::UnknownFrame`], [`DecodeError::TooLarge`], [`DecodeError::InvalidFrame`].
    pub fn decode(bytes: [u8; HEADER_LEN], max_control: usize) -> Result<Self, DecodeError> {
        let mut buf = &bytes[..];
        let word = buf.get_u32();
        let stream = buf.get_u32();
        let bits = (word >> 24) as u8;
        let kind = FrameKind::from_bits(bits & 0x0f).ok_or(DecodeError::UnknownFrame(bits & 0x0f))?;
        let header = Self { kind, flags: bits >> 4, len: word & 0x00ff_ffff, stream };
        header.check(max_control)?;
        Ok(header)
    }

    fn check(&self, max_control: usize) -> Result<(), DecodeError> {
        let len = self.len as usize;
        let (what, min, max, on_stream) = match self.kind {
            FrameKind::Control => ("control message", 1, max_control, false),
            FrameKind::Open => ("open frame", 1, max_control, true),
            FrameKind::Data => ("data frame", 0, limits::MAX_DATA_PAYLOAD, true),
            FrameKind::Credit => ("credit frame", 4, 4, true),
            FrameKind::Reset => ("reset frame", 4, 4 + limits::MAX_REASON, true),
            FrameKind::Ping => ("ping frame", 8, 8, false),
            FrameKind::GoAway => ("go-away frame", 4, 4 + limits::MAX_REASON, false),
            FrameKind::Move => ("move frame", 4, 4, true),
            FrameKind::Moved => ("moved frame", 8, 8, true),
            FrameKind::End => ("end frame", 8, 8, true),
        };
        if len > max {
            return Err(DecodeError::TooLarge { what, size: len as u64, limit: max as u64 });
        }
        if len < min {
            return Err(DecodeError::Truncated(what));
        }
        if on_stream != (self.stream != 0) {
            return Err(DecodeError::InvalidFrame("stream id does not fit the frame's kind"));
        }
        Ok(())
    }
}

/// Why a stream was reset or a link ends. Unknown numbers are kept, because a newer peer may send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReasonCode(pub u32);

impl ReasonCode {
    /// No error: the sender is done or stopping.
    pub const NONE: Self = Self(0);
    /// The sender abandoned the stream: the visitor or the local service is gone.
    pub const CANCELLED: Self = Self(1);
    /// The local service refused the connection or cannot be reached.
    pub const LOCAL_UNREACHABLE: Self = Self(2);
    /// The tunnel named in the open frame does not exist in this client.
    pub const UNKNOWN_TUNNEL: Self = Self(3);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(4);
    /// A limit of streams, frames or bytes was exceeded.
    pub const LIMIT: Self = Self(5);
    /// The sender is stopping. Open a new link elsewhere or later.
    pub const SHUTTING_DOWN: Self = Self(6);
    /// A newer session of the same account took over.
    pub const SUPERSEDED: Self = Self(7);
    /// The account's token was revoked or rotated.
    pub const REVOKED: Self = Self(8);
    /// The sender had an internal error.
    pub const INTERNAL: Self = Self(9);
    /// The sender serves as many visitors as it can.
    pub const BUSY: Self = Self(10);
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::NONE => "no error",
            Self::CANCELLED => "cancelled",
            Self::LOCAL_UNREACHABLE => "local service unreachable",
            Self::UNKNOWN_TUNNEL => "unknown tunnel",
            Self::PROTOCOL => "protocol error",
            Self::LIMIT => "limit exceeded",
            Self::SHUTTING_DOWN => "shutting down",
            Self::SUPERSEDED => "superseded by a newer session",
            Self::REVOKED => "access revoked",
            Self::INTERNAL => "internal error",
            Self::BUSY => "too many visitors",
            Self(other) => return write!(f, "code {other}"),
        })
    }
}

/// Encodes the payload of a reset or go-away frame: code and reason, the reason cut to [`limits::MAX_REASON`] bytes.
#[must_use]
pub fn encode_reason(code: ReasonCode, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(limits::MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = Vec::with_capacity(4 + end);
    out.put_u32(code.0);
    out.put_slice(&reason.as_bytes()[..end]);
    out
}

/// Decodes the payload of a reset or go-away frame. Invalid UTF-8 and control characters are replaced.
///
/// # Errors
/// [`DecodeError::Truncated`] with fewer than four bytes.
pub fn decode_reason(mut payload: &[u8]) -> Result<(ReasonCode, String), DecodeError> {
    if payload.len() < 4 {
        return Err(DecodeError::Truncated("reason"));
    }
    let code = ReasonCode(payload.get_u32());
    let text = String::from_utf8_lossy(&payload[..payload.len().min(limits::MAX_REASON)]);
    Ok((code, text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_as_documented() {
        let header = FrameHeader { kind: FrameKind::Data, flags: FLAG_FIN, len: 0x0001_0000, stream: 0x0102_0304 };
        assert_eq!(header.encode(), [0x12, 0x01, 0x00, 0x00, 1, 2, 3, 4]);
        assert_eq!(FrameHeader::decode(header.encode(), 0), Ok(header));
    }

    #[test]
    fn header_limits_hold_per_kind() {
        let too_long = FrameHeader { kind: FrameKind::Data, flags: 0, len: 65_537, stream: 1 };
        assert!(matches!(FrameHeader::decode(too_long.encode(), 0), Err(DecodeError::TooLarge { .. })));
        let control = FrameHeader { kind: FrameKind::Control, flags: 0, len: 100, stream: 0 };
        assert!(FrameHeader::decode(control.encode(), 100).is_ok());
        assert!(FrameHeader::decode(control.encode(), 99).is_err());
        let data_on_control = FrameHeader { kind: FrameKind::Data, flags: 0, len: 1, stream: 0 };
        assert!(matches!(FrameHeader::decode(data_on_control.encode(), 0), Err(DecodeError::InvalidFrame(_))));
        assert_eq!(FrameHeader::decode([0x0f, 0, 0, 0, 0, 0, 0, 0], 0), Err(DecodeError::UnknownFrame(15)));
    }

    #[test]
    fn reasons_are_cut_at_a_character_and_cleaned() {
        let long = "ä".repeat(200);
        let payload = encode_reason(ReasonCode::LIMIT, &long);
        assert!(payload.len() <= 4 + limits::MAX_REASON);
        let (code, text) = decode_reason(&payload).expect("valid");
        assert_eq!(code, ReasonCode::LIMIT);
        assert!(long.starts_with(&text));
        assert_eq!(decode_reason(&[0, 0, 0, 1, b'a', b'\n', 0xff]).expect("valid").1, "a \u{fffd}");
        assert!(decode_reason(&[0, 0, 0]).is_err());
    }
}
