//! Buffers for bytes in transit. A task takes one when there is something to read and returns it when that is written, so
//! that waiting connections own none.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    ops::{Deref, DerefMut, Range},
    pin::Pin,
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

    /// Waits for bytes without a buffer, then returns them in one, from the start of `room`, with their count: 0 at the
    /// end. Cancel-safe.
    ///
    /// A read that does not fill its room shows the runtime that the socket is empty, so that waiting for the next bytes
    /// costs no system call. The common pattern, waiting for readiness before each read, costs one each time.
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

/// A buffer for bytes that are collected before they leave, empty at first. It grows as needed; its memory is reused by the
/// next one.
#[derive(Debug)]
pub(crate) struct Draft(BytesMut);

impl Default for Draft {
    fn default() -> Self {
        Self::new()
    }
}

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

/// Joins pieces of bytes, without a copy as long as there is only one.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    first: Bytes,
    more: BytesMut,
}

impl Joined {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
        } else if !piece.is_empty() {
            if self.more.is_empty() {
                self.more.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.more.extend_from_slice(&piece);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        if self.more.is_empty() { self.first } else { self.more.freeze() }
    }
}

/// Writes all slices, together where the writer can. Empty ones are skipped.
///
/// # Errors
/// The writer's failure.
pub(crate) async fn write_slices<W, const N: usize>(writer: &mut W, parts: [&[u8]; N]) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut slices = parts.map(IoSlice::new);
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut *writer).poll_write_vectored(cx, left)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    poll_fn(|cx| Pin::new(&mut *writer).poll_flush(cx)).await
}

/// Waits for bytes without a buffer and appends them to `received`; returns their count, 0 at the end. Cancel-safe.
pub(crate) async fn read_into<R>(reader: &mut R, received: &mut BytesMut) -> io::Result<usize>
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
