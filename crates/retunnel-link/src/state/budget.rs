//! Bytes in memory: those received and not read yet, and those written and not sent yet.

use std::sync::Arc;

use crate::{
    budget::{Budget, Share},
    config::LinkConfig,
};

/// Unsent bytes of one stream while the link is not crowded.
const PER_STREAM: usize = 64 * 1024;
/// Unsent bytes of one stream while the link is crowded.
const PER_STREAM_CROWDED: usize = 4 * 1024;
/// Unsent bytes over all streams from which the link is crowded.
const CROWDED: usize = 8 * 1024 * 1024;

/// Received bytes of one link that wait for their readers. They count against the link's own limit and against the
/// [`Budget`] of the process, which gets them back when this is dropped.
#[derive(Debug)]
pub(super) struct Buffered {
    bytes: usize,
    max: usize,
    process: Arc<Budget>,
    share: Arc<Share>,
}

/// Which limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// A stream of this link has to go.
    Link,
    /// A stream of any link has to go.
    Process,
}

impl Buffered {
    pub(super) fn new(config: &LinkConfig) -> Self {
        let process = Arc::clone(&config.budget);
        Self { bytes: 0, max: config.max_buffered, share: process.join(), process }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The link's part of the budget.
    pub(super) const fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Adds `bytes`.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.bytes += bytes;
        self.share.set_used(self.bytes);
        let fits = self.process.add(bytes);
        if self.is_exceeded() {
            return Err(Exceeded::Link);
        }
        if fits { Ok(()) } else { Err(Exceeded::Process) }
    }

    /// Whether the link's own limit is exceeded.
    pub(super) const fn is_exceeded(&self) -> bool {
        self.bytes > self.max
    }

    pub(super) fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.share.set_used(self.bytes);
        self.process.sub(bytes);
    }

    /// Whether windows may still grow: less than half of the link's limit is in use.
    pub(super) const fn has_room(&self) -> bool {
        self.bytes < self.max / 2
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.process.sub(self.bytes);
        self.process.leave(&self.share);
    }
}

/// Bytes of all streams of one link that wait to be sent. The link's limit bounds them softly: beyond it each stream
/// may hold less.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: usize,
}

impl Backlog {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn is_crowded(&self) -> bool {
        self.bytes >= CROWDED
    }

    /// Bytes that a stream with `unsent` bytes may add.
    pub(super) const fn room(&self, unsent: usize) -> usize {
        let limit = if self.is_crowded() { PER_STREAM_CROWDED } else { PER_STREAM };
        limit.saturating_sub(unsent)
    }

    pub(super) const fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(super) const fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffered(max: usize, process: &Arc<Budget>) -> Buffered {
        Buffered::new(&LinkConfig { max_buffered: max, budget: Arc::clone(process), ..LinkConfig::default() })
    }

    #[test]
    fn the_limit_of_the_link_and_of_the_process_both_hold() {
        let process = Arc::new(Budget::new(150));
        let (mut one, mut two) = (buffered(100, &process), buffered(100, &process));
        assert_eq!(one.add(100), Ok(()));
        assert_eq!(one.add(1), Err(Exceeded::Link));
        one.sub(1);
        assert_eq!(two.add(50), Ok(()));
        assert_eq!(two.add(1), Err(Exceeded::Process));
        two.sub(1);
        one.sub(60);
        assert_eq!(two.add(50), Ok(()));
        assert_eq!(process.used(), 140);
    }

    #[test]
    fn windows_grow_while_less_than_half_is_used() {
        let mut buffered = buffered(100, &Arc::new(Budget::new(1000)));
        buffered.add(49).expect("fits");
        assert!(buffered.has_room());
        buffered.add(1).expect("fits");
        assert!(!buffered.has_room());
    }

    #[test]
    fn the_process_gets_back_what_a_link_held() {
        let process = Arc::new(Budget::new(1000));
        let mut buffered = buffered(100, &process);
        buffered.add(70).expect("fits");
        assert_eq!(process.used(), 70);
        drop(buffered);
        assert_eq!(process.used(), 0);
    }

    #[test]
    fn streams_of_a_crowded_link_hold_less() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.room(0), PER_STREAM);
        assert_eq!(backlog.room(PER_STREAM - 1), 1);
        assert_eq!(backlog.room(PER_STREAM + 1), 0);
        backlog.add(CROWDED);
        assert!(backlog.is_crowded());
        assert_eq!(backlog.room(0), PER_STREAM_CROWDED);
        assert_eq!(backlog.room(PER_STREAM), 0, "what it holds already may be more");
        backlog.sub(1);
        assert_eq!(backlog.room(0), PER_STREAM);
    }
}
