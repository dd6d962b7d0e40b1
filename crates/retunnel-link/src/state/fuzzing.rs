//! Two ends of a link without sockets and without a clock, driven by the bytes of a fuzzer.
//!
//! As long as both ends are honest, every byte has to arrive once and in order, an end or a reset of the handle only after
//! all of them, and nothing may break the protocol or stall. With injected bytes only panics and wrong sums are failures.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use retunnel_proto::{
    TunnelId, TunnelProtocol,
    native::{ReasonCode, control::Open},
};
use tokio::{
    io::{ReadBuf, duplex},
    time::Instant,
};

use super::{QueuedEvent, ReadOutcome, State, WriteOutcome, incoming::Incoming};
use crate::{
    budget::Budget,
    chunk::OWN_FROM,
    config::{LinkConfig, Role},
    error::LinkError,
    lane::Lane,
};

/// Drives a server's and a client's state with calls and frames taken from `data`.
///
/// # Panics
/// When a rule of the link is broken: that is a finding.
pub fn link_state(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = Pair::new(&mut input);
    while !input.0.is_empty() {
        pair.step(&mut input);
        pair.check_sums();
    }
    pair.settle();
    let budgets: Vec<Arc<Budget>> = pair.ends.iter().map(|end| Arc::clone(&end.state.config.budget)).collect();
    drop(pair);
    assert!(budgets.iter().all(|budget| budget.used() == 0), "a link that is gone still holds bytes of the budget");
}

/// The bytes of the fuzzer; zeros after their end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        if self.0.is_empty() { 0 } else { self.0.get_u8() }
    }

    /// A size: small ones are frequent, large ones possible.
    fn size(&mut self) -> usize {
        let byte = usize::from(self.byte());
        if byte < 128 { byte } else { (byte - 127) * 1000 }
    }

    fn bytes(&mut self, len: usize) -> Bytes {
        let len = len.min(self.0.len());
        self.0.copy_to_bytes(len)
    }
}

/// Reason of a reset by the owner of a handle.
const GAVE_UP: &str = "fuzz";

/// What one end knows of a stream through its handle.
#[derive(Debug, Default)]
struct Handle {
    written: u64,
    read: u64,
    /// It half-closed.
    finished: bool,
    saw_end: bool,
    /// Reset, or dropped: nothing is expected of it any more.
    over: bool,
    /// Reset by its owner, who expects that what was written arrives before.
    gave_up: bool,
}

struct End {
    state: State,
    incoming: Incoming,
    out: VecDeque<Bytes>,
    handles: BTreeMap<u32, Handle>,
    wanted_lanes: VecDeque<u32>,
    control: VecDeque<u8>,
    leaving: Vec<Arc<Lane>>,
}

impl End {
    fn new(role: Role, config: LinkConfig, now: Instant) -> Self {
        Self {
            state: State::new(role, config, now),
            incoming: Incoming::default(),
            out: VecDeque::new(),
            handles: BTreeMap::new(),
            wanted_lanes: VecDeque::new(),
            control: VecDeque::new(),
            leaving: Vec::new(),
        }
    }

    /// Ends lanes, as the driver does.
    fn poll_leaving(&mut self) {
        self.leaving.extend(self.state.take_leaving());
        self.leaving.retain(|lane| lane.poll_leave(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// The id of one of the streams, chosen by a byte.
    fn pick(&self, byte: u8) -> Option<u32> {
        let count = self.handles.len();
        if count == 0 { None } else { self.handles.keys().nth(usize::from(byte) % count).copied() }
    }
}

struct Pair {
    /// The server's, the client's.
    ends: [End; 2],
    now: Instant,
    /// Nothing but what the two ends sent has arrived.
    is_honest: bool,
    /// Both ends live, and neither is about to close.
    is_open: bool,
    /// Most bytes of a write: few where windows are small, which is correct but slow.
    max_write: usize,
}

/// The byte at an offset of one direction of a stream; directions are counted by the end that writes.
const fn expected(id: u32, from: usize, offset: u64) -> u8 {
    (offset as u8).wrapping_mul(31) ^ ((offset >> 8) as u8) ^ (id as u8).wrapping_mul(7) ^ ((from as u8) << 7)
}

impl Pair {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Instant::now();
        let mut config = |role| {
            let flags = input.byte();
            let initial_window = [1, 50, 5000, 256 * 1024][usize::from(flags & 3)];
            let config = LinkConfig {
                initial_window,
                max_window: if flags & 4 == 0 { initial_window } else { 1024 * 1024 },
                max_streams: if flags & 8 == 0 { 3 } else { 100 },
                max_event_queue: if flags & 16 == 0 { 2 } else { 100 },
                max_buffered: if flags & 32 == 0 { 64 * 1024 * 1024 } else { 20_000 },
                budget: Arc::new(Budget::new(if flags & 64 == 0 { 64 * 1024 * 1024 } else { 30_000 })),
                lane_after: if flags & 128 == 0 { 10_000 } else { u64::MAX },
                ..LinkConfig::default()
            };
            (End::new(role, config, now), initial_window)
        };
        let ((mut server, server_window), (mut client, client_window)) = (config(Role::Server), config(Role::Client));
        server.state.set_peer_window(client_window, now);
        client.state.set_peer_window(server_window, now);
        server.state.enable_lanes();
        let max_write = 200 * server_window.min(client_window) as usize;
        Self { ends: [server, client], now, is_honest: true, is_open: true, max_write }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        self.ends.iter_mut().for_each(End::poll_leaving);
        let operation = input.byte();
        let side = usize::from(operation & 1);
        match operation >> 1 {
            0..=5 => self.open(),
            6..=25 => {
                let (stream, len) = (input.byte(), input.size());
                self.write(side, stream, len, operation & 2 != 0);
            }
            26..=45 => {
                let (stream, len) = (input.byte(), input.size());
                self.read(side, stream, len, operation & 2 != 0);
            }
            46..=75 => {
                let len = input.size();
                self.deliver(side, len);
            }
            76..=80 => self.take_events(side),
            81..=87 => {
                let fate = input.byte();
                self.open_lane(fate);
            }
            88..=95 => self.half_close(side, input.byte()),
            96..=99 => self.let_go(side, input.byte(), operation),
            100..=109 => {
                let millis = u64::from(input.byte()) * if operation & 2 == 0 { 1 } else { 20 };
                self.advance(Duration::from_millis(millis));
            }
            110..=112 => self.control(side, input.byte()),
            113 => {
                if let Some(id) = self.ends[side].pick(input.byte()) {
                    self.ends[side].state.begin_exchange(id);
                    self.ends[side].state.want_lane(id, self.now, &mut Vec::new());
                }
            }
            114 => self.ends[side].state.queue_go_away(ReasonCode::NONE, "fuzz"),
            115 => {
                self.ends[side].state.close(ReasonCode::NONE, "fuzz");
                self.is_open = false;
            }
            116 => self.end(side, LinkError::Dropped),
            117 => {
                // The hello of a peer that sends any number, before anything else is known of it.
                let window = u32::from_be_bytes([input.byte(), input.byte(), input.byte(), input.byte()]);
                self.ends[side].state.peer_window = None;
                self.ends[side].state.set_peer_window(window, self.now);
                self.is_honest = false;
            }
            _ => {
                let len = input.size();
                let bytes = input.bytes(len);
                self.is_honest = false;
                self.arrive(side, &bytes);
            }
        }
    }

    fn open(&mut self) {
        let open = Open { tunnel: TunnelId::from_text("t"), protocol: TunnelProtocol::Tcp, visitor: String::new() };
        if let Ok(id) = self.ends[0].state.open_stream(&open.encode(), self.now) {
            let known = self.ends[0].handles.insert(id, Handle::default());
            assert!(known.is_none_or(|known| known.over), "the id {id} was in use");
        }
    }

    fn write(&mut self, side: usize, stream: u8, len: usize, owned: bool) {
        let Some(id) = self.ends[side].pick(stream) else { return };
        let End { state, handles, .. } = &mut self.ends[side];
        let Some(handle) = handles.get_mut(&id).filter(|handle| !handle.over) else { return };
        let len = if owned { len + OWN_FROM } else { len.max(1) }.min(self.max_write);
        let bytes: Vec<u8> = (0..len as u64).map(|at| expected(id, side, handle.written + at)).collect();
        let outcome =
            if owned { state.write_owned(id, &mut Bytes::from(bytes.clone())) } else { state.write(id, &bytes) };
        match outcome {
            Ok(WriteOutcome::Took(count)) => {
                assert!(count <= len, "more was taken than given");
                handle.written += count as u64;
                if state.lane_is_due(id) {
                    state.want_lane(id, self.now, &mut Vec::new());
                }
            }
            Ok(WriteOutcome::Lane(lane)) => {
                if let Poll::Ready(Ok(count)) = lane.poll_write(&mut Context::from_waker(Waker::noop()), &bytes) {
                    state.sent_on_lane(id, count);
                    handle.written += count as u64;
                }
            }
            Err(_) => {
                assert!(handle.finished || state.is_reset(id) || state.ended.is_some(), "refused without a cause")
            }
        }
    }

    /// Reads once. Returns whether anything came of it.
    fn read(&mut self, side: usize, stream: u8, len: usize, piece: bool) -> bool {
        self.ends[side].pick(stream).is_some_and(|id| self.read_stream(side, id, len.max(1), piece))
    }

    fn read_stream(&mut self, side: usize, id: u32, len: usize, piece: bool) -> bool {
        let End { state, handles, .. } = &mut self.ends[side];
        let Some(handle) = handles.get_mut(&id).filter(|handle| !handle.over && !handle.saw_end) else { return false };
        if piece && let Some(bytes) = state.read_piece(id) {
            self.was_read(side, id, &bytes);
            return true;
        }
        let mut into = vec![0; len];
        match state.read(id, &mut into) {
            ReadOutcome::Bytes(count) => self.was_read(side, id, &into[..count]),
            ReadOutcome::End => {
                handle.saw_end = true;
                let read = handle.read;
                if self.is_honest
                    && let Some(peer) = self.ends[1 - side].handles.get(&id)
                {
                    assert!(peer.finished && peer.written == read, "an end after {read} bytes of {peer:?}");
                }
            }
            ReadOutcome::Reset(code, reason) => {
                handle.over = true;
                let read = handle.read;
                if self.is_honest
                    && (code, &reason[..]) == (ReasonCode::CANCELLED, GAVE_UP)
                    && let Some(peer) = self.ends[1 - side].handles.get(&id)
                {
                    assert!(peer.gave_up && peer.written == read, "a reset after {read} bytes of {peer:?}");
                }
                let state = &mut self.ends[side].state;
                state.drop_handle(id, self.now, &mut Vec::new());
            }
            ReadOutcome::Wait => return false,
            ReadOutcome::Lane(lane, left) => {
                let room = usize::try_from(left).unwrap_or(usize::MAX).min(len);
                let mut buf = ReadBuf::new(&mut into[..room]);
                let polled = lane.poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
                if !matches!(polled, Poll::Ready(Ok(()))) {
                    return false;
                }
                let bytes = buf.filled().to_vec();
                state.arrived_on_lane(id, bytes.len(), &mut Vec::new());
                if bytes.is_empty() {
                    return state.is_reset(id);
                }
                self.was_read(side, id, &bytes);
            }
        }
        true
    }

    fn was_read(&mut self, side: usize, id: u32, bytes: &[u8]) {
        let End { state, handles, .. } = &mut self.ends[side];
        if state.credit_is_due(id) {
            state.give_credit(id, self.now);
        }
        let Some(handle) = handles.get_mut(&id) else { return };
        if self.is_honest {
            for (at, byte) in (handle.read..).zip(bytes) {
                assert_eq!(*byte, expected(id, 1 - side, at), "byte {at} of stream {id}");
            }
        }
        handle.read += bytes.len() as u64;
    }

    fn half_close(&mut self, side: usize, stream: u8) {
        let Some(id) = self.ends[side].pick(stream) else { return };
        let End { state, handles, .. } = &mut self.ends[side];
        if let Some(handle) = handles.get_mut(&id).filter(|handle| !handle.over) {
            state.end_sending(id);
            handle.finished = true;
        }
    }

    fn let_go(&mut self, side: usize, stream: u8, how: u8) {
        let Some(id) = self.ends[side].pick(stream) else { return };
        let End { state, handles, .. } = &mut self.ends[side];
        let Some(handle) = handles.get_mut(&id).filter(|handle| !handle.over) else { return };
        let mut wakers = Vec::new();
        match how & 6 {
            0 => {
                state.reset_after_sent(id, ReasonCode::CANCELLED, GAVE_UP, &mut wakers);
                handle.gave_up = true;
            }
            2 => {
                state.detach(id, self.now);
                handle.finished = true;
            }
            // As above, but the handle stays: a limit was exceeded.
            4 => return state.reset_here(id, ReasonCode::LIMIT, "fuzz", &mut wakers),
            _ => {}
        }
        handle.over = true;
        state.drop_handle(id, self.now, &mut wakers);
    }

    /// Carries at most `len` bytes from one end to the other. Returns how many.
    fn deliver(&mut self, from: usize, len: usize) -> usize {
        let mut left = len;
        while left > 0 {
            let End { state, out, .. } = &mut self.ends[from];
            if state.ended.is_some() {
                break;
            }
            if out.is_empty() {
                state.gather(out, &mut Vec::new());
            }
            let Some(front) = out.front_mut() else { break };
            let piece = front.split_to(front.len().min(left));
            if front.is_empty() {
                out.pop_front();
            }
            left -= piece.len();
            self.arrive(1 - from, &piece);
        }
        len - left
    }

    /// Bytes arrive at one end. It takes its events when it must.
    fn arrive(&mut self, side: usize, bytes: &[u8]) {
        self.take_events_if_full(side);
        let End { state, incoming, .. } = &mut self.ends[side];
        if state.ended.is_none()
            && state.closing.is_none()
            && let Err(error) = incoming.receive(state, bytes, self.now, &mut Vec::new())
        {
            assert!(!self.is_honest, "honest ends broke the protocol: {error}");
            self.end(side, error);
        }
        let state = &mut self.ends[side].state;
        if state.take_over_budget() {
            while state.config.budget.is_exceeded() && state.give_way(self.now, &mut Vec::new()) {}
        }
    }

    fn take_events_if_full(&mut self, side: usize) {
        while self.ends[side].state.events_are_full() || self.ends[side].incoming.has_leftover() {
            self.take_events(side);
            let End { state, incoming, .. } = &mut self.ends[side];
            if state.ended.is_some() || state.closing.is_some() {
                return;
            }
            if incoming.has_leftover()
                && let Err(error) = incoming.resume(state, self.now, &mut Vec::new())
            {
                assert!(!self.is_honest, "honest ends broke the protocol: {error}");
                self.end(side, error);
            }
        }
    }

    fn take_events(&mut self, side: usize) {
        let end = &mut self.ends[side];
        while let Some(event) = end.state.next_event() {
            match event {
                QueuedEvent::Opened(_, id) => {
                    end.handles.insert(id, Handle::default());
                }
                QueuedEvent::LaneWanted(number) => end.wanted_lanes.push_back(number),
                QueuedEvent::Control(payload) => {
                    let sent = self.ends[1 - side].control.pop_front();
                    assert!(!self.is_honest || sent.is_some_and(|sent| payload[..] == [sent; 4]), "other messages");
                    return self.take_events(side);
                }
                QueuedEvent::GoAway(..) => {}
            }
        }
    }

    fn control(&mut self, side: usize, byte: u8) {
        let end = &mut self.ends[side];
        if end.state.ended.is_none() && !end.state.control_is_full() {
            end.state.queue_control(vec![byte; 4]);
            end.control.push_back(byte);
        }
    }

    /// Opens a lane that the server wants, or not.
    fn open_lane(&mut self, fate: u8) {
        self.take_events(0);
        let Some(number) = self.ends[0].wanted_lanes.pop_front() else { return };
        let [server, client] = &mut self.ends;
        let is_expected = fate & 1 == 0 && client.state.expect_lane(number, self.now);
        if fate & 2 != 0 {
            server.state.lane_failed(number);
            client.state.lane_failed(number);
            return;
        }
        let (here, there) = duplex(5000);
        let mut wakers = Vec::new();
        server.state.add_lane(number, Lane::other(here), self.now, &mut wakers);
        if is_expected {
            client.state.add_lane(number, Lane::other(there), self.now, &mut wakers);
        }
    }

    /// Time passes, and both ends do what is due.
    fn advance(&mut self, by: Duration) {
        self.now += by;
        for side in 0..2 {
            let state = &mut self.ends[side].state;
            if state.ended.is_some() {
                continue;
            }
            let silence = state.silence(self.now);
            if silence >= state.config.dead_after {
                self.end(side, LinkError::Silent(silence));
                continue;
            }
            state.release_memory();
            state.queue_ping(self.now);
            state.reap_detached(self.now, &mut Vec::new());
            if state.probe_after().is_some() {
                state.queue_probe();
            }
        }
    }

    fn end(&mut self, side: usize, error: LinkError) {
        self.ends[side].state.end(error, &mut Vec::new());
        self.is_open = false;
    }

    fn check_sums(&self) {
        for End { state, .. } in &self.ends {
            let received: usize = state.streams.iter().map(|(_, stream)| stream.receiving.bytes.len()).sum();
            assert_eq!(state.buffered.bytes(), received, "bytes that wait for readers");
            assert_eq!(state.config.budget.used(), received, "the same in the budget");
            let unsent: usize = state.streams.iter().map(|(_, stream)| stream.sending.len()).sum();
            assert_eq!(state.backlog.bytes(), unsent, "bytes that wait to be sent");
            assert!(received <= state.config.max_buffered, "the link's limit");
        }
    }

    /// Everything under way arrives and is read. Between honest ends that live nothing may be missing then.
    fn settle(&mut self) {
        loop {
            let mut progress = false;
            for side in 0..2 {
                self.ends[side].poll_leaving();
                progress |= self.deliver(side, usize::MAX) > 0;
                self.take_events_if_full(side);
                self.take_events(side);
                while !self.ends[0].wanted_lanes.is_empty() {
                    self.open_lane(0);
                }
                let ids: Vec<u32> = self.ends[side].handles.keys().copied().collect();
                for id in ids {
                    while self.read_stream(side, id, 10_000, false) {
                        progress = true;
                    }
                }
                self.check_sums();
            }
            if !progress {
                break;
            }
        }
        if !self.is_honest || !self.is_open {
            return;
        }
        for side in 0..2 {
            for (id, writer) in &self.ends[side].handles {
                let Some(reader) = self.ends[1 - side].handles.get(id) else { continue };
                assert!(!writer.gave_up || reader.over || reader.saw_end, "the reset of stream {id} is missing");
                if !writer.over && !reader.over {
                    assert_eq!(reader.read, writer.written, "bytes of stream {id} are missing");
                    assert_eq!(reader.saw_end, writer.finished, "the end of stream {id}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn no_calls_and_frames_break_a_rule(data in prop::collection::vec(any::<u8>(), 0..400)) {
            link_state(&data);
        }

        #[test]
        fn honest_ends_lose_nothing(data in prop::collection::vec(0..226_u8, 0..400)) {
            link_state(&data);
        }
    }
}
