//! What a link knows: its streams, what waits to be sent, and what waits to be read.
//!
//! No I/O happens here and no clock is read: bytes, and the time where a rule needs it, come in with the calls. Every
//! method is called with the lock held and is short. Tasks to be woken are collected in `wakers`, for after the lock.
//!
//! This file holds what concerns the link as a whole: frames that arrive, events, and its end. The parts are
//! [`streams`] (ids, opening, ends), [`sending`], [`receiving`], [`outgoing`] (the link's own frames), [`budget`]
//! (bytes in memory), [`path`] (round trips and silence) and [`lanes`].

mod budget;
pub(crate) mod fuzzing;
pub(crate) mod incoming;
pub(crate) mod lanes;
mod outgoing;
mod path;
mod receiving;
mod sending;
mod streams;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;
use retunnel_proto::native::{self, FLAG_ACK, FrameHeader, FrameKind, ReasonCode, control::Open};
use tokio::time::Instant;

use self::{
    budget::{Backlog, Buffered},
    lanes::Lanes,
    outgoing::Outgoing,
    path::Path,
    streams::{EndedBy, Streams},
};
use crate::{
    budget::Share,
    config::{LinkConfig, Role},
    error::LinkError,
};

pub(crate) use self::{receiving::ReadOutcome, sending::WriteOutcome};

/// Something the peer did, for [`crate::Events`].
#[derive(Debug)]
pub(crate) enum QueuedEvent {
    Control(Bytes),
    Opened(Open, u32),
    GoAway(ReasonCode, String),
    LaneWanted(u32),
}

#[derive(Debug)]
pub(crate) struct State {
    role: Role,
    config: LinkConfig,
    /// `None` until the peer's hello was read; streams opened before start without credit.
    peer_window: Option<u32>,
    streams: Streams,
    lanes: Lanes,
    /// Streams that want to send, in order.
    turns: VecDeque<u32>,
    backlog: Backlog,
    buffered: Buffered,
    /// The budget of the process is exceeded.
    over_budget: bool,
    outgoing: Outgoing,
    path: Path,
    control_waiters: Vec<Waker>,
    events: VecDeque<QueuedEvent>,
    events_waker: Option<Waker>,
    driver_waker: Option<Waker>,
    end_waiters: Vec<Waker>,
    going_away: bool,
    peer_going_away: Option<LinkError>,
    closing: Option<LinkError>,
    ended: Option<LinkError>,
}

impl State {
    pub(crate) fn new(role: Role, config: LinkConfig, now: Instant) -> Self {
        Self {
            role,
            peer_window: None,
            streams: Streams::default(),
            lanes: Lanes::default(),
            turns: VecDeque::new(),
            backlog: Backlog::default(),
            buffered: Buffered::new(&config),
            over_budget: false,
            outgoing: Outgoing::default(),
            path: Path::new(now),
            control_waiters: Vec::new(),
            events: VecDeque::new(),
            events_waker: None,
            driver_waker: None,
            end_waiters: Vec::new(),
            going_away: false,
            peer_going_away: None,
            closing: None,
            ended: None,
            config,
        }
    }

    pub(crate) const fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Raises the limit for control messages once the peer is authenticated.
    pub(crate) const fn set_max_control(&mut self, bytes: usize) {
        self.config.max_control = bytes;
    }

    /// The peer's hello was read. Later calls are ignored: a window holds for the whole link.
    pub(crate) fn set_peer_window(&mut self, bytes: u32, now: Instant) {
        if self.peer_window.is_none() {
            let bytes = bytes.min(sending::MAX_CREDIT);
            self.peer_window = Some(bytes);
            // Windows grow once the path is known.
            self.queue_ping(now);
            self.add_initial_credit(bytes);
        }
    }

    /// The link's part of the budget of the process.
    pub(crate) const fn share(&self) -> &Arc<Share> {
        self.buffered.share()
    }

    /// Registers the driver. It is woken after each change that it has to act on.
    pub(crate) fn set_driver(&mut self, waker: &Waker) {
        self.driver_waker = Some(waker.clone());
    }

    pub(crate) const fn take_driver(&mut self) -> Option<Waker> {
        self.driver_waker.take()
    }

    // --- control messages and events -------------------------------------------------------------------------

    pub(crate) fn control_is_full(&self) -> bool {
        self.outgoing.control_messages() >= self.config.max_control_queue
    }

    /// Registers a sender of control messages. It is woken when some were sent.
    pub(crate) fn wait_for_control(&mut self, waker: &Waker) {
        self.control_waiters.push(waker.clone());
    }

    pub(crate) fn queue_control(&mut self, payload: Vec<u8>) {
        self.outgoing.push_control(payload);
    }

    /// Whether the driver has to stop reading until events are taken.
    pub(crate) fn events_are_full(&self) -> bool {
        self.events.len() >= self.config.max_event_queue
    }

    pub(crate) fn next_event(&mut self) -> Option<QueuedEvent> {
        self.events.pop_front()
    }

    pub(crate) fn wait_for_event(&mut self, waker: &Waker) {
        self.events_waker = Some(waker.clone());
    }

    fn push_event(&mut self, event: QueuedEvent, wakers: &mut Vec<Waker>) {
        self.events.push_back(event);
        wakers.extend(self.events_waker.take());
    }

    /// A frame other than data, complete.
    fn frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), LinkError> {
        let id = header.stream;
        match header.kind {
            FrameKind::Data => unreachable!("data frames are received in pieces"),
            FrameKind::Control => self.push_event(QueuedEvent::Control(Bytes::copy_from_slice(payload)), wakers),
            FrameKind::Open => self.opened(id, payload, now, wakers)?,
            FrameKind::Credit => self.credited(id, payload)?,
            FrameKind::Reset => self.reset_there(id, payload, wakers)?,
            FrameKind::Ping if header.flags & FLAG_ACK != 0 => {
                let number = u64::from_be_bytes(payload.try_into().expect("the header's check made it 8 bytes"));
                self.path.answered(number, now);
            }
            FrameKind::Ping => self.outgoing.push_pong(payload)?,
            FrameKind::Move => self.move_offered(id, payload, wakers)?,
            FrameKind::Moved => self.moved(header, payload, wakers)?,
            FrameKind::End => self.moved_end(id, payload, wakers)?,
            FrameKind::GoAway => {
                let (code, reason) = native::decode_reason(payload)?;
                if self.peer_going_away.is_none() {
                    self.peer_going_away = Some(LinkError::GoAway { code, reason: reason.clone() });
                    self.push_event(QueuedEvent::GoAway(code, reason), wakers);
                }
            }
        }
        self.outgoing.check()
    }

    // --- heartbeat -------------------------------------------------------------------------------------------

    /// The peer is alive, or not reading it is our choice.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.path.heard(now);
    }

    /// How long the peer has sent nothing, or has left a ping without an answer.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        self.path.silence(now)
    }

    /// Round trip of the last ping that was answered.
    pub(crate) const fn rtt(&self) -> Option<Duration> {
        self.path.rtt()
    }

    pub(crate) fn queue_ping(&mut self, now: Instant) {
        if let Some(number) = self.path.ping(now) {
            self.outgoing.push(FrameKind::Ping, 0, 0, &number.to_be_bytes());
        }
    }

    /// How long after the last bytes before a pause a probe is due; `None` where probes are not worth it.
    pub(crate) fn probe_after(&self) -> Option<Duration> {
        self.path.probe_after()
    }

    /// Queues an empty frame: the answer to a ping that was never sent.
    pub(crate) fn queue_probe(&mut self) {
        self.outgoing.push(FrameKind::Ping, FLAG_ACK, 0, &0_u64.to_be_bytes());
    }

    /// An idle link owns no memory.
    pub(crate) fn release_memory(&mut self) {
        self.outgoing.release_memory();
    }

    // --- the end of the link ---------------------------------------------------------------------------------

    pub(crate) fn queue_go_away(&mut self, code: ReasonCode, reason: &str) {
        if !self.going_away {
            self.going_away = true;
            self.outgoing.push(FrameKind::GoAway, 0, 0, &native::encode_reason(code, reason));
        }
    }

    /// This side ends the link once its control messages and a go-away are sent.
    pub(crate) fn close(&mut self, code: ReasonCode, reason: &str) {
        self.queue_go_away(code, reason);
        self.closing.get_or_insert(LinkError::ClosedHere { code, reason: reason.into() });
    }

    /// Why this side is ending the link, if it is.
    pub(crate) const fn closing(&self) -> Option<&LinkError> {
        self.closing.as_ref()
    }

    /// Why the peer closed the connection: its go-away, if it sent one.
    pub(crate) fn closed_by_peer(&self) -> LinkError {
        self.peer_going_away.clone().unwrap_or(LinkError::ClosedByPeer)
    }

    /// Why the link has ended, if it has.
    pub(crate) const fn ended(&self) -> Option<&LinkError> {
        self.ended.as_ref()
    }

    pub(crate) fn wait_for_end(&mut self, waker: &Waker) {
        self.end_waiters.push(waker.clone());
    }

    /// Ends everything. Every reader, writer and waiter is woken.
    pub(crate) fn end(&mut self, error: LinkError, wakers: &mut Vec<Waker>) {
        if self.ended.is_some() {
            return;
        }
        let reason = error.to_string();
        for id in self.streams.ids() {
            if !self.is_reset(id) {
                self.end_stream(id, ReasonCode::CANCELLED, reason.clone(), EndedBy::Link, wakers);
            }
        }
        self.ended = Some(error);
        self.drop_lanes();
        self.turns.clear();
        self.outgoing.clear_control();
        wakers.append(&mut self.control_waiters);
        wakers.append(&mut self.end_waiters);
        wakers.extend(self.events_waker.take());
    }
}
