//! Sending: the bytes of a stream that wait for its turn, its credit, and the batches that the link writes.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::{Buf, Bytes, BytesMut};
use retunnel_proto::{
    limits::MAX_DATA_PAYLOAD,
    native::{FLAG_FIN, FrameHeader, FrameKind, HEADER_LEN, ReasonCode},
};

use super::{State, outgoing::BATCH};
use crate::{chunk, error::LinkError, lane::Lane};

/// Most bytes a stream sends in its turn. A 16 KiB chunk occupies a 100 Mbit/s link for 1.3 ms.
const TURN: usize = 16 * 1024;
/// Payloads from this size on are handed to the socket where they are. Smaller ones are copied one after the other, so
/// that one slice carries many frames.
const COPY_BELOW: usize = 2 * 1024;
/// Limit of the credit that the peer can give.
pub(super) const MAX_CREDIT: u32 = i32::MAX as u32;

/// What became of bytes given to a stream.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// The count of bytes taken; 0 when the writer must wait. Call [`State::lane_is_due`] next.
    Took(usize),
    /// The bytes have to be written to the lane.
    Lane(Arc<Lane>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendEnd {
    Open,
    /// A half-close waits to be sent after the stream's bytes.
    Queued,
    Sent,
}

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Sending {
    unsent: Unsent,
    /// Bytes that the peer accepts now.
    credit: u32,
    end: SendEnd,
    /// In the list of streams that want a turn.
    queued: bool,
    pub(super) waker: Option<Waker>,
}

impl Sending {
    pub(super) fn new(credit: u32) -> Self {
        Self { unsent: Unsent::default(), credit, end: SendEnd::Open, queued: false, waker: None }
    }

    /// Whether more may be written.
    pub(super) fn is_open(&self) -> bool {
        self.end == SendEnd::Open
    }

    /// Whether all bytes and the half-close are sent.
    pub(super) const fn is_done(&self) -> bool {
        matches!(self.end, SendEnd::Sent)
    }

    /// Bytes that wait to be sent.
    pub(super) fn len(&self) -> usize {
        self.unsent.len()
    }

    /// Whether a frame can be sent: there are bytes and credit for them, or all bytes are sent and the half-close is not.
    pub(super) fn wants_turn(&self) -> bool {
        if self.unsent.is_empty() { self.end == SendEnd::Queued } else { self.credit > 0 }
    }

    /// Whether all bytes, and the half-close if there is one, are sent.
    pub(super) fn is_drained(&self) -> bool {
        self.unsent.is_empty() && self.end != SendEnd::Queued
    }

    /// Whether all bytes are sent and the half-close is not.
    pub(super) fn end_is_due(&self) -> bool {
        self.unsent.is_empty() && self.end == SendEnd::Queued
    }

    pub(super) fn end_is_sent(&mut self) {
        self.end = SendEnd::Sent;
    }

    /// Drops the bytes that wait; returns their count.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.unsent).len()
    }

    fn add_credit(&mut self, bytes: u32) -> Result<(), LinkError> {
        let credit = self.credit.checked_add(bytes).filter(|sum| *sum <= MAX_CREDIT);
        self.credit = credit.ok_or(LinkError::Protocol("credit overflows"))?;
        Ok(())
    }

    /// Whether a write may become a frame at once: it is small, and nothing of this stream waits before it.
    fn sends_at_once(&self, len: usize) -> bool {
        len <= COPY_BELOW && len <= self.credit as usize && self.unsent.is_empty() && !self.queued
    }
}

/// Bytes of a stream that wait for its turns.
#[derive(Debug, Default)]
struct Unsent {
    /// Goes first: bytes that were taken without a copy.
    owned: Bytes,
    copied: BytesMut,
}

impl Unsent {
    fn len(&self) -> usize {
        self.owned.len() + self.copied.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that go next, as far as they are contiguous.
    fn next(&self) -> &[u8] {
        if self.owned.is_empty() { &self.copied } else { &self.owned }
    }

    /// Takes `len` bytes of [`Self::next`]. An idle stream owns no memory.
    fn split_to(&mut self, len: usize) -> Bytes {
        let part = if self.owned.is_empty() { self.copied.split_to(len).freeze() } else { self.owned.split_to(len) };
        self.release();
        part
    }

    fn skip(&mut self, len: usize) {
        if self.owned.is_empty() {
            self.copied.advance(len);
        } else {
            self.owned.advance(len);
        }
        self.release();
    }

    fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl State {
    /// The peer's window is known: streams that were opened before get it as credit.
    pub(super) fn add_initial_credit(&mut self, bytes: u32) {
        for id in self.streams.ids() {
            if let Some(stream) = self.streams.get_mut(id) {
                // The peer may have given credit before.
                stream.sending.credit = stream.sending.credit.saturating_add(bytes).min(MAX_CREDIT);
            }
            self.want_turn(id);
        }
    }

    /// The peer gives credit.
    pub(super) fn credited(&mut self, id: u32, payload: &[u8]) -> Result<(), LinkError> {
        let added = u32::from_be_bytes(payload.try_into().expect("the header's check made it 4 bytes"));
        let Some(stream) = self.streams.get_mut(id) else {
            return self.streams.check_late(id, "credit for a stream never opened");
        };
        stream.sending.add_credit(added)?;
        self.want_turn(id);
        Ok(())
    }

    /// Takes bytes of a stream. A small write with nothing before it becomes a frame at once; everything else waits for
    /// the stream's turn.
    pub(crate) fn write(&mut self, id: u32, bytes: &[u8]) -> Result<WriteOutcome, (ReasonCode, String)> {
        if let Some(error) = &self.ended {
            return Err((ReasonCode::CANCELLED, error.to_string()));
        }
        if let Some(lane) = self.lane_to_write(id) {
            return Ok(WriteOutcome::Lane(lane));
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return Err((ReasonCode::CANCELLED, "stream has ended".into()));
        };
        if let Some(reset) = &stream.reset {
            return Err(reset.clone());
        }
        if !stream.sending.is_open() {
            return Err((ReasonCode::NONE, "written after the half-close".into()));
        }
        if stream.sending.sends_at_once(bytes.len()) && self.outgoing.takes_data() {
            stream.sending.credit -= bytes.len() as u32;
            stream.moving.sent += bytes.len() as u64;
            self.outgoing.push_data(id, bytes);
            return Ok(WriteOutcome::Took(bytes.len()));
        }
        let count = self.backlog.room(stream.sending.len()).min(bytes.len());
        stream.sending.unsent.copied.extend_from_slice(&bytes[..count]);
        stream.moving.sent += count as u64;
        self.backlog.add(count);
        self.want_turn(id);
        Ok(WriteOutcome::Took(count))
    }

    /// Takes bytes without a copy if there are enough of them and none wait before them. Advances `bytes` by the count.
    pub(crate) fn write_owned(&mut self, id: u32, bytes: &mut Bytes) -> Result<WriteOutcome, (ReasonCode, String)> {
        if bytes.len() >= chunk::OWN_FROM
            && !self.backlog.is_crowded()
            && self.ended.is_none()
            && let Some(stream) = self.streams.get_mut(id)
            && stream.moving.is_on_link()
            && stream.sending.is_open()
            && stream.reset.is_none()
        {
            if !stream.sending.unsent.is_empty() {
                return Ok(WriteOutcome::Took(0));
            }
            let len = bytes.len();
            stream.sending.unsent.owned = std::mem::take(bytes);
            stream.moving.sent += len as u64;
            self.backlog.add(len);
            self.want_turn(id);
            return Ok(WriteOutcome::Took(len));
        }
        let outcome = self.write(id, bytes);
        if let Ok(WriteOutcome::Took(count)) = outcome {
            bytes.advance(count);
        }
        outcome
    }

    /// Registers the writer of a stream. It is woken when there is room, or when it has to write to a lane.
    pub(crate) fn wait_to_write(&mut self, id: u32, waker: &Waker) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sending.waker = Some(waker.clone());
        }
    }

    pub(crate) fn end_sending(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.sending.is_open()
            && stream.reset.is_none()
            && !stream.is_resetting()
        {
            stream.sending.end = SendEnd::Queued;
            self.want_turn(id);
        }
    }

    pub(super) fn want_turn(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.sending.queued
            && stream.wants_turn()
        {
            stream.sending.queued = true;
            self.turns.push_back(id);
        }
    }

    /// Gathers what may be sent now: control messages, then small frames, then one turn for each stream that wants one,
    /// until a batch is full. So whatever a control message announces (a tunnel, the reason of a go-away) arrives before
    /// the frames that follow from it. `wakers` receives writers that have room again. Returns whether the batch contains
    /// bytes of streams.
    pub(crate) fn gather(&mut self, out: &mut VecDeque<Bytes>, wakers: &mut Vec<Waker>) -> bool {
        let has_data = self.outgoing.has_data() || !self.turns.is_empty();
        let mut gathered = self.outgoing.take_control(out);
        if self.outgoing.control_messages() > 0 {
            return false;
        }
        wakers.append(&mut self.control_waiters);
        let mut small = self.outgoing.take_small();
        gathered += small.len();
        if self.closing.is_none() {
            while gathered < BATCH
                && let Some(id) = self.turns.pop_front()
            {
                gathered += self.take_turn(id, &mut small, out, wakers);
            }
        }
        if !small.is_empty() {
            out.push_back(small.split().freeze());
        }
        self.outgoing.give_back(small);
        has_data
    }

    fn take_turn(
        &mut self,
        id: u32,
        small: &mut BytesMut,
        out: &mut VecDeque<Bytes>,
        wakers: &mut Vec<Waker>,
    ) -> usize {
        let Some(stream) = self.streams.get_mut(id) else { return 0 };
        stream.sending.queued = false;
        if !stream.wants_turn() {
            return 0;
        }
        if stream.sending.unsent.is_empty() {
            if let Some(len) = self.moving_frame(id, small) {
                self.want_turn(id);
                self.forget_if_finished(id);
                return len;
            }
            if let Some(len) = self.due_reset(id, small, wakers) {
                return len;
            }
        }
        let Some(stream) = self.streams.get_mut(id) else { return 0 };
        let sending = &mut stream.sending;
        let len = sending.unsent.next().len().min(TURN).min(sending.credit as usize);
        sending.credit -= len as u32;
        let fin = sending.end == SendEnd::Queued && len == sending.unsent.len() && stream.moving.is_on_link();
        if fin {
            sending.end_is_sent();
        }
        let flags = if fin { FLAG_FIN } else { 0 };
        let header = FrameHeader { kind: FrameKind::Data, flags, len: len as u32, stream: id };
        small.extend_from_slice(&header.encode());
        if len < COPY_BELOW {
            small.extend_from_slice(&sending.unsent.next()[..len]);
            sending.unsent.skip(len);
        } else {
            let payload = sending.unsent.split_to(len);
            out.push_back(small.split().freeze());
            out.push_back(payload);
        }
        wakers.extend(sending.waker.take());
        self.backlog.sub(len);
        if stream.wants_turn() {
            stream.sending.queued = true;
            self.turns.push_back(id);
        } else if stream.is_finished() {
            self.forget_if_finished(id);
        }
        HEADER_LEN + len
    }
}

const _: () = assert!(TURN <= MAX_DATA_PAYLOAD, "a turn must fit a frame");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_taken_without_a_copy_go_before_those_copied_after_them() {
        let mut unsent = Unsent { owned: Bytes::from_static(b"first"), copied: BytesMut::from(&b"second"[..]) };
        assert_eq!(unsent.len(), 11);
        assert_eq!(&unsent.split_to(3)[..], b"fir");
        unsent.skip(2);
        assert_eq!(unsent.next(), b"second");
        unsent.skip(6);
        assert!(unsent.is_empty());
        assert_eq!(unsent.copied.capacity(), 0, "an idle stream owns no memory");
    }

    #[test]
    fn only_small_writes_with_credit_and_nothing_before_them_are_sent_at_once() {
        let mut sending = Sending::new(100);
        assert!(sending.sends_at_once(100) && !sending.sends_at_once(101));
        sending.credit = 1 << 20;
        assert!(sending.sends_at_once(COPY_BELOW) && !sending.sends_at_once(COPY_BELOW + 1));
        sending.queued = true;
        assert!(!sending.sends_at_once(1), "a turn is due");
        sending.queued = false;
        sending.unsent.owned = Bytes::from_static(b"x");
        assert!(!sending.sends_at_once(1), "bytes wait");
    }

    #[test]
    fn credit_does_not_overflow() {
        let mut sending = Sending::new(MAX_CREDIT - 1);
        assert!(sending.add_credit(1).is_ok());
        assert!(sending.add_credit(1).is_err() && sending.add_credit(u32::MAX).is_err());
    }
}
