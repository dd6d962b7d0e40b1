//! Lanes: which streams use one, and how a stream moves from the link to its lane. See [`crate::lane`].

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use retunnel_proto::native::{FLAG_DECLINED, FrameHeader, FrameKind, HEADER_LEN, ReasonCode};
use tokio::time::Instant;

use super::{QueuedEvent, State};
use crate::{config::Role, error::LinkError, lane::Lane};

/// Limit of lanes of a link: spare, asked for, or in use. Further bulk streams stay on the link.
const MAX_LANES: usize = 64;
/// Lanes kept ready for the next bulk stream, after the first.
const SPARE: usize = 1;
/// After this many failures in a row the link asks for no more lanes.
const MAX_FAILURES: u32 = 3;
/// The server closes a spare lane after this time. The client waits twice as long, so that the server is always first.
const SPARE_FOR: Duration = Duration::from_secs(20);
/// Timeout for a lane that was asked for.
const ASKED_FOR: Duration = Duration::from_secs(10);

/// The lanes of a link.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The peer can open lanes (server only).
    enabled: bool,
    /// Open lanes without a stream: number, lane, and since when.
    spare: VecDeque<(u32, Arc<Lane>, Instant)>,
    /// Lanes that are being opened: number, and since when.
    asked: HashMap<u32, Instant>,
    /// Streams that were offered a lane which is still being opened here (client), by number of the lane.
    promised: HashMap<u32, u32>,
    in_use: usize,
    failures: u32,
    /// Number of the newest lane.
    last: u32,
    /// Streams that want a lane, in order.
    waiting: VecDeque<u32>,
    /// Lanes whose stream was reset here. Their last bytes are still on their way.
    leaving: Vec<Arc<Lane>>,
}

impl Lanes {
    /// The stream of the lane was reset here.
    pub(super) fn leave(&mut self, lane: Option<Arc<Lane>>) {
        self.leaving.extend(lane);
    }
}

/// How far one stream has moved.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// The lane that was offered to the client and not answered yet (server).
    offered: Option<Arc<Lane>>,
    pub(super) lane: Option<Arc<Lane>>,
    /// The stream has asked for a lane. It asks only once.
    wanted: bool,
    /// Counted in [`Lanes::in_use`].
    counted: bool,
    route: Route,
    /// The peer's next bytes come on the lane, once those of the link are read.
    pub(super) receiving: bool,
    /// Count of all bytes of our direction, on link and lane.
    pub(super) sent: u64,
    /// Count of all bytes of the peer's direction, on link and lane.
    pub(super) arrived: u64,
    /// Count of all bytes of the peer, once it has ended.
    total: Option<u64>,
    /// `sent` and `arrived` when the current exchange began.
    since: (u64, u64),
}

/// Where new bytes of our direction go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Route {
    #[default]
    Link,
    /// To the lane. The frame that announces it waits until the link's bytes are sent.
    Switching {
        /// Count of bytes on the link.
        at: u64,
    },
    Lane,
}

impl Moving {
    /// Whether new bytes of our direction go to the link.
    pub(super) fn is_on_link(&self) -> bool {
        self.route == Route::Link
    }

    /// Whether the frame that announces the move of our direction is not sent yet.
    pub(super) const fn is_switching(&self) -> bool {
        matches!(self.route, Route::Switching { .. })
    }
}

impl State {
    /// Lets streams move, because the peer can open lanes.
    pub(crate) const fn enable_lanes(&mut self) {
        self.lanes.enabled = true;
    }

    /// A new exchange begins on the stream. Bytes of earlier ones do not count towards a lane.
    pub(crate) fn begin_exchange(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            let moving = &mut stream.moving;
            moving.since = (moving.sent, moving.arrived);
        }
    }

    pub(crate) fn is_on_lane(&self, id: u32) -> bool {
        self.streams.get(id).is_some_and(|stream| stream.moving.lane.is_some() || stream.moving.offered.is_some())
    }

    /// Whether [`Self::want_lane`] has to be called, because the stream has become bulk. To be called after each write.
    pub(crate) fn lane_is_due(&self, id: u32) -> bool {
        if self.role != Role::Server || !self.lanes.enabled {
            return false;
        }
        let Some(stream) = self.streams.get(id) else { return false };
        let moving = &stream.moving;
        let moved = (moving.sent - moving.since.0).max(moving.arrived - moving.since.1);
        !moving.wanted && moved >= self.config.lane_after
    }

    /// The stream is bulk: it gets a lane as soon as there is one.
    pub(crate) fn want_lane(&mut self, id: u32, now: Instant, wakers: &mut Vec<Waker>) {
        if self.role != Role::Server || !self.lanes.enabled {
            return;
        }
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.moving.wanted
            && stream.reset.is_none()
            && self.lanes.waiting.len() < MAX_LANES
        {
            stream.moving.wanted = true;
            self.lanes.waiting.push_back(id);
            self.offer_lanes(now, wakers);
        }
    }

    /// Offers spare lanes to streams that wait for one, and asks for those that are missing.
    fn offer_lanes(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        while let Some(id) = self.lanes.waiting.front().copied() {
            let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_finished()) else {
                self.lanes.waiting.pop_front();
                continue;
            };
            let Some((number, lane, _)) = self.lanes.spare.pop_front() else { break };
            stream.moving.offered = Some(lane);
            stream.moving.counted = true;
            self.lanes.in_use += 1;
            self.lanes.waiting.pop_front();
            self.outgoing.push(FrameKind::Move, 0, id, &number.to_be_bytes());
        }
        let lanes = &mut self.lanes;
        let have = lanes.spare.len() + lanes.asked.len();
        let room = MAX_LANES.saturating_sub(have + lanes.in_use);
        let missing = (lanes.waiting.len() + SPARE).saturating_sub(have).min(room);
        for _ in 0..missing {
            self.lanes.last = self.lanes.last.wrapping_add(1);
            let number = self.lanes.last;
            self.lanes.asked.insert(number, now);
            self.push_event(QueuedEvent::LaneWanted(number), wakers);
        }
    }

    /// A lane is open.
    pub(crate) fn add_lane(&mut self, number: u32, lane: Lane, now: Instant, wakers: &mut Vec<Waker>) {
        if self.lanes.asked.remove(&number).is_none() || self.ended.is_some() {
            return;
        }
        self.lanes.failures = 0;
        self.lanes.spare.push_back((number, Arc::new(lane), now));
        match self.role {
            Role::Server => self.offer_lanes(now, wakers),
            Role::Client => {
                if let Some(id) = self.lanes.promised.remove(&number) {
                    self.take_lane(number, id, wakers);
                }
            }
        }
    }

    /// The server asked for a lane, which is being opened (client). `false`: there are as many as there may be.
    pub(crate) fn expect_lane(&mut self, number: u32, now: Instant) -> bool {
        let has_room = self.lanes.asked.len() + self.lanes.spare.len() < MAX_LANES;
        if has_room {
            self.lanes.asked.insert(number, now);
        }
        has_room
    }

    /// A lane cannot be opened. The stream that waits for it stays on the link.
    pub(crate) fn lane_failed(&mut self, number: u32) {
        if self.lanes.asked.remove(&number).is_some() {
            if let Some(id) = self.lanes.promised.remove(&number) {
                self.decline_lane(id);
            }
            self.lanes.failures += 1;
            if self.lanes.failures >= MAX_FAILURES {
                self.lanes.enabled = false;
                self.lanes.waiting.clear();
            }
        }
    }

    pub(super) fn reap_lanes(&mut self, now: Instant) {
        let timeout = if self.role == Role::Server { SPARE_FOR } else { 2 * SPARE_FOR };
        self.lanes.spare.retain(|(_, _, since)| now.duration_since(*since) < timeout);
        if self.role == Role::Server {
            // A client needs no timeout: each of its attempts ends in a lane or a failure.
            self.lanes.asked.retain(|_, since| now.duration_since(*since) < ASKED_FOR);
        }
        let streams = &self.streams;
        self.lanes.waiting.retain(|id| streams.get(*id).is_some_and(|stream| !stream.is_finished()));
    }

    pub(super) fn drop_lanes(&mut self) {
        self.lanes = Lanes::default();
    }

    /// Lanes that the driver has to end ([`Lane::poll_leave`]).
    pub(crate) fn take_leaving(&mut self) -> Vec<Arc<Lane>> {
        std::mem::take(&mut self.lanes.leaving)
    }

    /// Called for every stream that is forgotten.
    pub(super) fn lane_is_free(&mut self, moving: &Moving) {
        if moving.counted {
            self.lanes.in_use = self.lanes.in_use.saturating_sub(1);
        }
    }

    /// The server offers a lane (client).
    pub(super) fn move_offered(&mut self, id: u32, payload: &[u8], wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        if self.role == Role::Server {
            return Err(LinkError::Protocol("only the server offers lanes"));
        }
        let number = u32::from_be_bytes(payload.try_into().expect("the header's check made it 4 bytes"));
        self.streams.check_late(id, "a lane for a stream never opened")?;
        if self.lanes.asked.contains_key(&number) {
            // The server's word was faster than its answer on the lane itself.
            if let Some(other) = self.lanes.promised.insert(number, id) {
                self.decline_lane(other);
            }
        } else {
            self.take_lane(number, id, wakers);
        }
        Ok(())
    }

    fn take_lane(&mut self, number: u32, id: u32, wakers: &mut Vec<Waker>) {
        let at = self.lanes.spare.iter().position(|(known, ..)| *known == number);
        let lane = at.and_then(|at| self.lanes.spare.remove(at)).map(|(_, lane, _)| lane);
        match (lane, self.streams.get_mut(id)) {
            (Some(lane), Some(stream))
                if stream.sending.is_open()
                    && stream.reset.is_none()
                    && !stream.is_resetting()
                    && stream.moving.lane.is_none() =>
            {
                stream.moving.lane = Some(lane);
                stream.moving.route = Route::Switching { at: stream.moving.sent };
                wakers.extend(stream.sending.waker.take());
                self.want_turn(id);
            }
            _ => self.decline_lane(id),
        }
    }

    fn decline_lane(&mut self, id: u32) {
        self.outgoing.push(FrameKind::Moved, FLAG_DECLINED, id, &0_u64.to_be_bytes());
    }

    /// The peer's bytes go on on the lane.
    pub(super) fn moved(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        wakers: &mut Vec<Waker>,
    ) -> Result<(), LinkError> {
        let id = header.stream;
        let at = u64::from_be_bytes(payload.try_into().expect("the header's check made it 8 bytes"));
        let is_server = self.role == Role::Server;
        let Some(stream) = self.streams.get_mut(id) else {
            return self.streams.check_late(id, "a stream never opened moved");
        };
        if stream.reset.is_some() {
            return Ok(());
        }
        if header.flags & FLAG_DECLINED != 0 {
            if stream.moving.offered.take().is_some() {
                stream.moving.counted = false;
                self.lanes.in_use = self.lanes.in_use.saturating_sub(1);
            }
            return Ok(());
        }
        if let Some(lane) = stream.moving.offered.take() {
            stream.moving.lane = Some(lane);
        }
        if stream.moving.lane.is_none() || stream.moving.receiving || at != stream.moving.arrived {
            return Err(LinkError::Protocol("stream moved without an offer or at the wrong byte"));
        }
        stream.moving.receiving = true;
        wakers.extend(stream.receiving.waker.take());
        if is_server && stream.sending.is_open() {
            stream.moving.route = Route::Switching { at: stream.moving.sent };
            wakers.extend(stream.sending.waker.take());
            self.want_turn(id);
        }
        Ok(())
    }

    /// The peer has sent all of a direction that moved.
    pub(super) fn moved_end(&mut self, id: u32, payload: &[u8], wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        let total = u64::from_be_bytes(payload.try_into().expect("the header's check made it 8 bytes"));
        let Some(stream) = self.streams.get_mut(id) else {
            return self.streams.check_late(id, "end of a stream never opened");
        };
        if stream.reset.is_some() {
            return Ok(());
        }
        if !stream.moving.receiving || total < stream.moving.arrived || stream.moving.total.is_some() {
            return Err(LinkError::Protocol("end of a stream that did not move, or before its last byte"));
        }
        stream.moving.total = Some(total);
        wakers.extend(stream.receiving.waker.take());
        if stream.moving.arrived == total {
            self.receive_end(id, wakers);
        } else if stream.detached_until.is_some() {
            self.reset_here(id, ReasonCode::CANCELLED, "no reader is left", wakers);
        }
        Ok(())
    }

    /// The lane to read from and the most bytes to take, where the next bytes come from one.
    pub(crate) fn lane_to_read(&self, id: u32) -> Option<(Arc<Lane>, u64)> {
        let stream = self.streams.get(id)?;
        let moving = &stream.moving;
        if !moving.receiving || !stream.receiving.bytes.is_empty() || stream.receiving.ended {
            return None;
        }
        let left = moving.total.map_or(u64::MAX, |total| total - moving.arrived);
        moving.lane.clone().map(|lane| (lane, left))
    }

    /// Bytes were read from the lane; 0: it has ended, which must not be before the peer's count unless the peer has reset
    /// the stream.
    pub(crate) fn arrived_on_lane(&mut self, id: u32, count: usize, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if count == 0 {
            if stream.reset.is_some() {
                stream.moving.lane = None;
            } else if stream.moving.total.is_some() {
                self.reset_here(id, ReasonCode::CANCELLED, "the stream's lane was cut", wakers);
            }
            // Otherwise the end or the reset is still on its way.
            return;
        }
        stream.moving.arrived += count as u64;
        if stream.moving.total == Some(stream.moving.arrived) {
            self.receive_end(id, wakers);
        }
    }

    /// The lane to write to, where the next bytes go to one.
    pub(crate) fn lane_to_write(&self, id: u32) -> Option<Arc<Lane>> {
        let stream = self.streams.get(id)?;
        let on_lane = !stream.moving.is_on_link() && stream.sending.is_open() && stream.reset.is_none();
        if on_lane { stream.moving.lane.clone() } else { None }
    }

    pub(crate) fn sent_on_lane(&mut self, id: u32, count: usize) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.moving.sent += count as u64;
        }
    }

    /// The frame that is due for a stream whose bytes on the link are sent: it moves, or it has ended on its lane.
    pub(super) fn moving_frame(&mut self, id: u32, head: &mut bytes::BytesMut) -> Option<usize> {
        let stream = self.streams.get_mut(id)?;
        let (kind, number) = match stream.moving.route {
            Route::Switching { at } => {
                stream.moving.route = Route::Lane;
                (FrameKind::Moved, at)
            }
            Route::Lane if stream.sending.end_is_due() => {
                stream.sending.end_is_sent();
                (FrameKind::End, stream.moving.sent)
            }
            Route::Link | Route::Lane => return None,
        };
        let header = FrameHeader { kind, flags: 0, len: 8, stream: id };
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(&number.to_be_bytes());
        Some(HEADER_LEN + 8)
    }
}
