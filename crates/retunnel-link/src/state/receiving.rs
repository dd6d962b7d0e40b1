//! Receiving: the bytes of a stream that wait for its reader, and the credit that the peer gets for more.

use std::{sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;
use retunnel_proto::native::{FrameHeader, FrameKind, ReasonCode};
use tokio::time::Instant;

use super::{State, budget::Exceeded};
use crate::{error::LinkError, lane::Lane, received::Received};

/// Result of a read from a stream's buffer.
#[derive(Debug)]
pub(crate) enum ReadOutcome {
    /// The count of bytes read. Call [`State::credit_is_due`] next.
    Bytes(usize),
    End,
    Reset(ReasonCode, String),
    Wait,
    /// The next bytes come from the lane. The number limits the bytes to read there.
    Lane(Arc<Lane>, u64),
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) bytes: Received,
    pub(super) ended: bool,
    /// What the peer may still send, in bytes.
    credit: u32,
    /// Bytes read by our side and not yet given back as credit.
    consumed: u32,
    window: u32,
    credited_at: Instant,
    /// When the oldest bytes came that wait since then.
    waits_since: Instant,
    pub(super) waker: Option<Waker>,
}

impl Receiving {
    pub(super) fn new(window: u32, now: Instant) -> Self {
        Self {
            bytes: Received::default(),
            ended: false,
            credit: window,
            consumed: 0,
            window,
            credited_at: now,
            waits_since: now,
            waker: None,
        }
    }

    /// The peer sends `len` bytes.
    fn spend_credit(&mut self, len: u32) -> Result<(), LinkError> {
        self.credit = self.credit.checked_sub(len).ok_or(LinkError::Protocol("data beyond the credit of a stream"))?;
        Ok(())
    }

    /// Drops the bytes that wait; returns their count.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }

    /// Takes the bytes that wait as if they were read; returns their count.
    pub(super) fn discard(&mut self) -> usize {
        let unread = self.clear();
        self.consumed += unread as u32;
        unread
    }

    /// How many bytes wait, times how long they have: what the stream costs the others. A reader that keeps up has taken all
    /// that waited, or half of its window, a short time ago.
    fn weight(&self, now: Instant) -> u64 {
        let held_for = now.duration_since(self.credited_at.max(self.waits_since)).as_millis().max(1);
        (self.bytes.len() as u64).saturating_mul(u64::try_from(held_for).unwrap_or(u64::MAX))
    }

    /// Whether half of the window was read.
    const fn credit_is_due(&self) -> bool {
        !self.ended && self.consumed >= self.window / 2
    }

    /// Credit for what was read. A window that was used up in less than `within` doubles, up to `max_window`: the round trip
    /// limits the stream then, not the reader.
    fn take_credit(&mut self, now: Instant, within: Duration, max_window: u32) -> u32 {
        let mut credit = self.consumed;
        if self.window < max_window && now.duration_since(self.credited_at) < within {
            let grown = self.window.saturating_mul(2).min(max_window);
            credit += grown - self.window;
            self.window = grown;
        }
        self.credited_at = now;
        self.consumed = 0;
        self.credit += credit;
        credit
    }
}

impl State {
    /// Checks the header of a data frame and takes its credit. `false`: skip the payload.
    pub(super) fn begin_data(&mut self, header: FrameHeader) -> Result<bool, LinkError> {
        let Some(stream) = self.streams.get_mut(header.stream) else {
            self.streams.check_late(header.stream, "data for a stream never opened")?;
            return Ok(false);
        };
        if stream.reset.is_some() {
            return Ok(false);
        }
        if stream.receiving.ended || stream.moving.receiving {
            return Err(LinkError::Protocol("data after the end of a stream"));
        }
        stream.receiving.spend_credit(header.len)?;
        Ok(true)
    }

    /// Bytes of a data frame whose header passed [`Self::begin_data`]. Bytes that were under way when the stream was reset
    /// here are dropped, because bytes before them are missing.
    pub(super) fn receive(&mut self, id: u32, bytes: &[u8], now: Instant, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.reset.is_none()) else { return };
        stream.moving.arrived += bytes.len() as u64;
        if stream.detached_until.is_some() {
            stream.receiving.consumed += bytes.len() as u32;
            self.give_credit(id, now);
            return;
        }
        if stream.receiving.bytes.is_empty() {
            stream.receiving.waits_since = now;
        }
        stream.receiving.bytes.push(bytes);
        wakers.extend(stream.receiving.waker.take());
        match self.buffered.add(bytes.len()) {
            Ok(()) => {}
            Err(Exceeded::Link) => while self.buffered.is_exceeded() && self.give_way(now, wakers) {},
            Err(Exceeded::Process) => self.over_budget = true,
        }
        if self.lane_is_due(id) {
            self.want_lane(id, now, wakers);
        }
    }

    pub(super) fn receive_end(&mut self, id: u32, wakers: &mut Vec<Waker>) {
        if let Some(stream) = self.streams.get_mut(id)
            // A lane that is still read after the peer's reset may bring the end that was sent before it.
            && (stream.reset.is_none() || stream.moving.lane.is_some())
        {
            stream.receiving.ended = true;
            wakers.extend(stream.receiving.waker.take());
            self.forget_if_finished(id);
        }
    }

    /// Whether the budget of the process was exceeded since the last call. [`crate::budget::Budget::relieve`] has to be called then.
    pub(crate) const fn take_over_budget(&mut self) -> bool {
        std::mem::replace(&mut self.over_budget, false)
    }

    /// The weight of the stream that would give way.
    pub(crate) fn weight(&self, now: Instant) -> u64 {
        self.streams.iter().map(|(_, stream)| stream.receiving.weight(now)).max().unwrap_or(0)
    }

    /// Makes room: the stream that has held most bytes for the longest time loses them. Returns whether there was one.
    pub(crate) fn give_way(&mut self, now: Instant, wakers: &mut Vec<Waker>) -> bool {
        let heaviest = self.streams.iter().max_by_key(|(_, stream)| stream.receiving.weight(now));
        let Some((id, _)) = heaviest.filter(|(_, stream)| !stream.receiving.bytes.is_empty()) else { return false };
        let reason = "too many bytes wait for a reader";
        self.reset_here(id, ReasonCode::LIMIT, reason, wakers);
        // One that was reset before may still hold bytes: its reader sees this reset instead.
        if let Some(stream) = self.streams.get_mut(id) {
            stream.reset = Some((ReasonCode::LIMIT, reason.to_owned()));
            stream.receiving.ended = false;
            stream.moving.lane = None;
            self.buffered.sub(stream.receiving.clear());
        }
        true
    }

    /// Whether a read would return without waiting for the link. Lanes are not included.
    pub(crate) fn is_readable(&self, id: u32) -> bool {
        self.streams
            .get(id)
            .is_none_or(|stream| stream.reset.is_some() || stream.receiving.ended || !stream.receiving.bytes.is_empty())
    }

    /// Moves bytes that wait to `into`.
    pub(crate) fn read(&mut self, id: u32, into: &mut [u8]) -> ReadOutcome {
        let Some(stream) = self.streams.get_mut(id) else { return ReadOutcome::End };
        // What arrived before a reset, or before the end of the link, is read first.
        if stream.receiving.bytes.is_empty() {
            if stream.receiving.ended {
                return ReadOutcome::End;
            }
            let reset = stream.reset.clone();
            return match (self.lane_to_read(id), reset) {
                (Some((lane, left)), _) => ReadOutcome::Lane(lane, left),
                (None, Some((code, reason))) => ReadOutcome::Reset(code, reason),
                (None, None) => ReadOutcome::Wait,
            };
        }
        let len = stream.receiving.bytes.read(into);
        stream.receiving.consumed += len as u32;
        self.buffered.sub(len);
        ReadOutcome::Bytes(len)
    }

    /// The oldest bytes that wait, without a copy; `None` when only [`Self::read`] has an answer. Call
    /// [`Self::credit_is_due`] next.
    pub(crate) fn read_piece(&mut self, id: u32) -> Option<Bytes> {
        let stream = self.streams.get_mut(id)?;
        if stream.receiving.bytes.is_empty() {
            return None;
        }
        let piece = stream.receiving.bytes.take();
        stream.receiving.consumed += piece.len() as u32;
        self.buffered.sub(piece.len());
        Some(piece)
    }

    /// Registers the reader of a stream. It is woken when there are bytes, an end or a reset, or when it has to read from
    /// a lane.
    pub(crate) fn wait_to_read(&mut self, id: u32, waker: &Waker) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.receiving.waker = Some(waker.clone());
        }
    }

    /// Whether [`Self::give_credit`] has to be called, because enough was read. It is a call of its own because few reads
    /// need it, and reading the clock costs more than a read.
    pub(crate) fn credit_is_due(&self, id: u32) -> bool {
        self.streams.get(id).is_some_and(|stream| stream.receiving.credit_is_due() && stream.reset.is_none())
    }

    /// Gives back credit for what was read, if it is due.
    pub(crate) fn give_credit(&mut self, id: u32, now: Instant) {
        let max_window = if self.buffered.has_room() { self.config.max_window.min(self.path.capacity()) } else { 0 };
        let within = self.path.limits_within();
        if let Some(stream) = self.streams.get_mut(id)
            && stream.receiving.credit_is_due()
            && stream.reset.is_none()
        {
            let credit = stream.receiving.take_credit(now, within, max_window);
            self.outgoing.push(FrameKind::Credit, 0, id, &credit.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    /// A half whose peer has sent `len` bytes, all of which were read.
    fn after_reading(window: u32, len: u32, start: Instant) -> Receiving {
        let mut receiving = Receiving::new(window, start);
        receiving.spend_credit(len).expect("within the window");
        receiving.consumed = len;
        receiving
    }

    #[test]
    fn the_peer_cannot_send_more_than_its_credit() {
        let mut receiving = Receiving::new(100, Instant::now());
        assert!(receiving.spend_credit(60).is_ok());
        assert!(receiving.spend_credit(41).is_err());
        assert!(receiving.spend_credit(40).is_ok());
        assert!(receiving.spend_credit(0).is_ok(), "a half-close costs nothing");
    }

    #[test]
    fn credit_is_due_once_half_of_the_window_was_read() {
        let start = Instant::now();
        assert!(!after_reading(100, 49, start).credit_is_due());
        let mut receiving = after_reading(100, 50, start);
        assert!(receiving.credit_is_due());
        assert_eq!(receiving.take_credit(start + RTT, RTT, 1000), 50, "slow readers get back what they read");
        assert_eq!((receiving.credit, receiving.window), (100, 100));
        assert!(!receiving.credit_is_due());
        receiving.consumed = 100;
        receiving.ended = true;
        assert!(!receiving.credit_is_due(), "nothing more will come");
    }

    #[test]
    fn a_window_that_the_round_trip_limits_doubles_up_to_its_bound() {
        let start = Instant::now();
        let mut receiving = after_reading(100, 50, start);
        assert_eq!(receiving.take_credit(start + RTT / 2, RTT, 150), 100, "50 read, and 50 more");
        assert_eq!((receiving.credit, receiving.window), (150, 150));
        receiving.consumed = 75;
        receiving.credit = 75;
        assert_eq!(receiving.take_credit(start + RTT / 2, RTT, 150), 75);
        assert_eq!(receiving.window, 150);
        assert_eq!(receiving.take_credit(start + RTT / 2, RTT, 0), 0, "without room it does not grow");
    }

    #[test]
    fn bytes_that_are_discarded_count_as_read() {
        let mut receiving = Receiving::new(100, Instant::now());
        receiving.bytes.push(&[0; 70]);
        assert_eq!(receiving.discard(), 70);
        assert!(receiving.credit_is_due());
        assert_eq!(receiving.clear(), 0);
    }
}
