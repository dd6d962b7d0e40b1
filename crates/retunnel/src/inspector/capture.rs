//! Captures exchanges into the store while they pass.

use std::sync::{Arc, Mutex};

use retunnel_client::tap::{Exchange, Observer, Side};
use tokio::time::Instant;

use super::{
    messages::{MessageParser, Messages, Protocol},
    store::{Change, Entry, Store},
};

/// Starts a capture for each exchange of visitors, or of one replay.
#[derive(Debug)]
pub(crate) struct Recorder {
    store: Arc<Store>,
    replay_of: Option<u64>,
    /// The newest exchange of a replay, which waits for its end.
    last: Mutex<Option<Arc<Entry>>>,
}

impl Recorder {
    pub(crate) fn new(store: Arc<Store>, replay_of: Option<u64>) -> Self {
        Self { store, replay_of, last: Mutex::new(None) }
    }

    /// The newest exchange of a replay.
    pub(crate) fn last(&self) -> Option<Arc<Entry>> {
        self.last.lock().expect("no code panics while it holds the exchange").clone()
    }
}

impl Observer for Recorder {
    fn request(&self, tunnel: &str, head: &[u8], began: Instant) -> Option<Box<dyn Exchange>> {
        let entry = self.store.begin(tunnel, head, self.replay_of, began)?;
        if self.replay_of.is_some() {
            *self.last.lock().expect("no code panics while it holds the exchange") = Some(Arc::clone(&entry));
        }
        Some(Box::new(Capture { entry, store: Arc::clone(&self.store), parser: None }))
    }
}

/// Adds to an entry what passes in its exchange.
#[derive(Debug)]
struct Capture {
    entry: Arc<Entry>,
    store: Arc<Store>,
    /// For a WebSocket or an event stream.
    parser: Option<Box<MessageParser>>,
}

impl Exchange for Capture {
    fn response(&mut self, head: &[u8]) {
        let cost = {
            let mut record = self.entry.record();
            if self.entry.is_evicted() {
                return;
            }
            let now = record.began.elapsed();
            let protocol = Protocol::of(head);
            self.parser = protocol.map(|protocol| Box::new(MessageParser::new(protocol)));
            record.messages = protocol.map(|protocol| Box::new(Messages::new(protocol)));
            let part = &mut record.parts.response;
            part.head = head.to_vec();
            part.began = Some(now);
            head.len()
        };
        self.store.charge(&self.entry, cost);
        self.store.notify(Change::Exchange(self.entry.id));
    }

    fn body(&mut self, side: Side, bytes: &[u8]) {
        let (cost, has_message) = {
            let mut record = self.entry.record();
            let record = &mut *record;
            let part = &mut record.parts[side];
            part.size += bytes.len() as u64;
            if self.entry.is_evicted() {
                return;
            }
            let mut cost = 0;
            let mut has_message = false;
            if let (Some(messages), Some(parser)) = (&mut record.messages, &mut self.parser) {
                has_message = parser.add(side, bytes, record.began.elapsed(), messages);
                cost += messages.newly_held();
            }
            if record.messages.as_ref().is_none_or(|messages| messages.keeps_body()) {
                let room = self.store.body_limit.saturating_sub(part.body.len());
                let kept = &bytes[..room.min(bytes.len())];
                let (before, needed) = (part.body.capacity(), part.body.len() + kept.len());
                if needed > before {
                    // Reserve the announced length, or double as usual, but never more than the limit.
                    let more = if before == 0 { announced(&part.head) } else { before * 2 };
                    let wanted = needed.max(more).min(self.store.body_limit);
                    part.body.reserve_exact(wanted - part.body.len());
                }
                part.body.extend_from_slice(kept);
                cost += part.body.capacity() - before;
            }
            (cost, has_message)
        };
        if cost > 0 {
            self.store.charge(&self.entry, cost);
        }
        if has_message {
            self.store.notify(Change::Exchange(self.entry.id));
        }
    }

    fn wants(&self, side: Side) -> bool {
        let record = self.entry.record();
        !self.entry.is_evicted() && (record.messages.is_some() || record.parts[side].body.len() < self.store.body_limit)
    }

    fn passed(&mut self, side: Side, count: u64) {
        self.entry.record().parts[side].size += count;
    }

    fn end(&mut self, side: Side) {
        {
            let mut record = self.entry.record();
            let now = record.began.elapsed();
            record.parts[side].ended = Some(now);
        }
        if side == Side::Response {
            self.store.notify(Change::Exchange(self.entry.id));
        }
    }

    fn cut(&mut self, side: Side) {
        if side == Side::Response {
            self.over();
        }
    }

    fn failed(&mut self, reason: &str) {
        self.entry.record().failure = Some(reason.to_owned());
    }
}

impl Capture {
    /// Nothing more of the answer comes.
    fn over(&self) {
        let is_unanswered = {
            let mut record = self.entry.record();
            let now = record.began.elapsed();
            let is_first = record.over.is_none();
            record.over.get_or_insert(now);
            is_first
                && record.parts.response.head.is_empty()
                && record.failure.is_none()
                && record.replay_of.is_none()
                && !self.entry.is_evicted()
        };
        if is_unanswered {
            self.store.note_unanswered(&self.entry);
        }
        self.store.notify(Change::Exchange(self.entry.id));
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.over();
    }
}

/// The length of the body according to its head; 0 if it does not say.
fn announced(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    head.split(|byte| *byte == b'\n')
        .filter_map(|line| line.split_at_checked(NAME.len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(NAME))
        .and_then(|(_, value)| str::from_utf8(value).ok()?.trim().parse().ok())
        .unwrap_or(0)
}
