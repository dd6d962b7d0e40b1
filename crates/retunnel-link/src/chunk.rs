//! Memory that bytes are read into where they stay until they are sent. Each thread lends its chunks again and again: new
//! memory of this size costs more than the bytes in it (pages that are touched for the first time).

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

/// Bytes of a chunk: one large read.
pub(crate) const CHUNK: usize = 64 * 1024;
/// So many bytes or more are kept as they were read; fewer would hold a chunk for little.
pub(crate) const OWN_FROM: usize = 8 * 1024;
/// Chunks that a thread keeps: as many as are used by that many streams at a time.
const KEPT: usize = 64;
/// They are given back when none was lent for so long.
const UNUSED_FOR: Duration = Duration::from_secs(5);

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// When [`release_unused`] last saw that chunks were lent; `None`: they were since.
    static LENT_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A chunk with old contents.
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

    /// The first bytes; few are copied, so that they do not hold a whole chunk. It goes back when the last of them is dropped.
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
        // A thread that ends takes no more.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(chunk);
            }
        });
    }
}

/// Gives this thread's chunks back to the system if none was lent for a while.
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
    fn chunks_are_lent_again_and_given_back_when_nobody_wants_them() {
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
        assert_eq!(kept(), 2, "they were used a moment ago");
        release_unused(now + UNUSED_FOR);
        assert_eq!(kept(), 0);
    }
}
