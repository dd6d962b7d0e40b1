//! Frames of the link itself that wait to be sent: control messages, and small frames that go before all data.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use retunnel_proto::native::{FLAG_ACK, FrameHeader, FrameKind, HEADER_LEN};

use crate::error::LinkError;

/// Bytes gathered for one write.
pub(super) const BATCH: usize = 128 * 1024;
/// The peer's pings whose answers wait to be sent. An honest peer has one.
const MAX_PONGS: usize = 16;
/// Small frames that wait to be sent, without data, in bytes. A peer that makes us answer but does not read exceeds it.
const MAX_SMALL: usize = 1024 * 1024;
/// Size in bytes of the buffer for small writes, kept while a link is in use.
const SMALL_BUFFER: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    control: VecDeque<Vec<u8>>,
    /// Encoded frames, in the order they were made.
    small: BytesMut,
    /// Bytes of data frames in `small`.
    inlined: usize,
    pongs: usize,
}

impl Outgoing {
    pub(super) fn control_messages(&self) -> usize {
        self.control.len()
    }

    pub(super) fn push_control(&mut self, payload: Vec<u8>) {
        self.control.push_back(payload);
    }

    pub(super) fn clear_control(&mut self) {
        self.control.clear();
    }

    /// Encodes a frame at once.
    pub(super) fn push(&mut self, kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) {
        let header = FrameHeader { kind, flags, len: payload.len() as u32, stream };
        self.small.extend_from_slice(&header.encode());
        self.small.extend_from_slice(payload);
    }

    /// Whether a data frame may be encoded at once instead of waiting for its stream's turn.
    pub(super) fn takes_data(&self) -> bool {
        self.small.len() < BATCH
    }

    /// Encodes a data frame at once.
    pub(super) fn push_data(&mut self, stream: u32, payload: &[u8]) {
        self.inlined += HEADER_LEN + payload.len();
        if self.small.is_empty() {
            // Once the last batch is written, this is the same memory again.
            self.small.reserve(SMALL_BUFFER);
        }
        self.push(FrameKind::Data, 0, stream, payload);
    }

    /// Answers a ping.
    pub(super) fn push_pong(&mut self, payload: &[u8]) -> Result<(), LinkError> {
        self.pongs += 1;
        if self.pongs > MAX_PONGS {
            return Err(LinkError::Protocol("too many pings"));
        }
        self.push(FrameKind::Ping, FLAG_ACK, 0, payload);
        Ok(())
    }

    /// Checks that the peer reads what it makes us send.
    pub(super) fn check(&self) -> Result<(), LinkError> {
        if self.small.len() - self.inlined > MAX_SMALL {
            return Err(LinkError::Protocol("peer does not read the answers that it asks for"));
        }
        Ok(())
    }

    pub(super) const fn has_data(&self) -> bool {
        self.inlined > 0
    }

    /// Moves control messages to `out`, about a [`BATCH`]; returns the count of bytes.
    pub(super) fn take_control(&mut self, out: &mut VecDeque<Bytes>) -> usize {
        if self.control.is_empty() {
            return 0;
        }
        let mut messages = BytesMut::new();
        while messages.len() < BATCH
            && let Some(payload) = self.control.pop_front()
        {
            let header = FrameHeader { kind: FrameKind::Control, flags: 0, len: payload.len() as u32, stream: 0 };
            messages.extend_from_slice(&header.encode());
            messages.extend_from_slice(&payload);
        }
        let len = messages.len();
        out.push_back(messages.freeze());
        len
    }

    /// Takes the buffer with all small frames. Return it with [`Self::give_back`].
    pub(super) fn take_small(&mut self) -> BytesMut {
        self.inlined = 0;
        self.pongs = 0;
        std::mem::take(&mut self.small)
    }

    /// Takes back the emptied buffer of [`Self::take_small`].
    pub(super) fn give_back(&mut self, buffer: BytesMut) {
        debug_assert!(buffer.is_empty() && self.small.is_empty(), "frames would be lost or sent twice");
        self.small = buffer;
    }

    /// An idle link owns no memory.
    pub(super) fn release_memory(&mut self) {
        if self.small.is_empty() {
            self.small = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_gathered_into_batches() {
        let mut outgoing = Outgoing::default();
        for _ in 0..3 {
            outgoing.push_control(vec![7; BATCH / 2]);
        }
        let mut out = VecDeque::new();
        assert_eq!(outgoing.take_control(&mut out), 2 * (HEADER_LEN + BATCH / 2));
        assert_eq!(outgoing.control_messages(), 1);
        outgoing.take_control(&mut out);
        assert_eq!(outgoing.take_control(&mut out), 0, "nothing is left");
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn a_peer_that_does_not_read_its_answers_breaks_the_protocol() {
        let mut outgoing = Outgoing::default();
        let pongs = (0..=MAX_PONGS).map(|_| outgoing.push_pong(&[0; 8])).filter(Result::is_ok).count();
        assert_eq!(pongs, MAX_PONGS);
        outgoing.take_small();
        assert!(outgoing.push_pong(&[0; 8]).is_ok(), "they were sent");
        for _ in 0..MAX_SMALL / 12 {
            outgoing.push(FrameKind::Credit, 0, 1, &[0; 4]);
        }
        assert!(outgoing.check().is_err());
    }

    #[test]
    fn our_own_data_does_not_count_against_the_peer() {
        let mut outgoing = Outgoing::default();
        for _ in 0..2 * MAX_SMALL / 1000 {
            outgoing.push_data(1, &[0; 1000]);
        }
        assert!(outgoing.has_data() && !outgoing.takes_data());
        assert!(outgoing.check().is_ok());
        outgoing.take_small();
        assert!(!outgoing.has_data() && outgoing.takes_data());
    }
}
