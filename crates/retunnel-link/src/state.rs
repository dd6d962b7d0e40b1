//! What a link knows: its streams, what waits to be sent, what waits to be read. No I/O happens here; every method
//! is called with the lock held and is short.

pub(crate) mod lanes;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use foldhash::fast::FixedState;
use retunnel_proto::{
    limits::MAX_DATA_PAYLOAD,
    native::{self, FLAG_ACK, FLAG_FIN, FrameHeader, FrameKind, HEADER_LEN, ReasonCode, control::Open},
};
use tokio::time::Instant;

use self::lanes::{Lanes, Moving, Sending};
use crate::{Lane, LinkConfig, LinkError, OpenError, Role, chunk, received::Received};

/// Bytes of one stream that wait to be sent while the link is not crowded.
const SEND_BUFFER: usize = 64 * 1024;
/// The same while more than [`CROWDED`] bytes wait over all streams.
const SEND_BUFFER_CROWDED: usize = 4 * 1024;
const CROWDED: usize = 8 * 1024 * 1024;
/// Most bytes a stream sends in its turn. A 16 KiB chunk occupies a 100 Mbit/s link for 1.3 ms.
const TURN: usize = 16 * 1024;
/// Payloads from this size on are handed to the socket where they are; smaller ones are copied behind each other, so
/// that one slice carries many frames.
const COPY_BELOW: usize = 2 * 1024;
/// Bytes gathered for one write.
const BATCH: usize = 128 * 1024;
/// Pings of the peer that wait for their answer. An honest peer has one.
const MAX_PONGS: usize = 16;
/// Unasked small frames (credit, resets, pongs) that wait to be sent, in bytes. A peer that makes us answer but does
/// not read runs into it.
const MAX_URGENT: usize = 1024 * 1024;
/// Bytes that the frames of small writes are gathered in, kept while a link is in use.
const URGENT_BUFFER: usize = 16 * 1024;
/// Paths of a shorter round trip are not worth a probe: what is lost there is rare, and probes would be many.
const PROBED_FROM: Duration = Duration::from_millis(10);
/// How long a stream that nobody holds any more may take to finish.
const DETACHED_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) enum QueuedEvent {
    Control(Bytes),
    Opened(Open, u32),
    GoAway(ReasonCode, String),
    LaneWanted(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendEnd {
    Open,
    /// A half-close waits behind the stream's bytes.
    Queued,
    Sent,
}

#[derive(Debug)]
pub(crate) struct Stream {
    received: Received,
    receive_ended: bool,
    /// What the peer may still send.
    receive_credit: u32,
    /// Read by our side and not yet given back as credit.
    consumed: u32,
    window: u32,
    credited_at: Instant,
    pub(crate) read_waker: Option<Waker>,

    sending: Unsent,
    send_credit: u32,
    send_end: SendEnd,
    /// In the list of streams that want a turn.
    queued: bool,
    pub(crate) write_waker: Option<Waker>,

    pub(crate) moving: Moving,

    reset: Option<(ReasonCode, String)>,
    /// No handle is left; the stream finishes by itself until then.
    detached_until: Option<Instant>,
}

/// Bytes of a stream that wait for its turns.
#[derive(Debug, Default)]
struct Unsent {
    /// First those that were taken as they were.
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

    /// Those that go next and lie together.
    fn next(&self) -> &[u8] {
        if self.owned.is_empty() { &self.copied } else { &self.owned }
    }

    /// Takes so many of [`Self::next`]. An idle stream owns no memory.
    fn split_to(&mut self, len: usize) -> Bytes {
        let part = if self.owned.is_empty() { self.copied.split_to(len).freeze() } else { self.owned.split_to(len) };
        self.release();
        part
    }

    fn skip(&mut self, len: usize) {
        if self.owned.is_empty() {
            bytes::Buf::advance(&mut self.copied, len);
        } else {
            bytes::Buf::advance(&mut self.owned, len);
        }
        self.release();
    }

    fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl Stream {
    fn new(config: &LinkConfig, send_credit: u32) -> Self {
        Self {
            received: Received::default(),
            receive_ended: false,
            receive_credit: config.initial_window,
            consumed: 0,
            window: config.initial_window,
            credited_at: Instant::now(),
            read_waker: None,
            sending: Unsent::default(),
            send_credit,
            send_end: SendEnd::Open,
            queued: false,
            write_waker: None,
            moving: Moving::default(),
            reset: None,
            detached_until: None,
        }
    }

    fn wants_turn(&self) -> bool {
        if !self.sending.is_empty() {
            return self.send_credit > 0;
        }
        self.send_end == SendEnd::Queued || matches!(self.moving.sending, Sending::Queued { .. })
    }

    fn is_finished(&self) -> bool {
        self.reset.is_some() || (self.receive_ended && self.send_end == SendEnd::Sent)
    }
}

/// What became of bytes given to a stream.
pub(crate) enum WriteOutcome {
    /// So many were taken; 0 when the writer must wait.
    Took(usize),
    /// They go to the lane.
    Lane(Arc<Lane>),
}

/// Result of a read from a stream's buffer.
pub(crate) enum ReadOutcome {
    Bytes(usize),
    End,
    Reset(ReasonCode, String),
    Wait,
    /// So many bytes at the most, from the lane.
    Lane(Arc<Lane>, u64),
}

#[derive(Debug)]
pub(crate) struct State {
    role: Role,
    pub(crate) config: LinkConfig,
    pub(crate) max_control: usize,
    /// `None` until the peer's hello was read; streams opened before start without credit.
    peer_window: Option<u32>,
    pub(crate) streams: HashMap<u32, Stream, FixedState>,
    pub(crate) lanes: Lanes,
    /// Id of the newest stream, 0 before the first.
    last_id: u32,
    turns: VecDeque<u32>,
    waiting_to_send: usize,
    buffered: usize,
    /// Encoded small frames that go before everything else, in the order they were made.
    urgent: BytesMut,
    /// Bytes of data frames among them.
    inlined: usize,
    pongs: usize,
    control: VecDeque<Vec<u8>>,
    pub(crate) control_waiters: Vec<Waker>,
    pub(crate) events: VecDeque<QueuedEvent>,
    pub(crate) events_waker: Option<Waker>,
    pub(crate) driver_waker: Option<Waker>,
    pub(crate) end_waiters: Vec<Waker>,
    going_away: bool,
    peer_going_away: Option<LinkError>,
    pub(crate) closing: Option<LinkError>,
    pub(crate) ended: Option<LinkError>,
    pub(crate) rtt: Option<Duration>,
    /// The shortest round trip: what the path takes when nothing waits in front of a ping.
    min_rtt: Option<Duration>,
    /// Sent pings that have no answer yet: number and time.
    pings: VecDeque<(u64, Instant)>,
    next_ping: u64,
    pub(crate) heard_at: Instant,
}

impl State {
    pub(crate) fn new(role: Role, config: LinkConfig) -> Self {
        Self {
            role,
            max_control: config.max_control,
            peer_window: None,
            streams: HashMap::default(),
            lanes: Lanes::default(),
            last_id: 0,
            turns: VecDeque::new(),
            waiting_to_send: 0,
            buffered: 0,
            urgent: BytesMut::new(),
            inlined: 0,
            pongs: 0,
            control: VecDeque::new(),
            control_waiters: Vec::new(),
            events: VecDeque::new(),
            events_waker: None,
            driver_waker: None,
            end_waiters: Vec::new(),
            going_away: false,
            peer_going_away: None,
            closing: None,
            ended: None,
            rtt: None,
            min_rtt: None,
            pings: VecDeque::new(),
            next_ping: 0,
            heard_at: Instant::now(),
            config,
        }
    }

    /// The peer's hello was read. Later calls are ignored: a window holds for the whole link.
    pub(crate) fn set_peer_window(&mut self, bytes: u32) {
        if self.peer_window.is_none() {
            self.peer_window = Some(bytes);
            // Windows grow once the path is known.
            self.queue_ping(Instant::now());
            for id in self.streams.keys().copied().collect::<Vec<_>>() {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.send_credit += bytes;
                }
                self.want_turn(id);
            }
        }
    }

    // --- sending ---------------------------------------------------------------------------------------------

    fn urgent_frame(&mut self, kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) {
        let header = FrameHeader { kind, flags, len: payload.len() as u32, stream };
        self.urgent.extend_from_slice(&header.encode());
        self.urgent.extend_from_slice(payload);
    }

    pub(crate) fn control_is_full(&self) -> bool {
        self.control.len() >= self.config.max_control_queue
    }

    pub(crate) fn queue_control(&mut self, payload: Vec<u8>) {
        self.control.push_back(payload);
    }

    pub(crate) fn queue_go_away(&mut self, code: ReasonCode, reason: &str) {
        if !self.going_away {
            self.going_away = true;
            self.urgent_frame(FrameKind::GoAway, 0, 0, &native::encode_reason(code, reason));
        }
    }

    pub(crate) fn queue_ping(&mut self, now: Instant) {
        if self.pings.len() < MAX_PONGS {
            self.next_ping += 1;
            self.pings.push_back((self.next_ping, now));
            self.urgent_frame(FrameKind::Ping, 0, 0, &self.next_ping.to_be_bytes());
        }
    }

    /// How long the last bytes before a pause may be without others behind them.
    pub(crate) fn probe_after(&self) -> Option<Duration> {
        self.min_rtt.filter(|rtt| *rtt >= PROBED_FROM).map(|rtt| rtt / 2)
    }

    /// A frame that says nothing: the answer to a ping that was never sent.
    pub(crate) fn queue_probe(&mut self) {
        self.urgent_frame(FrameKind::Ping, FLAG_ACK, 0, &0_u64.to_be_bytes());
    }

    pub(crate) fn silence(&self, now: Instant) -> Duration {
        let unanswered = self.pings.front().map_or(Duration::ZERO, |(_, sent)| now.duration_since(*sent));
        unanswered.max(now.duration_since(self.heard_at))
    }

    pub(crate) fn open_stream(&mut self, open: &[u8]) -> Result<u32, OpenError> {
        if let Some(error) = &self.ended {
            return Err(OpenError::Ended(error.clone()));
        }
        if self.closing.is_some() || self.peer_going_away.is_some() || self.role == Role::Client {
            return Err(OpenError::Closing);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::TooMany(self.config.max_streams));
        }
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.streams.contains_key(&self.last_id) {
                break;
            }
        }
        let id = self.last_id;
        self.streams.insert(id, Stream::new(&self.config, self.peer_window.unwrap_or(0)));
        // An open must reach the peer before the stream's first bytes; the urgent queue goes before data.
        self.urgent_frame(FrameKind::Open, 0, id, open);
        Ok(id)
    }

    /// Takes bytes of a stream. A small write with nothing before it becomes a frame at once; the rest waits for the
    /// stream's turn.
    pub(crate) fn write(
        &mut self,
        id: u32,
        bytes: &[u8],
        wakers: &mut Vec<Waker>,
    ) -> Result<WriteOutcome, (ReasonCode, String)> {
        if let Some(error) = &self.ended {
            return Err((ReasonCode::CANCELLED, error.to_string()));
        }
        if let Some(lane) = self.lane_to_write(id) {
            return Ok(WriteOutcome::Lane(lane));
        }
        let crowded = self.waiting_to_send >= CROWDED;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err((ReasonCode::CANCELLED, "stream has ended".into()));
        };
        if let Some(reset) = &stream.reset {
            return Err(reset.clone());
        }
        if stream.send_end != SendEnd::Open {
            return Err((ReasonCode::NONE, "written after the end".into()));
        }
        if bytes.len() <= COPY_BELOW
            && bytes.len() <= stream.send_credit as usize
            && self.urgent.len() < BATCH
            && stream.sending.is_empty()
            && !stream.queued
        {
            stream.send_credit -= bytes.len() as u32;
            stream.moving.sent += bytes.len() as u64;
            self.inlined += HEADER_LEN + bytes.len();
            if self.urgent.is_empty() {
                // Once the last batch is written, this is the same memory again.
                self.urgent.reserve(URGENT_BUFFER);
            }
            self.urgent_frame(FrameKind::Data, 0, id, bytes);
            self.consider_lane(id, wakers);
            return Ok(WriteOutcome::Took(bytes.len()));
        }
        let limit = if crowded { SEND_BUFFER_CROWDED } else { SEND_BUFFER };
        let room = limit.saturating_sub(stream.sending.len()).min(bytes.len());
        stream.sending.copied.extend_from_slice(&bytes[..room]);
        stream.moving.sent += room as u64;
        self.waiting_to_send += room;
        self.want_turn(id);
        self.consider_lane(id, wakers);
        Ok(WriteOutcome::Took(room))
    }

    /// Takes bytes without a copy where there are enough of them and none waits before them; `bytes` keeps the others.
    pub(crate) fn write_owned(
        &mut self,
        id: u32,
        bytes: &mut Bytes,
        wakers: &mut Vec<Waker>,
    ) -> Result<WriteOutcome, (ReasonCode, String)> {
        if bytes.len() >= chunk::OWN_FROM
            && self.waiting_to_send < CROWDED
            && self.ended.is_none()
            && let Some(stream) = self.streams.get_mut(&id)
            && stream.moving.sending == Sending::OnLink
            && stream.send_end == SendEnd::Open
            && stream.reset.is_none()
        {
            if !stream.sending.is_empty() {
                return Ok(WriteOutcome::Took(0));
            }
            let len = bytes.len();
            stream.sending.owned = std::mem::take(bytes);
            stream.moving.sent += len as u64;
            self.waiting_to_send += len;
            self.want_turn(id);
            self.consider_lane(id, wakers);
            return Ok(WriteOutcome::Took(len));
        }
        let outcome = self.write(id, bytes, wakers);
        if let Ok(WriteOutcome::Took(count)) = outcome {
            bytes::Buf::advance(bytes, count);
        }
        outcome
    }

    pub(crate) fn end_sending(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.send_end == SendEnd::Open
            && stream.reset.is_none()
        {
            stream.send_end = SendEnd::Queued;
            self.want_turn(id);
        }
    }

    fn want_turn(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
            && stream.wants_turn()
        {
            stream.queued = true;
            self.turns.push_back(id);
        }
    }

    /// Gathers what may be sent now: control messages, then urgent frames, then one turn for each stream that wants one,
    /// until [`BATCH`] bytes are gathered. Whatever a control message announces (a tunnel, the reason of a farewell) so
    /// arrives before the frames that follow from it. `wakers` receives writers that have room again. Says whether there are
    /// bytes of streams among it.
    pub(crate) fn gather(&mut self, out: &mut VecDeque<Bytes>, wakers: &mut Vec<Waker>) -> bool {
        let has_data = self.inlined > 0 || !self.turns.is_empty();
        let mut gathered = 0;
        if !self.control.is_empty() {
            let mut messages = BytesMut::new();
            while gathered < BATCH
                && let Some(payload) = self.control.pop_front()
            {
                let header = FrameHeader { kind: FrameKind::Control, flags: 0, len: payload.len() as u32, stream: 0 };
                messages.extend_from_slice(&header.encode());
                messages.extend_from_slice(&payload);
                gathered += HEADER_LEN + payload.len();
            }
            out.push_back(messages.freeze());
            if !self.control.is_empty() {
                return false;
            }
        }
        wakers.append(&mut self.control_waiters);
        let mut small = std::mem::take(&mut self.urgent);
        gathered += small.len();
        self.inlined = 0;
        self.pongs = 0;
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
        self.urgent = small;
        has_data
    }

    /// An idle link owns no memory.
    pub(crate) fn release_memory(&mut self, now: Instant) {
        if self.urgent.is_empty() {
            self.urgent = BytesMut::new();
        }
        chunk::release_unused(now);
    }

    fn take_turn(
        &mut self,
        id: u32,
        small: &mut BytesMut,
        out: &mut VecDeque<Bytes>,
        wakers: &mut Vec<Waker>,
    ) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        stream.queued = false;
        if !stream.wants_turn() {
            return 0;
        }
        if stream.sending.is_empty()
            && let Some(len) = self.moving_frame(id, small)
        {
            self.want_turn(id);
            self.forget_if_finished(id);
            return len;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let len = stream.sending.next().len().min(TURN).min(stream.send_credit as usize);
        stream.send_credit -= len as u32;
        let fin = stream.send_end == SendEnd::Queued
            && len == stream.sending.len()
            && stream.moving.sending == Sending::OnLink;
        if fin {
            stream.send_end = SendEnd::Sent;
        }
        let flags = if fin { FLAG_FIN } else { 0 };
        let header = FrameHeader { kind: FrameKind::Data, flags, len: len as u32, stream: id };
        small.extend_from_slice(&header.encode());
        if len < COPY_BELOW {
            small.extend_from_slice(&stream.sending.next()[..len]);
            stream.sending.skip(len);
        } else {
            let payload = stream.sending.split_to(len);
            out.push_back(small.split().freeze());
            out.push_back(payload);
        }
        wakers.extend(stream.write_waker.take());
        self.waiting_to_send -= len;
        if stream.wants_turn() {
            stream.queued = true;
            self.turns.push_back(id);
        } else if stream.is_finished() {
            self.forget_if_finished(id);
        }
        HEADER_LEN + len
    }

    // --- receiving -------------------------------------------------------------------------------------------

    pub(crate) fn events_are_full(&self) -> bool {
        self.events.len() >= self.config.max_event_queue
    }

    fn push_event(&mut self, event: QueuedEvent, wakers: &mut Vec<Waker>) {
        self.events.push_back(event);
        wakers.extend(self.events_waker.take());
    }

    /// Checks the header of a data frame and takes its credit. `false`: skip the payload.
    pub(crate) fn begin_data(&mut self, header: FrameHeader) -> Result<bool, LinkError> {
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            // Bytes that were under way when the stream ended here.
            return if self.was_opened(header.stream) {
                Ok(false)
            } else {
                Err(LinkError::Protocol("data for a stream never opened"))
            };
        };
        if stream.receive_ended || stream.moving.receiving {
            return Err(LinkError::Protocol("data after the end of a stream"));
        }
        if header.len > stream.receive_credit {
            return Err(LinkError::Protocol("data beyond the credit of a stream"));
        }
        stream.receive_credit -= header.len;
        Ok(true)
    }

    fn was_opened(&self, id: u32) -> bool {
        // Half of the number space lies behind the newest id.
        self.last_id.wrapping_sub(id) < u32::MAX / 2 && self.last_id != 0
    }

    /// Bytes of a data frame whose header passed [`Self::begin_data`].
    pub(crate) fn receive(&mut self, id: u32, bytes: &[u8], wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.moving.arrived += bytes.len() as u64;
        if stream.detached_until.is_some() {
            stream.consumed += bytes.len() as u32;
            self.give_credit(id);
            return;
        }
        stream.received.push(bytes);
        wakers.extend(stream.read_waker.take());
        self.buffered += bytes.len();
        let in_budget = self.config.budget.add(bytes.len());
        if !in_budget || self.buffered > self.config.max_buffered {
            self.reset_fullest(wakers);
        }
        self.consider_lane(id, wakers);
    }

    pub(crate) fn receive_end(&mut self, id: u32, wakers: &mut Vec<Waker>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receive_ended = true;
            wakers.extend(stream.read_waker.take());
            self.forget_if_finished(id);
        }
    }

    fn reset_fullest(&mut self, wakers: &mut Vec<Waker>) {
        let fullest = self.streams.iter().max_by_key(|(_, stream)| stream.received.len()).map(|(id, _)| *id);
        if let Some(id) = fullest {
            self.reset_here(id, ReasonCode::LIMIT, "too many bytes wait for a reader", wakers);
        }
    }

    /// A frame other than data, complete.
    pub(crate) fn frame(
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
            FrameKind::Open => {
                if self.role == Role::Server {
                    return Err(LinkError::Protocol("only the server opens streams"));
                }
                let newer = id.wrapping_sub(self.last_id) < u32::MAX / 2;
                if !newer || self.streams.contains_key(&id) || id == self.last_id {
                    return Err(LinkError::Protocol("stream ids must grow"));
                }
                self.last_id = id;
                let open = Open::decode(payload)?;
                if self.streams.len() >= self.config.max_streams {
                    let reason = native::encode_reason(ReasonCode::LIMIT, "too many streams");
                    self.urgent_frame(FrameKind::Reset, 0, id, &reason);
                } else {
                    self.streams.insert(id, Stream::new(&self.config, self.peer_window.unwrap_or(0)));
                    self.push_event(QueuedEvent::Opened(open, id), wakers);
                }
            }
            FrameKind::Credit => {
                let added = u32::from_be_bytes(payload.try_into().expect("the header's check made it 4 bytes"));
                if let Some(stream) = self.streams.get_mut(&id) {
                    let credit = stream.send_credit.checked_add(added).filter(|sum| *sum <= i32::MAX as u32);
                    stream.send_credit = credit.ok_or(LinkError::Protocol("credit overflows"))?;
                    self.want_turn(id);
                } else if !self.was_opened(id) {
                    return Err(LinkError::Protocol("credit for a stream never opened"));
                }
            }
            FrameKind::Reset => {
                let (code, reason) = native::decode_reason(payload)?;
                if self.streams.contains_key(&id) {
                    self.end_stream(id, code, reason, true, wakers);
                } else if !self.was_opened(id) {
                    return Err(LinkError::Protocol("reset of a stream never opened"));
                }
            }
            FrameKind::Ping if header.flags & FLAG_ACK != 0 => {
                let number = u64::from_be_bytes(payload.try_into().expect("the header's check made it 8 bytes"));
                while let Some((sent, at)) = self.pings.front().copied().filter(|(sent, _)| *sent <= number) {
                    self.pings.pop_front();
                    if sent == number {
                        let rtt = now.duration_since(at);
                        self.rtt = Some(rtt);
                        self.min_rtt = Some(self.min_rtt.map_or(rtt, |shortest| shortest.min(rtt)));
                    }
                }
            }
            FrameKind::Ping => {
                self.pongs += 1;
                if self.pongs > MAX_PONGS {
                    return Err(LinkError::Protocol("too many pings"));
                }
                self.urgent_frame(FrameKind::Ping, FLAG_ACK, 0, payload);
            }
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
        if self.urgent.len() - self.inlined > MAX_URGENT {
            return Err(LinkError::Protocol("peer makes us answer but does not read"));
        }
        Ok(())
    }

    /// What the peer announced before it closed, or nothing.
    pub(crate) fn peer_farewell(&self) -> LinkError {
        self.peer_going_away.clone().unwrap_or(LinkError::ClosedByPeer)
    }

    /// Whether a read would not wait for the link. A lane has to be asked itself.
    pub(crate) fn is_readable(&self, id: u32) -> bool {
        self.streams
            .get(&id)
            .is_none_or(|stream| stream.reset.is_some() || stream.receive_ended || !stream.received.is_empty())
    }

    pub(crate) fn is_reset(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.reset.is_some())
    }

    pub(crate) fn read(&mut self, id: u32, into: &mut [u8]) -> ReadOutcome {
        let Some(stream) = self.streams.get_mut(&id) else { return ReadOutcome::End };
        // What arrived completely stays readable after a reset or the end of the link.
        if let Some((code, reason)) = &stream.reset
            && !stream.receive_ended
        {
            return ReadOutcome::Reset(*code, reason.clone());
        }
        if stream.received.is_empty() {
            if stream.receive_ended {
                return ReadOutcome::End;
            }
            return self.lane_to_read(id).map_or(ReadOutcome::Wait, |(lane, left)| ReadOutcome::Lane(lane, left));
        }
        let len = stream.received.read(into);
        stream.consumed += len as u32;
        self.buffered -= len;
        self.config.budget.sub(len);
        self.give_credit(id);
        ReadOutcome::Bytes(len)
    }

    /// The oldest bytes that wait, without a copy; `None` where [`Self::read`] has to be asked.
    pub(crate) fn read_piece(&mut self, id: u32) -> Option<Bytes> {
        let stream = self.streams.get_mut(&id)?;
        if stream.received.is_empty() || (stream.reset.is_some() && !stream.receive_ended) {
            return None;
        }
        let piece = stream.received.take();
        stream.consumed += piece.len() as u32;
        self.buffered -= piece.len();
        self.config.budget.sub(piece.len());
        self.give_credit(id);
        Some(piece)
    }

    /// Gives credit back once half of the window was read. A window that is used up faster than credit can travel
    /// doubles: then the round trip, not the reader, is what limits the stream.
    fn give_credit(&mut self, id: u32) {
        let rtt = self.rtt.unwrap_or(Duration::from_millis(1));
        // A window beyond what the path holds at 8 Gbit/s only moves bytes from the socket into our memory.
        let path_holds = self.min_rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * 1e9);
        let max_window = self.config.max_window.min(path_holds as u32);
        let room = self.buffered < self.config.max_buffered / 2;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.receive_ended || stream.consumed < stream.window / 2 {
            return;
        }
        let now = Instant::now();
        let mut credit = stream.consumed;
        if room && stream.window < max_window && now.duration_since(stream.credited_at) < 2 * rtt {
            let grown = (stream.window * 2).min(max_window);
            credit += grown - stream.window;
            stream.window = grown;
        }
        stream.credited_at = now;
        stream.consumed = 0;
        stream.receive_credit += credit;
        self.urgent_frame(FrameKind::Credit, 0, id, &credit.to_be_bytes());
    }

    // --- ends ------------------------------------------------------------------------------------------------

    pub(crate) fn reset_here(&mut self, id: u32, code: ReasonCode, reason: &str, wakers: &mut Vec<Waker>) {
        if self.streams.get(&id).is_some_and(|stream| stream.reset.is_none()) {
            self.urgent_frame(FrameKind::Reset, 0, id, &native::encode_reason(code, reason));
            self.end_stream(id, code, reason.to_owned(), false, wakers);
        }
    }

    /// Ends both directions. With `keep_complete` a direction that arrived up to its end can still be read.
    fn end_stream(&mut self, id: u32, code: ReasonCode, reason: String, keep_complete: bool, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.reset = Some((code, reason));
        stream.moving.lane = None;
        self.waiting_to_send -= stream.sending.len();
        stream.sending = Unsent::default();
        if !(keep_complete && stream.receive_ended) {
            stream.receive_ended = false;
            self.buffered -= stream.received.len();
            self.config.budget.sub(stream.received.len());
            stream.received = Received::default();
        }
        wakers.extend(stream.read_waker.take());
        wakers.extend(stream.write_waker.take());
        self.forget_if_finished(id);
    }

    /// The handle is gone: the stream is forgotten once both directions ended, or reset now.
    pub(crate) fn drop_handle(&mut self, id: u32, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.detached_until.is_some() {
            return;
        }
        if stream.reset.is_none() && !(stream.receive_ended && stream.send_end != SendEnd::Open) {
            self.reset_here(id, ReasonCode::CANCELLED, "dropped", wakers);
        }
        self.detach(id);
    }

    /// Lets the stream finish without a handle: our half-close is sent, what still arrives is thrown away.
    pub(crate) fn detach(&mut self, id: u32) {
        self.end_sending(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            let unread = stream.received.len();
            stream.received = Received::default();
            stream.consumed += unread as u32;
            stream.detached_until = Some(Instant::now() + DETACHED_GRACE);
            self.buffered -= unread;
            self.config.budget.sub(unread);
            self.give_credit(id);
            self.forget_if_finished(id);
        }
    }

    /// Resets streams that nobody holds and that did not finish in time.
    pub(crate) fn reap_detached(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        let late: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.detached_until.is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        self.reap_lanes(now);
        for id in late {
            self.reset_here(id, ReasonCode::CANCELLED, "not finished in time", wakers);
        }
    }

    fn forget_if_finished(&mut self, id: u32) {
        // While a handle exists the stream stays, so that its reader sees the end or the reset.
        if self.streams.get(&id).is_some_and(|stream| stream.detached_until.is_some() && stream.is_finished())
            && let Some(stream) = self.streams.remove(&id)
        {
            self.waiting_to_send -= stream.sending.len();
            self.lane_is_free(&stream.moving);
        }
    }

    /// Ends everything. Every reader, writer and waiter is woken.
    pub(crate) fn end(&mut self, error: LinkError, wakers: &mut Vec<Waker>) {
        if self.ended.is_some() {
            return;
        }
        let reason = error.to_string();
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            if self.streams.get(&id).is_some_and(|stream| stream.reset.is_none()) {
                self.end_stream(id, ReasonCode::CANCELLED, reason.clone(), true, wakers);
            }
        }
        self.ended = Some(error);
        self.drop_lanes();
        self.turns.clear();
        self.control.clear();
        wakers.append(&mut self.control_waiters);
        wakers.append(&mut self.end_waiters);
        wakers.extend(self.events_waker.take());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.config.budget.sub(self.buffered);
    }
}

const _: () = assert!(TURN <= MAX_DATA_PAYLOAD, "a turn must fit a frame");
