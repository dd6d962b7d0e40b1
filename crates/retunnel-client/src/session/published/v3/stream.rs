//! The queues between a session and the task of one stream.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use retunnel_proto::{
    dialect::v3::{MessageKind, StreamEvent, StreamFrame, WireVersion, chunks},
    limits::{V3_CHUNK, V3_MAX_MESSAGE},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_websockets::Message;

/// Frames of one stream that may wait. The published clients accept 256; small frames come in bursts.
const MAX_FRAMES: usize = 4096;
/// Bytes of one stream that may wait.
const MAX_BYTES: usize = V3_MAX_MESSAGE;
/// Bytes of all streams that may wait.
const MAX_BYTES_OF_ALL: usize = 4 * MAX_BYTES;
/// Longest reason that the dialect carries, in bytes.
const MAX_REASON: usize = 200;

/// Bytes that wait in the queues of a session.
#[derive(Debug, Default)]
pub(super) struct Load(AtomicUsize);

impl Load {
    /// Whether the queues hold more than half of what they may.
    pub(super) fn is_high(&self) -> bool {
        self.0.load(Relaxed) > MAX_BYTES_OF_ALL / 2
    }
}

#[derive(Debug)]
struct Waiting {
    bytes: AtomicUsize,
    /// Cancelled when the queue overflows.
    overflow: CancellationToken,
    all: Arc<Load>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes.load(Relaxed), Relaxed);
    }
}

/// The session's end of a stream's queue.
#[derive(Debug)]
pub(super) struct Entrance {
    events: mpsc::Sender<StreamEvent>,
    waiting: Arc<Waiting>,
}

/// The task's end of a stream's queue.
#[derive(Debug)]
pub(super) struct Inbox {
    events: mpsc::Receiver<StreamEvent>,
    waiting: Arc<Waiting>,
}

/// The queue of one stream.
pub(super) fn queue(all: Arc<Load>) -> (Entrance, Inbox) {
    let (sender, receiver) = mpsc::channel(MAX_FRAMES);
    let waiting = Arc::new(Waiting { bytes: AtomicUsize::new(0), overflow: CancellationToken::new(), all });
    (Entrance { events: sender, waiting: Arc::clone(&waiting) }, Inbox { events: receiver, waiting })
}

const fn size(event: &StreamEvent) -> usize {
    match event {
        StreamEvent::Data { data, .. } => data.len(),
        _ => 0,
    }
}

impl Entrance {
    /// `false` when there is no room: the stream must end.
    pub(super) fn push(&self, event: StreamEvent) -> bool {
        let size = size(&event);
        let waiting = self.waiting.bytes.fetch_add(size, Relaxed) + size;
        let of_all = self.waiting.all.0.fetch_add(size, Relaxed) + size;
        let has_room = waiting <= MAX_BYTES && of_all <= MAX_BYTES_OF_ALL;
        let fits = has_room && !matches!(self.events.try_send(event), Err(mpsc::error::TrySendError::Full(_)));
        if !fits {
            self.waiting.overflow.cancel();
        }
        fits
    }

    /// Whether the queue is more than half full.
    pub(super) fn is_loaded(&self) -> bool {
        self.events.capacity() < MAX_FRAMES / 2 || self.waiting.bytes.load(Relaxed) > MAX_BYTES / 2
    }
}

impl Inbox {
    /// The next event; `None` when the session ended or the queue overflowed. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<StreamEvent> {
        let event = self.events.recv().await?;
        let size = size(&event);
        self.waiting.bytes.fetch_sub(size, Relaxed);
        self.waiting.all.0.fetch_sub(size, Relaxed);
        Some(event)
    }

    /// Cancelled when the queue overflows. A task that waits for the local service does not read the queue, so it needs
    /// this signal.
    pub(super) fn overflow(&self) -> CancellationToken {
        self.waiting.overflow.clone()
    }

    /// Why there are no more events.
    pub(super) fn end(&self) -> Gone {
        if self.waiting.overflow.is_cancelled() { Gone::Overflow } else { Gone::Session }
    }
}

/// Why the rest of an answer is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The visitor has left.
    Visitor,
    /// The session has ended.
    Session,
    /// The local service reads too slowly for a dialect without credit.
    Overflow,
}

/// A stream, as its task sees it.
pub(super) struct Stream {
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
}

/// Sends frames of one stream to the server.
pub(super) struct Outbox {
    pub(super) stream_id: u64,
    pub(super) version: WireVersion,
    pub(super) queue: mpsc::Sender<Message>,
}

impl Outbox {
    async fn send(&self, event: StreamEvent) -> Result<(), Gone> {
        let frame = StreamFrame { stream_id: self.stream_id, event };
        self.queue.send(Message::binary(frame.encode())).await.map_err(|_| Gone::Session)
    }

    /// Bytes of a body or of a connection.
    pub(super) async fn bytes(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(V3_CHUNK));
            self.send(StreamEvent::Data { data: chunk, kind: None, fin: None }).await?;
        }
        Ok(())
    }

    /// A message: in version 2 in chunks, in version 1 in one frame.
    pub(super) async fn message(&self, data: Bytes, kind: Option<MessageKind>) -> Result<(), Gone> {
        if self.version == WireVersion::One {
            return self.send(StreamEvent::Data { data, kind, fin: None }).await;
        }
        for (data, fin) in chunks(data) {
            self.send(StreamEvent::Data { data, kind, fin: Some(fin) }).await?;
        }
        Ok(())
    }

    /// The regular end.
    pub(super) async fn close(&self, code: Option<u16>, reason: Option<String>) {
        // A session that has ended needs no end of a stream.
        let _ = self.send(StreamEvent::Close { code, reason }).await;
    }

    /// The end after a failure.
    pub(super) async fn reset(&self, reason: &str) {
        let reason = reason[..reason.floor_char_boundary(MAX_REASON)].to_owned();
        let _ = self.send(StreamEvent::Reset { reason }).await;
    }

    /// Resets the stream if it ended on this side.
    pub(super) async fn gone(&self, gone: Gone) {
        if gone == Gone::Overflow {
            self.reset("buffer overflow: the local service reads too slowly").await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(size: usize) -> StreamEvent {
        StreamEvent::Data { data: Bytes::from(vec![0; size]), kind: None, fin: None }
    }

    #[tokio::test]
    async fn queues_are_bounded_by_stream_and_session() {
        let all = Arc::new(Load::default());
        let (entrance, mut inbox) = queue(Arc::clone(&all));
        assert!(entrance.push(data(MAX_BYTES)) && entrance.is_loaded());
        assert!(inbox.next().await.is_some() && !entrance.is_loaded());
        for _ in 0..MAX_FRAMES {
            assert!(entrance.push(data(1)));
        }
        assert!(!entrance.push(data(1)), "as many frames as may wait");
        drop(entrance);
        while inbox.next().await.is_some() {}
        assert_eq!(inbox.end(), Gone::Overflow);
        drop(inbox);
        let others: Vec<_> = (0..4).map(|_| queue(Arc::clone(&all))).collect();
        assert!(others.iter().all(|(entrance, _)| entrance.push(data(MAX_BYTES))) && all.is_high());
        let (entrance, inbox) = queue(Arc::clone(&all));
        assert!(!entrance.push(data(1)), "as many bytes as may wait");
        drop((entrance, inbox, others));
        assert_eq!(all.0.load(Relaxed), 0);
    }
}
