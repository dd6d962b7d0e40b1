//! Buffers that bytes are read into and sent from, without a copy. Each thread reuses its chunks: the page faults of new
//! memory cost more than moving the bytes.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

/// Bytes of a chunk: one large read.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Reads of this size or more are kept in their chunk. Smaller ones are copied, so that they do not occupy a whole chunk.
pub(crate) const OWN_FROM: usize = 8 * 1024;
/// Limit of unused chunks that a thread keeps: enough for this many concurrent streams.
const KEPT: usize = 64;
/// Unused chunks are freed when none was needed for this long.
const UNUSED_FOR: Duration = Duration::from_secs(5);

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// When [`release_unused`] found that chunks had been lent; `None` if one was lent since.
    static LENT_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A chunk. It contains bytes of earlier reads.
#[derive(Debug)]
pub(crate) struct Chunk(Box<[u8]>);

impl Chunk {
    pub(crate) fn lend() -> Self {
        LENT_AT.set(None);
        Self(POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The first `count` bytes. Fewer than [`OWN_FROM`] are copied. The chunk returns to the pool of the thread where the
    /// last of them is dropped.
    pub(crate) fn into_bytes(self, count: usize) -> Bytes {
        if count < OWN_FROM { Bytes::copy_from_slice(&self.0[..count]) } else { Bytes::from_owner(self).slice(..count) }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let chunk = std::mem::take(&mut self.0);
        // The pool is gone when its thread ends.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(chunk);
            }
        });
    }
}

/// Frees this thread's unused chunks if none was lent for a while.
pub(crate) fn release_unused(now: Instant) {
    match LENT_AT.get() {
        None => LENT_AT.set(Some(now)),
        Some(at) if now.duration_since(at) >= UNUSED_FOR => POOL.with_borrow_mut(|pool| *pool = Vec::new()),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_reused_and_freed_when_unused() {
        let kept = || POOL.with_borrow(Vec::len);
        let (mut one, two) = (Chunk::lend(), Chunk::lend());
        one.space().fill(7);
        let bytes = one.into_bytes(OWN_FROM);
        let part = bytes.slice(1..3);
        assert!(bytes.len() == OWN_FROM && bytes.iter().all(|byte| *byte == 7));
        drop((bytes, two));
        assert_eq!(kept(), 1, "a part of it is still in use");
        drop(part);
        assert_eq!(kept(), 2);
        let now = Instant::now();
        release_unused(now);
        release_unused(now + UNUSED_FOR / 2);
        assert_eq!(kept(), 2, "they were used recently");
        release_unused(now + UNUSED_FOR);
        assert_eq!(kept(), 0);
    }
}
