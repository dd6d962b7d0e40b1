//! One stream of a link, as a reader and writer.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use retunnel_proto::native::ReasonCode;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    Lane, Shared, release,
    state::{ReadOutcome, WriteOutcome},
};

/// Bytes read from a lane at a time by [`LinkStream::read_frame`].
const LANE_PIECE: usize = 16 * 1024;

/// One stream of a link.
///
/// Reading gives 0 bytes once the peer half-closed; `shutdown` half-closes this side. A reset by either side or the
/// end of the link is [`io::ErrorKind::ConnectionReset`] with [`StreamReset`] inside. Dropping the stream before both
/// directions ended resets it.
#[derive(Debug)]
pub struct LinkStream {
    at: Place,
}

/// Which stream of which link; owns nothing.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    id: u32,
}

/// Inside the [`io::Error`] of a stream that was reset.
#[derive(Debug, Clone, Error)]
#[error("stream reset: {reason} ({code})")]
pub struct StreamReset {
    /// Stable code.
    pub code: ReasonCode,
    /// For people.
    pub reason: String,
}

impl StreamReset {
    /// The reset inside an error of a [`LinkStream`], if there is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

impl LinkStream {
    pub(crate) const fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { at: Place { shared, id } }
    }

    /// The stream's number on its link.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.at.id
    }

    /// Waits until a read would not wait. Cancel-safe; lets a waiting reader own no buffer.
    pub async fn readable(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.at.shared.lock();
            if state.is_readable(self.at.id) {
                return Poll::Ready(());
            }
            if let Some(stream) = state.streams.get_mut(&self.at.id) {
                stream.read_waker = Some(cx.waker().clone());
            }
            match state.lane_to_read(self.at.id) {
                Some((lane, _)) => lane.poll_readable(cx),
                None => Poll::Pending,
            }
        })
        .await;
    }

    /// Waits for bytes and gives those that arrived together, at most so many as one frame holds; empty at the end. Saves the
    /// copy of a read where the caller keeps the bytes. Cancel-safe.
    ///
    /// # Errors
    /// As those of a read.
    pub async fn read_frame(&self) -> io::Result<Bytes> {
        std::future::poll_fn(|cx| {
            let mut state = self.at.shared.lock();
            if let Some(bytes) = state.read_piece(self.at.id) {
                release(state, Vec::new());
                return Poll::Ready(Ok(bytes));
            }
            let on_lane = state.lane_to_read(self.at.id).is_some();
            drop(state);
            let (mut one, mut many) = ([0; 1], Vec::new());
            let storage = if on_lane {
                many.resize(LANE_PIECE, 0);
                &mut many[..]
            } else {
                // Nothing waits: this registers the reader, or tells of the end.
                &mut one[..]
            };
            let (mut this, mut buf) = (self, ReadBuf::new(storage));
            ready!(Pin::new(&mut this).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(buf.filled())))
        })
        .await
    }

    /// Another exchange begins on this stream. Only what one exchange moves decides whether it is bulk.
    pub fn begin_exchange(&self) {
        self.at.shared.lock().begin_exchange(self.at.id);
    }

    /// Whether the stream has moved, or is about to.
    #[must_use]
    pub fn is_on_lane(&self) -> bool {
        self.at.shared.lock().is_on_lane(self.at.id)
    }

    /// Whether the stream was reset or its link has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at.shared.lock().is_reset(self.at.id)
    }

    /// Asks for a lane now: what is to come is known to be bulk.
    pub fn expect_bulk(&self) {
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        state.want_lane(self.at.id, &mut wakers);
        release(state, wakers);
    }

    /// For whoever moves its bytes elsewhere.
    #[cfg(target_os = "linux")]
    pub(crate) const fn place(&self) -> &Place {
        &self.at
    }

    fn poll_read_lane(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        (lane, left): (&Lane, u64),
    ) -> Poll<io::Result<()>> {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buf.remaining());
        let mut part = buf.take(room);
        ready!(lane.poll_read(cx, &mut part))?;
        let count = part.filled().len();
        self.at.arrived_on_lane(count);
        if count == 0 {
            // Cut, or the count of all bytes is still on its way; the state knows.
            let mut state = self.at.shared.lock();
            return match state.read(self.at.id, &mut []) {
                ReadOutcome::Reset(code, reason) => Poll::Ready(Err(reset_error(code, reason))),
                _ => {
                    if let Some(stream) = state.streams.get_mut(&self.at.id) {
                        stream.read_waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            };
        }
        let filled = buf.filled().len() + count;
        buf.set_filled(filled);
        Poll::Ready(Ok(()))
    }

    /// Ends both directions at once and tells the peer why.
    pub fn reset(self, code: ReasonCode, reason: &str) {
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        state.reset_here(self.at.id, code, reason, &mut wakers);
        release(state, wakers);
    }

    /// Half-closes this side and lets the stream finish by itself: what the peer still sends is thrown away, and the
    /// stream is reset if the peer does not finish within ten seconds.
    pub fn finish(self) {
        let mut state = self.at.shared.lock();
        state.detach(self.at.id);
        release(state, Vec::new());
    }
}

impl Place {
    /// The lane that this stream's next bytes come from, and the most bytes to take there. Reading it must be reported
    /// ([`Self::arrived_on_lane`]).
    pub(crate) fn poll_lane_to_read(&self, cx: &Context<'_>) -> Option<(Arc<Lane>, u64)> {
        let mut state = self.shared.lock();
        let found = state.lane_to_read(self.id)?;
        if let Some(stream) = state.streams.get_mut(&self.id) {
            // The count of all bytes, or a reset, comes over the link.
            stream.read_waker = Some(cx.waker().clone());
        }
        Some(found)
    }

    pub(crate) fn arrived_on_lane(&self, count: usize) {
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        state.arrived_on_lane(self.id, count, &mut wakers);
        if !wakers.is_empty() || count == 0 {
            wakers.extend(state.driver_waker.take());
        }
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// The lane that this stream's next bytes go to. Writing it must be reported ([`Self::sent_on_lane`]).
    pub(crate) fn poll_lane_to_write(&self, cx: &Context<'_>) -> Option<Arc<Lane>> {
        let mut state = self.shared.lock();
        let lane = state.lane_to_write(self.id)?;
        if let Some(stream) = state.streams.get_mut(&self.id) {
            stream.write_waker = Some(cx.waker().clone());
        }
        Some(lane)
    }

    pub(crate) fn sent_on_lane(&self, count: usize) {
        self.shared.lock().sent_on_lane(self.id, count);
    }
}

fn reset_error(code: ReasonCode, reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code, reason })
}

// A stream needs no exclusive access, so one task may read and write through two shared references without a split.
impl AsyncRead for &LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.at.shared.lock();
        match state.read(self.at.id, buf.initialize_unfilled()) {
            ReadOutcome::Bytes(len) => {
                release(state, Vec::new());
                buf.advance(len);
                Poll::Ready(Ok(()))
            }
            ReadOutcome::End => Poll::Ready(Ok(())),
            ReadOutcome::Reset(code, reason) => Poll::Ready(Err(reset_error(code, reason))),
            ReadOutcome::Lane(lane, left) => {
                if let Some(stream) = state.streams.get_mut(&self.at.id) {
                    stream.read_waker = Some(cx.waker().clone());
                }
                drop(state);
                self.poll_read_lane(cx, buf, (&lane, left))
            }
            ReadOutcome::Wait => {
                if let Some(stream) = state.streams.get_mut(&self.at.id) {
                    stream.read_waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for &LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        let outcome = state.write(self.at.id, buf, &mut wakers);
        if matches!(outcome, Ok(WriteOutcome::Took(0) | WriteOutcome::Lane(_)))
            && let Some(stream) = state.streams.get_mut(&self.at.id)
        {
            stream.write_waker = Some(cx.waker().clone());
        }
        match outcome {
            Ok(WriteOutcome::Took(0)) => Poll::Pending,
            Ok(WriteOutcome::Took(len)) => {
                release(state, wakers);
                Poll::Ready(Ok(len))
            }
            Ok(WriteOutcome::Lane(lane)) => {
                drop(state);
                let count = ready!(lane.poll_write(cx, buf))?;
                self.at.sent_on_lane(count);
                Poll::Ready(Ok(count))
            }
            Err((code, reason)) => Poll::Ready(Err(reset_error(code, reason))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Bytes written to the link are in the driver's hands.
        match self.at.poll_lane_to_write(cx) {
            Some(lane) => lane.poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The end is told with the count of all bytes; they must be on their way.
        ready!(self.as_mut().poll_flush(cx))?;
        let mut state = self.at.shared.lock();
        state.end_sending(self.at.id);
        release(state, Vec::new());
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut &*self).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_shutdown(cx)
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        state.drop_handle(self.at.id, &mut wakers);
        release(state, wakers);
    }
}
