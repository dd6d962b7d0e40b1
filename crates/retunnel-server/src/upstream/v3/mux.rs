//! Streams of a 3.x session as visitors use them: frames out with credit, frames in from a queue for each stream.
//!
//! The dialect has no flow control. Towards the client, a `Heartbeat` after every few frames replaces it: its answer says
//! that the frames before it were read from the socket, and only a limited number may be in flight. From the client
//! everything is read at once, because bytes left in the socket stop all streams; they wait here, within bounds, until
//! their visitors take them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use retunnel_proto::{
    dialect::v3::{FromServer, MessageKind, StreamEvent, StreamFrame, StreamOpen, WireVersion},
    limits::{V3_CHUNK, V3_MAX_QUEUED_FRAMES, V3_MAX_STREAMS},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::limits::waiting::Share;

/// Frames of one stream that the client may not have taken yet. Clients drop a stream whose queue of
/// [`V3_MAX_QUEUED_FRAMES`] overflows, which one burst fills before anything is read from it.
const MAX_UNTAKEN_FRAMES: u64 = 96;
const _: () =
    assert!(MAX_UNTAKEN_FRAMES * 2 < V3_MAX_QUEUED_FRAMES as u64, "leaves room for frames taken and not read");
/// Bytes of one stream that the client may not have taken yet: 20 MB/s at a round trip of 50 ms.
const MAX_UNTAKEN_BYTES: u64 = 1024 * 1024;
/// A heartbeat follows so many frames, or so many bytes, of a stream.
const FRAMES_PER_HEARTBEAT: u64 = MAX_UNTAKEN_FRAMES / 3;
const BYTES_PER_HEARTBEAT: u64 = MAX_UNTAKEN_BYTES / 4;
/// Bytes of all streams that wait for the socket. Streams get room in the order in which they ask for it.
const MAX_QUEUED: usize = 512 * 1024;
/// Received bytes of a session that wait for their visitors. Beyond it the session is not read for a while.
pub(crate) const MAX_WAITING: usize = 64 * 1024 * 1024;
/// The same while all sessions together have more than they may and the session's account more than its part.
const MIN_WAITING: usize = 1024 * 1024;
/// Data up to this size is copied when it has to wait: it would keep its whole receive buffer alive.
const SMALL: usize = 2 * 1024;
/// What a frame costs beyond its data while it waits.
const FRAME_COST: usize = 64;
/// How long a stream may take to end whose answer is complete by its length.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How long a visitor waits for one of the client's streams to be free.
const STREAM_WITHIN: Duration = Duration::from_secs(10);
/// How long visitors of a new tunnel wait for further tunnels of its session: clients take anything that comes between
/// their request and its answer for the answer.
const SETTLE: Duration = Duration::from_millis(150);

/// Why there is no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// The session ended.
    #[error("the client's session ended")]
    Lost,
    /// The client serves as many streams as it can.
    #[error("the client serves as many visitors as it can")]
    TooMany,
}

/// The session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's session ended")]
pub(crate) struct Lost;

/// What waits for the socket of a session.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A message and the room it takes.
    Message(Bytes, usize),
    /// A heartbeat. Its answer acknowledges these numbers of frames and bytes of a stream.
    Heartbeat(Arc<Shared>, u64, u64),
}

/// Both ends of one stream.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Notify,
    taken_frames: AtomicU64,
    taken_bytes: AtomicU64,
    credit: Notify,
    /// No visitor waits for the stream any more; it keeps its place until the client ends it.
    let_go: Mutex<Option<(Instant, OwnedSemaphorePermit)>>,
}

#[derive(Debug, Default)]
struct Inbox {
    events: VecDeque<StreamEvent>,
    bytes: usize,
    /// Events that the visitor's side took.
    taken: u64,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no code panics while it holds the inbox")
    }

    fn let_go(&self) -> MutexGuard<'_, Option<(Instant, OwnedSemaphorePermit)>> {
        self.let_go.lock().expect("no code panics while it holds the place")
    }

    /// Notifies the reader that something was delivered.
    pub(crate) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// The client has taken so many frames and bytes.
    pub(crate) fn acknowledge(&self, frames: u64, bytes: u64) {
        self.taken_frames.store(frames, Relaxed);
        self.taken_bytes.store(bytes, Relaxed);
        self.credit.notify_one();
    }
}

#[derive(Debug)]
struct Streams {
    next_id: u64,
    open: HashMap<u64, Arc<Shared>>,
}

/// What the streams of a session share.
#[derive(Debug)]
pub(crate) struct Mux {
    pub(crate) version: WireVersion,
    streams: Mutex<Streams>,
    queue: mpsc::UnboundedSender<Outgoing>,
    room: Semaphore,
    places: Arc<Semaphore>,
    /// When streams may be opened; `None` while the client waits for an answer.
    settled: watch::Sender<Option<Instant>>,
    waiting: AtomicUsize,
    /// The part of the session's account in all that waits.
    share: Share,
    /// Something that waited was taken.
    pub(crate) drained: Notify,
    pub(crate) lost: CancellationToken,
}

impl Mux {
    pub(crate) fn new(version: WireVersion, share: Share) -> (Arc<Self>, mpsc::UnboundedReceiver<Outgoing>) {
        // Bounded by `room`, by one heartbeat for so many frames, and by one end for each stream.
        let (queue, outgoing) = mpsc::unbounded_channel();
        let mux = Self {
            version,
            streams: Mutex::new(Streams { next_id: 0, open: HashMap::new() }),
            queue,
            room: Semaphore::new(MAX_QUEUED),
            places: Arc::new(Semaphore::new(V3_MAX_STREAMS)),
            settled: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            share,
            drained: Notify::new(),
            lost: CancellationToken::new(),
        };
        (Arc::new(mux), outgoing)
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().expect("no code panics while it holds the streams")
    }

    /// Holds new streams back while the client waits for an answer.
    pub(crate) fn unsettle(&self) {
        self.settled.send_replace(None);
    }

    /// The answer is on its way. Clients of the first version never ask for a second tunnel.
    pub(crate) fn settle(&self) {
        let pause = if self.version == WireVersion::One { Duration::ZERO } else { SETTLE };
        self.settled.send_replace(Some(Instant::now() + pause));
    }

    /// A message has left the queue.
    pub(crate) fn sent(&self, room: usize) {
        self.room.add_permits(room);
    }

    /// Ends all streams: what has arrived can still be read.
    pub(crate) fn end(&self) {
        self.lost.cancel();
        self.room.close();
        self.places.close();
        let open = std::mem::take(&mut self.streams().open);
        open.values().for_each(|shared| shared.arrived.notify_one());
    }

    /// Opens a stream; `open` gets its number here.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) async fn open(self: &Arc<Self>, mut open: StreamOpen) -> Result<Stream, OpenError> {
        self.wait_until_settled().await?;
        let place = match timeout(STREAM_WITHIN, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(OpenError::Lost),
            Err(_) => return Err(OpenError::TooMany),
        };
        let shared = Arc::new(Shared::default());
        let id = {
            let mut streams = self.streams();
            let id = streams.next_id;
            streams.next_id += 1;
            streams.open.insert(id, Arc::clone(&shared));
            id
        };
        let stream = Stream {
            id,
            mux: Arc::clone(self),
            shared,
            sent: Mutex::default(),
            is_over: AtomicBool::new(false),
            place: Some(place),
        };
        open.stream_id = id;
        let message = FromServer::StreamOpen(open).encode(self.version);
        self.send(message.into()).await.map_err(|Lost| OpenError::Lost)?;
        Ok(stream)
    }

    async fn wait_until_settled(&self) -> Result<(), OpenError> {
        let mut settled = self.settled.subscribe();
        loop {
            let at = *settled.borrow_and_update();
            if at.is_some_and(|at| at <= Instant::now()) {
                return Ok(());
            }
            tokio::select! {
                changed = settled.changed() => changed.map_err(|_| OpenError::Lost)?,
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {}
                () = self.lost.cancelled() => return Err(OpenError::Lost),
            }
        }
    }

    async fn send(&self, message: Bytes) -> Result<(), Lost> {
        let room = message.len().min(MAX_QUEUED);
        let permit = self.room.acquire_many(u32::try_from(room).unwrap_or(u32::MAX)).await.map_err(|_| Lost)?;
        permit.forget();
        self.queue.send(Outgoing::Message(message, room)).map_err(|_| Lost)
    }

    /// Queues a frame of the client and returns its stream, to be woken. A frame for a stream that has ended is dropped.
    pub(crate) fn deliver(&self, frame: StreamFrame) -> Option<Arc<Shared>> {
        let StreamFrame { stream_id, mut event } = frame;
        if let StreamEvent::Data { data, .. } = &mut event
            && data.len() <= SMALL
        {
            *data = Bytes::copy_from_slice(data);
        }
        let cost = cost(&event);
        let mut streams = self.streams();
        let shared = match event {
            StreamEvent::Data { .. } => streams.open.get(&stream_id).cloned(),
            StreamEvent::Close { .. } | StreamEvent::Reset { .. } => streams.open.remove(&stream_id),
        };
        let shared = shared?;
        if shared.let_go().is_some() {
            return None;
        }
        // Under the lock: nothing is counted for a stream that is being dropped.
        let mut inbox = shared.inbox();
        inbox.events.push_back(event);
        inbox.bytes += cost;
        drop(inbox);
        self.waiting.fetch_add(cost, Relaxed);
        self.share.take(cost);
        drop(streams);
        Some(shared)
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.share.give(bytes);
            self.drained.notify_one();
        }
    }

    /// Whether so much waits that the client must not send more.
    pub(crate) fn is_full(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        waiting > if self.share.is_exceeded() { MIN_WAITING } else { MAX_WAITING }
    }

    /// The stream with most waiting bytes: its number and how much was taken from it so far.
    pub(crate) fn fullest(&self) -> Option<(u64, u64)> {
        let streams = self.streams();
        let fullest = streams.open.iter().map(|(id, shared)| {
            let inbox = shared.inbox();
            (inbox.bytes, *id, inbox.taken)
        });
        fullest.max().map(|(_, id, taken)| (id, taken))
    }

    /// Ends a stream whose visitor takes nothing.
    pub(crate) fn overflow(&self, id: u64) {
        let Some(shared) = self.streams().open.remove(&id) else { return };
        let mut inbox = shared.inbox();
        inbox.events.clear();
        inbox.events.push_back(StreamEvent::Reset { reason: "the visitor takes nothing".into() });
        let bytes = std::mem::take(&mut inbox.bytes);
        drop(inbox);
        self.release(bytes);
        shared.arrived.notify_one();
        self.end_of(id, StreamEvent::Close { code: None, reason: None });
    }

    /// Ends streams that were let go and that the client does not end.
    pub(crate) fn sweep(&self) {
        let is_late =
            |shared: &Arc<Shared>| matches!(&*shared.let_go(), Some((since, _)) if since.elapsed() > END_WITHIN);
        let late = self.streams().open.extract_if(|_, shared| is_late(shared)).map(|(id, _)| id).collect::<Vec<_>>();
        for id in late {
            self.end_of(id, StreamEvent::Close { code: None, reason: None });
        }
    }

    /// Notifies the client that a stream has ended. Not bounded by `room`: it must be possible to end what waits for it.
    fn end_of(&self, stream_id: u64, event: StreamEvent) {
        let message = StreamFrame { stream_id, event }.encode();
        let _ = self.queue.send(Outgoing::Message(message.into(), 0));
    }
}

fn cost(event: &StreamEvent) -> usize {
    match event {
        StreamEvent::Data { data, .. } => data.len() + FRAME_COST,
        StreamEvent::Close { .. } | StreamEvent::Reset { .. } => 0,
    }
}

#[derive(Debug, Default)]
struct Sent {
    frames: u64,
    bytes: u64,
    /// Values at the last heartbeat.
    marked_frames: u64,
    marked_bytes: u64,
}

/// A stream of a visitor. Dropping it before its end notifies the client that the visitor is gone.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u64,
    mux: Arc<Mux>,
    shared: Arc<Shared>,
    sent: Mutex<Sent>,
    is_over: AtomicBool,
    place: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// Sends one frame, as soon as the client has taken enough of the earlier ones.
    ///
    /// # Errors
    /// [`Lost`].
    pub(crate) async fn send(&self, data: Bytes, kind: Option<MessageKind>, fin: Option<bool>) -> Result<(), Lost> {
        let frame = StreamFrame { stream_id: self.id, event: StreamEvent::Data { data, kind, fin } };
        let StreamEvent::Data { data, .. } = &frame.event else { return Ok(()) };
        let size = data.len() as u64;
        self.wait_for_credit(size).await?;
        self.mux.send(frame.encode().into()).await?;
        self.mark();
        Ok(())
    }

    async fn wait_for_credit(&self, size: u64) -> Result<(), Lost> {
        loop {
            {
                let mut sent = self.sent();
                let frames = sent.frames - self.shared.taken_frames.load(Relaxed);
                let bytes = sent.bytes - self.shared.taken_bytes.load(Relaxed);
                // What is larger than the whole credit goes alone.
                if frames < MAX_UNTAKEN_FRAMES && (bytes + size <= MAX_UNTAKEN_BYTES || bytes == 0) {
                    sent.frames += 1;
                    sent.bytes += size;
                    return Ok(());
                }
                // Nothing is sent before the answer: what was sent since the last heartbeat needs one now.
                self.heartbeat(&mut sent);
            }
            tokio::select! {
                () = self.shared.credit.notified() => {}
                () = self.mux.lost.cancelled() => return Err(Lost),
            }
        }
    }

    /// Queues a heartbeat after what was sent, if it is time for one.
    fn mark(&self) {
        let mut sent = self.sent();
        if sent.frames - sent.marked_frames >= FRAMES_PER_HEARTBEAT
            || sent.bytes - sent.marked_bytes >= BYTES_PER_HEARTBEAT
        {
            self.heartbeat(&mut sent);
        }
    }

    fn heartbeat(&self, sent: &mut Sent) {
        if sent.frames > sent.marked_frames {
            (sent.marked_frames, sent.marked_bytes) = (sent.frames, sent.bytes);
            let _ = self.mux.queue.send(Outgoing::Heartbeat(Arc::clone(&self.shared), sent.frames, sent.bytes));
        }
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().expect("no code panics while it holds the counts")
    }

    /// What the client sent next. Cancel-safe.
    ///
    /// # Errors
    /// [`Lost`], once everything that arrived was taken.
    pub(crate) async fn next(&self) -> Result<StreamEvent, Lost> {
        loop {
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
            if self.mux.lost.is_cancelled() {
                return self.try_next().ok_or(Lost);
            }
            self.shared.arrived.notified().await;
        }
    }

    /// The same, if it is there already.
    pub(crate) fn try_next(&self) -> Option<StreamEvent> {
        let mut inbox = self.shared.inbox();
        let event = inbox.events.pop_front()?;
        let cost = cost(&event);
        inbox.bytes -= cost;
        inbox.taken += 1;
        drop(inbox);
        self.mux.release(cost);
        if cost == 0 {
            self.is_over.store(true, Relaxed);
        }
        Some(event)
    }

    /// Stops waiting for the end of a stream whose answer is complete.
    pub(crate) fn let_go(mut self) {
        // Under the lock: either the end was delivered before, or it finds the place.
        let streams = self.mux.streams();
        if streams.open.contains_key(&self.id) {
            *self.shared.let_go() = self.place.take().map(|place| (Instant::now(), place));
            self.is_over.store(true, Relaxed);
        }
    }

    /// Ends the stream from this side, unless the client did.
    pub(crate) fn close(&self, code: Option<u16>, reason: Option<String>) {
        self.finish(StreamEvent::Close { code, reason });
    }

    /// Resets the stream from this side.
    pub(crate) fn reset(&self, reason: &str) {
        self.finish(StreamEvent::Reset { reason: reason.to_owned() });
    }

    fn finish(&self, event: StreamEvent) {
        if self.is_over.swap(true, Relaxed) {
            return;
        }
        let was_open = self.mux.streams().open.remove(&self.id).is_some();
        if was_open {
            self.mux.end_of(self.id, event);
        }
    }

    /// The wire version of the session.
    pub(crate) fn version(&self) -> WireVersion {
        self.mux.version
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close(None, None);
        let bytes = std::mem::take(&mut self.shared.inbox().bytes);
        self.mux.release(bytes);
    }
}

/// Most bytes of a byte stream in one frame.
pub(crate) const CHUNK: usize = V3_CHUNK;
