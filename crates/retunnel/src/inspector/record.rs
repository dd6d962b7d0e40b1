//! One exchange as it was seen: raw heads, the beginning of both bodies, messages, times. Nothing is parsed until somebody
//! looks.

use std::{
    mem::size_of,
    sync::Arc,
    time::{Duration, SystemTime},
};

use retunnel_client::tap::{Exchange, Side};
use tokio::time::Instant;

use super::{
    messages::{Messages, Protocol},
    store::{Change, Entry, Store, index},
};

/// One side of an exchange.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// As it passed; empty while there is none.
    pub(crate) head: Vec<u8>,
    /// The beginning of the body.
    pub(crate) body: Vec<u8>,
    /// Bytes of the whole body.
    pub(crate) size: u64,
    /// When it began and ended, since the exchange began.
    pub(crate) began: Option<Duration>,
    pub(crate) ended: Option<Duration>,
}

/// An exchange.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) tunnel: String,
    pub(crate) replay_of: Option<u64>,
    pub(crate) started: SystemTime,
    began: Instant,
    /// Request and response.
    pub(crate) parts: [Part; 2],
    /// Of a WebSocket or an event stream.
    pub(crate) messages: Option<Box<Messages>>,
    /// Why the request did not reach the local service.
    pub(crate) failure: Option<String>,
    /// The connection is over; a side without end was cut.
    pub(crate) over: Option<Duration>,
}

impl Record {
    pub(crate) fn new(tunnel: &str, head: &[u8], replay_of: Option<u64>, started: SystemTime, began: Instant) -> Self {
        let request = Part { head: head.to_vec(), began: Some(Duration::ZERO), ..Part::default() };
        Self {
            tunnel: tunnel.to_owned(),
            replay_of,
            started,
            began,
            parts: [request, Part::default()],
            messages: None,
            failure: None,
            over: None,
        }
    }

    /// Bytes it holds at its beginning.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Self>() + size_of::<Entry>() + self.tunnel.len() + self.parts[0].head.len()
    }

    /// Lets go of what is large.
    pub(crate) fn forget(&mut self) {
        for part in &mut self.parts {
            part.head = Vec::new();
            part.body = Vec::new();
        }
        self.messages = None;
    }

    pub(crate) const fn request(&self) -> &Part {
        &self.parts[0]
    }

    pub(crate) const fn response(&self) -> &Part {
        &self.parts[1]
    }

    /// Whether nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_some() || self.parts.iter().all(|part| part.ended.is_some())
    }
}

/// Length of the body as its head has it; 0 where it has none.
fn announced(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    head.split(|byte| *byte == b'\n')
        .filter_map(|line| line.split_at_checked(NAME.len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(NAME))
        .and_then(|(_, value)| str::from_utf8(value).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

/// Adds what passes to an exchange.
#[derive(Debug)]
pub(crate) struct Capture {
    entry: Arc<Entry>,
    store: Arc<Store>,
}

impl Capture {
    pub(crate) const fn new(entry: Arc<Entry>, store: Arc<Store>) -> Self {
        Self { entry, store }
    }

    pub(crate) fn entry(&self) -> Arc<Entry> {
        Arc::clone(&self.entry)
    }
}

impl Exchange for Capture {
    fn response(&mut self, head: &[u8]) {
        let cost = {
            let mut record = self.entry.record();
            if self.entry.is_evicted() {
                return;
            }
            let now = record.began.elapsed();
            record.messages = Protocol::of(head).map(|protocol| Box::new(Messages::new(protocol)));
            let part = &mut record.parts[1];
            part.head = head.to_vec();
            part.began = Some(now);
            head.len()
        };
        self.store.charge(&self.entry, cost);
        self.store.tell(Change::Exchange(self.entry.id));
    }

    fn body(&mut self, side: Side, bytes: &[u8]) {
        let (cost, noteworthy) = {
            let mut record = self.entry.record();
            let record = &mut *record;
            let part = &mut record.parts[index(side)];
            part.size += bytes.len() as u64;
            if self.entry.is_evicted() {
                return;
            }
            let mut cost = 0;
            let mut noteworthy = false;
            if let Some(messages) = &mut record.messages {
                noteworthy = messages.add(side, bytes, record.began.elapsed());
                cost += messages.newly_held();
            }
            if record.messages.as_ref().is_none_or(|messages| messages.keeps_body()) {
                let room = self.store.body_limit.saturating_sub(part.body.len());
                let kept = &bytes[..room.min(bytes.len())];
                let (before, needed) = (part.body.capacity(), part.body.len() + kept.len());
                if needed > before {
                    // As much as was announced, or doubled as usual, but never beyond what is kept.
                    let more = if before == 0 { announced(&part.head) } else { before * 2 };
                    let wanted = needed.max(more).min(self.store.body_limit);
                    part.body.reserve_exact(wanted - part.body.len());
                }
                part.body.extend_from_slice(kept);
                cost += part.body.capacity() - before;
            }
            (cost, noteworthy)
        };
        if cost > 0 {
            self.store.charge(&self.entry, cost);
        }
        if noteworthy {
            self.store.tell(Change::Exchange(self.entry.id));
        }
    }

    fn wants(&self, side: Side) -> bool {
        let record = self.entry.record();
        !self.entry.is_evicted()
            && (record.messages.is_some() || record.parts[index(side)].body.len() < self.store.body_limit)
    }

    fn passed(&mut self, side: Side, count: u64) {
        self.entry.record().parts[index(side)].size += count;
    }

    fn end(&mut self, side: Side) {
        {
            let mut record = self.entry.record();
            let now = record.began.elapsed();
            record.parts[index(side)].ended = Some(now);
        }
        if side == Side::Response {
            self.store.tell(Change::Exchange(self.entry.id));
        }
    }

    fn failed(&mut self, reason: &str) {
        self.entry.record().failure = Some(reason.to_owned());
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        {
            let mut record = self.entry.record();
            record.over = Some(record.began.elapsed());
        }
        self.store.tell(Change::Exchange(self.entry.id));
    }
}
