//! Buffers for bytes on their way. A task takes one when there is something to read and gives it back once that is
//! written, so that waiting connections own none.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    ops::{Deref, DerefMut, Range},
    pin::Pin,
    task::Poll,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a buffer: a few turns of a link, and small enough for a thousand stalled readers (32 MiB).
pub(crate) const BUFFER: usize = 32 * 1024;
/// Buffers kept by each thread. Most writes do not wait, so that one or two are in use at a time.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static DRAFTS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER`] bytes with old contents.
#[derive(Debug)]
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub(crate) fn take() -> Self {
        let kept = POOL.with_borrow_mut(Vec::pop);
        Self(Some(kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())))
    }

    /// Waits for bytes without a buffer, then gives them in one, from the start of `room` on, with their count: 0 at the
    /// end. Cancel-safe.
    ///
    /// A read that does not fill its room tells the runtime that the socket is empty, so that waiting for the next bytes
    /// costs no call. Waiting for readiness and then trying to read, as it is written more often, costs one each time.
    pub(crate) async fn read<R>(reader: &mut R, room: Range<usize>) -> io::Result<(Self, usize)>
    where
        R: AsyncRead + Unpin,
    {
        poll_fn(|cx| {
            let mut buffer = Self::take();
            let mut filled = ReadBuf::new(&mut buffer[room.clone()]);
            let result = std::task::ready!(Pin::new(&mut *reader).poll_read(cx, &mut filled));
            let count = filled.filled().len();
            Poll::Ready(result.map(|()| (buffer, count)))
        })
        .await
    }
}

/// A buffer for bytes that are put together before they leave, empty at first. It grows as it must; its memory goes to the
/// next one.
#[derive(Debug, Default)]
pub(crate) struct Draft(BytesMut);

impl Draft {
    pub(crate) fn new() -> Self {
        Self(DRAFTS.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl Deref for Draft {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.0
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        DRAFTS.with_borrow_mut(|pool| {
            if pool.len() < KEPT && bytes.capacity() <= BUFFER {
                pool.push(bytes);
            }
        });
    }
}

/// Waits for bytes without a buffer and puts them behind `received`; gives their count, 0 at the end. Cancel-safe.
pub(crate) async fn read_behind<R>(reader: &mut R, received: &mut BytesMut) -> io::Result<usize>
where
    R: AsyncRead + Unpin,
{
    let (buffer, count) = Buffer::read(reader, 0..BUFFER).await?;
    received.extend_from_slice(&buffer[..count]);
    Ok(count)
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
