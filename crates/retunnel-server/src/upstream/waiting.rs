//! Bytes of answers that wait for visitors, over all sessions of the published dialects.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Received bytes that wait for visitors, and how many there may be.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: AtomicUsize,
    max: usize,
}

impl Waiting {
    pub(crate) const fn new(max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), max }
    }

    /// Counts more bytes; says whether the bound still holds.
    pub(crate) fn take(&self, count: usize) -> bool {
        self.bytes.fetch_add(count, Relaxed) + count <= self.max
    }

    /// Bytes that were counted are gone.
    pub(crate) fn give(&self, count: usize) {
        self.bytes.fetch_sub(count, Relaxed);
    }

    /// Whether the bound is exceeded.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.bytes.load(Relaxed) > self.max
    }
}

/// The share of one answer that is kept whole.
#[derive(Debug)]
pub(crate) struct Charge {
    waiting: Arc<Waiting>,
    held: usize,
    is_refused: bool,
}

impl Charge {
    pub(crate) const fn new(waiting: Arc<Waiting>) -> Self {
        Self { waiting, held: 0, is_refused: false }
    }

    /// Counts more bytes; `false` when there is no room for them.
    pub(crate) fn take(&mut self, count: usize) -> bool {
        self.held += count;
        self.is_refused = !self.waiting.take(count);
        !self.is_refused
    }

    /// Whether there was no room.
    pub(crate) const fn is_refused(&self) -> bool {
        self.is_refused
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.waiting.give(self.held);
    }
}
