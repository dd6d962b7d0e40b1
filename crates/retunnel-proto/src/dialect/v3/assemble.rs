//! Cuts messages of version 2 into chunks, and joins chunks.

use bytes::{Bytes, BytesMut};

use crate::{DecodeError, limits::V3_CHUNK};

/// The chunks of a message, each with its `fin`. An empty message is one empty chunk.
pub fn chunks(mut message: Bytes) -> impl Iterator<Item = (Bytes, bool)> {
    let mut is_done = false;
    std::iter::from_fn(move || {
        if is_done {
            return None;
        }
        let chunk = message.split_to(message.len().min(V3_CHUNK));
        is_done = message.is_empty();
        Some((chunk, is_done))
    })
}

/// A message that is joined from chunks.
#[derive(Debug)]
pub struct Assembly {
    begun: BytesMut,
    limit: usize,
}

impl Assembly {
    /// For messages of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { begun: BytesMut::new(), limit }
    }

    /// Adds a chunk and returns the message that it completes. Without `fin` every frame is a message.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`]. The message is lost then.
    pub fn push(&mut self, chunk: Bytes, fin: Option<bool>) -> Result<Option<Bytes>, DecodeError> {
        let size = self.begun.len() + chunk.len();
        if size > self.limit {
            self.begun = BytesMut::new();
            return Err(DecodeError::TooLarge { what: "message", size: size as u64, limit: self.limit as u64 });
        }
        let is_last = fin != Some(false);
        if is_last && self.begun.is_empty() {
            return Ok(Some(chunk));
        }
        self.begun.extend_from_slice(&chunk);
        Ok(is_last.then(|| std::mem::take(&mut self.begun).freeze()))
    }

    /// Bytes of a message that is not complete.
    #[must_use]
    pub fn len(&self) -> usize {
        self.begun.len()
    }

    /// Whether no message has begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }
}
