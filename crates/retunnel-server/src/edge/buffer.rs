//! Buffers for bytes on their way. A task takes one when there is something to read and gives it back once that is
//! written, so that waiting connections own none.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Bytes of a buffer: a few turns of a link, and small enough for a thousand stalled readers (32 MiB).
pub(crate) const BUFFER: usize = 32 * 1024;
/// Buffers kept by each thread.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER`] bytes with old contents.
#[derive(Debug)]
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub(crate) fn take() -> Self {
        let kept = POOL.with_borrow_mut(Vec::pop);
        Self(Some(kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        POOL.with_borrow_mut(|pool| {
            if pool.len() < KEPT {
                pool.extend(self.0.take());
            }
        });
    }
}
