//! The streams of a link: their ids, how one is opened, and the ways in which one ends.

use std::{collections::HashMap, task::Waker, time::Duration};

use bytes::BytesMut;
use foldhash::fast::FixedState;
use retunnel_proto::native::{self, FrameHeader, FrameKind, HEADER_LEN, ReasonCode, control::Open};
use tokio::time::Instant;

use super::{QueuedEvent, State, lanes::Moving, receiving::Receiving, sending::Sending};
use crate::{
    config::{LinkConfig, Role},
    error::{LinkError, OpenError},
};

/// How long a stream without a handle may take to finish. Where bytes wait to be sent before a reset, how long none of them
/// may be sent.
const DETACHED_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    pub(super) moving: Moving,
    pub(super) reset: Option<(ReasonCode, String)>,
    /// A reset of this side that waits until everything before it is sent.
    due_reset: Option<Box<DueReset>>,
    /// Set when the handle is gone: the stream finishes by itself until then.
    pub(super) detached_until: Option<Instant>,
}

#[derive(Debug)]
struct DueReset {
    code: ReasonCode,
    reason: String,
    /// Bytes of the stream that were sent when it was last checked.
    sent: u64,
}

/// Who ends a stream at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    Us,
    Peer,
    /// The link is gone.
    Link,
}

impl Stream {
    fn new(config: &LinkConfig, send_credit: u32, now: Instant) -> Self {
        Self {
            receiving: Receiving::new(config.initial_window, now),
            sending: Sending::new(send_credit),
            moving: Moving::default(),
            reset: None,
            due_reset: None,
            detached_until: None,
        }
    }

    /// Whether a frame of the stream can be sent. After a reset nothing is: not a half-close either, which the peer would
    /// take for a complete end.
    pub(super) fn wants_turn(&self) -> bool {
        let has_frame = || self.moving.is_switching() || self.due_reset.is_some();
        self.reset.is_none() && (self.sending.wants_turn() || (self.sending.len() == 0 && has_frame()))
    }

    /// Whether the handle has reset the stream, though bytes before the reset may not be sent yet.
    pub(super) const fn is_resetting(&self) -> bool {
        self.due_reset.is_some()
    }

    /// Bytes of our direction that were sent.
    fn sent(&self) -> u64 {
        self.moving.sent - self.sending.len() as u64
    }

    pub(super) const fn is_finished(&self) -> bool {
        self.reset.is_some() || (self.receiving.ended && self.sending.is_done())
    }
}

/// The streams that are not finished, by id.
#[derive(Debug, Default)]
pub(super) struct Streams {
    by_id: HashMap<u32, Stream, FixedState>,
    /// Id of the newest stream, 0 before the first.
    last_id: u32,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Stream)> {
        self.by_id.iter().map(|(id, stream)| (*id, stream))
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.by_id.keys().copied().collect()
    }

    /// The next id for a stream that this side opens.
    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.by_id.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Checks the id of a stream that the peer opens.
    fn accept_id(&mut self, id: u32) -> Result<(), LinkError> {
        let is_newer = id != self.last_id && id.wrapping_sub(self.last_id) < u32::MAX / 2;
        if !is_newer || self.by_id.contains_key(&id) {
            return Err(LinkError::Protocol("stream ids must grow"));
        }
        self.last_id = id;
        Ok(())
    }

    /// Whether the id belongs or belonged to a stream. Ids wrap: half of them count as older than the newest.
    pub(super) const fn was_opened(&self, id: u32) -> bool {
        self.last_id.wrapping_sub(id) < u32::MAX / 2 && self.last_id != 0
    }

    /// Checks a frame for a stream that does not exist. One that has ended here may have frames under way.
    pub(super) const fn check_late(&self, id: u32, error: &'static str) -> Result<(), LinkError> {
        if self.was_opened(id) { Ok(()) } else { Err(LinkError::Protocol(error)) }
    }
}

impl State {
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Opens a stream (server); `open` is the encoded open message.
    pub(crate) fn open_stream(&mut self, open: &[u8], now: Instant) -> Result<u32, OpenError> {
        if let Some(error) = &self.ended {
            return Err(OpenError::Ended(error.clone()));
        }
        if self.closing.is_some() || self.peer_going_away.is_some() || self.role == Role::Client {
            return Err(OpenError::Closing);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::TooMany(self.config.max_streams));
        }
        let id = self.streams.next_id();
        self.insert_stream(id, now);
        // An open must reach the peer before the stream's first bytes; small frames go before data.
        self.outgoing.push(FrameKind::Open, 0, id, open);
        Ok(id)
    }

    /// The server opens a stream (client).
    pub(super) fn opened(
        &mut self,
        id: u32,
        payload: &[u8],
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), LinkError> {
        if self.role == Role::Server {
            return Err(LinkError::Protocol("only the server opens streams"));
        }
        self.streams.accept_id(id)?;
        let open = Open::decode(payload)?;
        if self.streams.len() >= self.config.max_streams {
            let reason = native::encode_reason(ReasonCode::LIMIT, "too many streams");
            self.outgoing.push(FrameKind::Reset, 0, id, &reason);
        } else {
            self.insert_stream(id, now);
            self.push_event(QueuedEvent::Opened(open, id), wakers);
        }
        Ok(())
    }

    fn insert_stream(&mut self, id: u32, now: Instant) {
        let stream = Stream::new(&self.config, self.peer_window.unwrap_or(0), now);
        self.streams.by_id.insert(id, stream);
    }

    pub(crate) fn is_reset(&self, id: u32) -> bool {
        self.streams.get(id).is_none_or(|stream| stream.reset.is_some())
    }

    pub(crate) fn reset_here(&mut self, id: u32, code: ReasonCode, reason: &str, wakers: &mut Vec<Waker>) {
        if self.streams.get(id).is_some_and(|stream| stream.reset.is_none()) {
            self.outgoing.push(FrameKind::Reset, 0, id, &native::encode_reason(code, reason));
            self.end_stream(id, code, reason.to_owned(), EndedBy::Us, wakers);
        }
    }

    /// Resets a stream once everything that was written is sent. Its handle is about to go.
    pub(crate) fn reset_after_sent(&mut self, id: u32, code: ReasonCode, reason: &str, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.reset.is_some() || stream.is_resetting() {
            return;
        }
        if stream.sending.is_drained() && !stream.moving.is_switching() {
            return self.reset_here(id, code, reason, wakers);
        }
        let sent = stream.sent();
        stream.due_reset = Some(Box::new(DueReset { code, reason: reason.to_owned(), sent }));
        self.want_turn(id);
    }

    /// Sends a reset that is due now. Returns the length of its frame.
    pub(super) fn due_reset(&mut self, id: u32, small: &mut BytesMut, wakers: &mut Vec<Waker>) -> Option<usize> {
        let stream = self.streams.get_mut(id).filter(|stream| stream.sending.is_drained())?;
        let DueReset { code, reason, .. } = *stream.due_reset.take()?;
        let payload = native::encode_reason(code, &reason);
        let header = FrameHeader { kind: FrameKind::Reset, flags: 0, len: payload.len() as u32, stream: id };
        small.extend_from_slice(&header.encode());
        small.extend_from_slice(&payload);
        self.end_stream(id, code, reason, EndedBy::Us, wakers);
        Some(HEADER_LEN + payload.len())
    }

    /// The peer resets a stream.
    pub(super) fn reset_there(&mut self, id: u32, payload: &[u8], wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        let (code, reason) = native::decode_reason(payload)?;
        if self.streams.get(id).is_none() {
            return self.streams.check_late(id, "reset of a stream never opened");
        }
        self.end_stream(id, code, reason, EndedBy::Peer, wakers);
        Ok(())
    }

    /// Ends both directions. What arrived before the peer's reset, or before the end of the link, can still be read.
    pub(super) fn end_stream(
        &mut self,
        id: u32,
        code: ReasonCode,
        reason: String,
        by: EndedBy,
        wakers: &mut Vec<Waker>,
    ) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.reset.is_some() {
            return;
        }
        stream.reset = Some((code, reason));
        stream.due_reset = None;
        self.backlog.sub(stream.sending.clear());
        if by == EndedBy::Us {
            stream.receiving.ended = false;
            self.buffered.sub(stream.receiving.clear());
        }
        // The peer ends its lane after the last byte before its reset.
        if !(by == EndedBy::Peer && stream.moving.receiving) {
            let lane = stream.moving.lane.take();
            if by == EndedBy::Us {
                self.lanes.leave(lane);
            }
        }
        wakers.extend(stream.receiving.waker.take());
        wakers.extend(stream.sending.waker.take());
        self.forget_if_finished(id);
    }

    /// The handle is gone: the stream is forgotten once both directions have ended, or reset now.
    pub(crate) fn drop_handle(&mut self, id: u32, now: Instant, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.detached_until.is_some() {
            return;
        }
        if stream.reset.is_none() && (!stream.receiving.ended || stream.sending.is_open()) {
            self.reset_after_sent(id, ReasonCode::CANCELLED, "dropped", wakers);
        }
        self.detach(id, now);
    }

    /// Lets the stream finish without a handle: the half-close or the reset of this side is sent, what still arrives is
    /// discarded.
    pub(crate) fn detach(&mut self, id: u32, now: Instant) {
        self.end_sending(id);
        if let Some(stream) = self.streams.get_mut(id) {
            let unread = stream.receiving.discard();
            stream.detached_until = Some(now + DETACHED_GRACE);
            self.buffered.sub(unread);
            self.give_credit(id, now);
            self.forget_if_finished(id);
        }
    }

    /// Resets streams without a handle that did not finish in time.
    pub(crate) fn reap_detached(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        let is_late = |stream: &Stream| stream.detached_until.is_some_and(|until| until <= now);
        let late: Vec<u32> = self.streams.iter().filter(|(_, stream)| is_late(stream)).map(|(id, _)| id).collect();
        self.reap_lanes(now);
        for id in late {
            if let Some(stream) = self.streams.get_mut(id) {
                let sent = stream.sent();
                if let Some(due) = stream.due_reset.as_mut().filter(|due| due.sent < sent) {
                    due.sent = sent;
                    stream.detached_until = Some(now + DETACHED_GRACE);
                    continue;
                }
            }
            self.reset_here(id, ReasonCode::CANCELLED, "not finished in time", wakers);
        }
    }

    /// While a handle exists the stream stays, so that its reader sees the end or the reset.
    pub(super) fn forget_if_finished(&mut self, id: u32) {
        if self.streams.get(id).is_some_and(|stream| stream.detached_until.is_some() && stream.is_finished())
            && let Some(stream) = self.streams.by_id.remove(&id)
        {
            self.backlog.sub(stream.sending.len());
            self.lane_is_free(&stream.moving);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(last_id: u32, existing: &[u32]) -> Streams {
        let stream = || Stream::new(&LinkConfig::default(), 0, Instant::now());
        Streams { by_id: existing.iter().map(|id| (*id, stream())).collect(), last_id }
    }

    #[test]
    fn ids_grow_wrap_and_skip_what_is_in_use() {
        let mut streams = streams(u32::MAX - 1, &[u32::MAX, 1]);
        assert_eq!(streams.next_id(), 2, "0 is the link itself");
        assert_eq!(streams.next_id(), 3);
    }

    #[test]
    fn the_peers_ids_must_grow_and_may_wrap() {
        let mut streams = streams(0, &[]);
        assert!(streams.accept_id(5).is_ok());
        assert!(streams.accept_id(5).is_err() && streams.accept_id(4).is_err());
        assert!(streams.accept_id(u32::MAX).is_err(), "that is older");
        streams.last_id = u32::MAX;
        assert!(streams.accept_id(1).is_ok());
    }

    #[test]
    fn frames_are_late_only_for_ids_that_were_used() {
        let before = streams(0, &[]);
        assert!(!before.was_opened(1));
        let after = streams(1, &[]);
        assert!(after.was_opened(1) && after.was_opened(u32::MAX), "ids wrap");
        assert!(!after.was_opened(2));
        assert!(after.check_late(2, "never").is_err());
    }
}
