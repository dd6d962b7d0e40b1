//! One stream of a link, as a reader and writer.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use retunnel_proto::native::ReasonCode;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    chunk::Chunk,
    lane::Lane,
    shared::{Shared, release},
    state::{ReadOutcome, State, WriteOutcome},
};

/// One stream of a link.
///
/// Reading gives 0 bytes once the peer half-closed; `shutdown` half-closes this side. A reset by either side or the
/// end of the link is [`io::ErrorKind::ConnectionReset`] with [`StreamReset`] inside; what the peer had sent before it is
/// read first. Dropping the stream before both directions ended resets it.
#[derive(Debug)]
pub struct LinkStream {
    at: StreamRef,
}

/// A stream by its id, without the duty to reset it when dropped.
#[derive(Debug, Clone)]
pub(crate) struct StreamRef {
    shared: Arc<Shared>,
    id: u32,
}

/// What became of a write.
enum Written {
    Took(usize),
    Wait,
    Lane(Arc<Lane>),
}

/// Inside the [`io::Error`] of a stream that was reset.
#[derive(Debug, Clone, Error)]
#[error("stream reset: {reason} ({code})")]
pub struct StreamReset {
    /// Stable code.
    pub code: ReasonCode,
    /// Text to show to people.
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
        Self { at: StreamRef { shared, id } }
    }

    /// The stream's id on its link.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.at.id
    }

    /// Waits until a read would not wait, so that a waiting reader needs no buffer. Cancel-safe.
    pub async fn readable(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.at.shared.lock();
            if state.is_readable(self.at.id) {
                return Poll::Ready(());
            }
            state.wait_to_read(self.at.id, cx.waker());
            match state.lane_to_read(self.at.id) {
                Some((lane, _)) => lane.poll_readable(cx),
                None => Poll::Pending,
            }
        })
        .await;
    }

    /// Waits for bytes and returns those that arrived together; empty at the end. Saves the copy of a read if the caller
    /// keeps the bytes.
    ///
    /// # Errors
    /// The same as a read.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut state = self.at.shared.lock();
        if let Some(bytes) = state.read_piece(self.at.id) {
            self.was_read(state);
            return Poll::Ready(Ok(bytes));
        }
        self.poll_other_piece(cx, state)
    }

    /// Waits for bytes and moves those that have arrived, about `enough` of them, to the empty `first` and `more`. `first`
    /// stays empty at the end. Saves the copy of a read.
    pub(crate) fn poll_pieces(
        &self,
        cx: &mut Context<'_>,
        first: &mut Bytes,
        more: &mut VecDeque<Bytes>,
        enough: usize,
    ) -> Poll<io::Result<()>> {
        let mut state = self.at.shared.lock();
        if let Some(piece) = state.read_piece(self.at.id) {
            let mut len = piece.len();
            *first = piece;
            while len < enough
                && let Some(piece) = state.read_piece(self.at.id)
            {
                len += piece.len();
                more.push_back(piece);
            }
            self.was_read(state);
            return Poll::Ready(Ok(()));
        }
        *first = ready!(self.poll_other_piece(cx, state))?;
        Poll::Ready(Ok(()))
    }

    /// Bytes when none wait on the link: from the lane, or later. Empty at the end.
    fn poll_other_piece(&self, cx: &mut Context<'_>, state: MutexGuard<'_, State>) -> Poll<io::Result<Bytes>> {
        let on_lane = state.lane_to_read(self.at.id).is_some();
        drop(state);
        let mut this = self;
        if !on_lane {
            // This registers the reader or finds the end. A byte may have arrived meanwhile.
            let mut one = [0];
            let mut buf = ReadBuf::new(&mut one);
            ready!(Pin::new(&mut this).poll_read(cx, &mut buf))?;
            return Poll::Ready(Ok(Bytes::copy_from_slice(buf.filled())));
        }
        let mut chunk = Chunk::lend();
        let mut buf = ReadBuf::new(chunk.space());
        ready!(Pin::new(&mut this).poll_read(cx, &mut buf))?;
        let count = buf.filled().len();
        Poll::Ready(Ok(chunk.into_bytes(count)))
    }

    /// Writes bytes without a copy if there are many. Advances `bytes` by the count that it returns.
    pub(crate) fn poll_write_owned(&self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        let mut state = self.at.shared.lock();
        let outcome = state.write_owned(self.at.id, bytes);
        match self.written(cx, state, outcome)? {
            Written::Took(count) => Poll::Ready(Ok(count)),
            Written::Wait => Poll::Pending,
            Written::Lane(lane) => {
                let count = ready!(lane.poll_write(cx, bytes))?;
                self.at.sent_on_lane(count);
                bytes.advance(count);
                Poll::Ready(Ok(count))
            }
        }
    }

    /// Writes all bytes, without a copy if there are many.
    ///
    /// # Errors
    /// The same as a write.
    pub async fn write_owned(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            std::future::poll_fn(|cx| self.poll_write_owned(cx, &mut bytes)).await?;
        }
        Ok(())
    }

    /// Ends a change of the state that began with a read of bytes.
    fn was_read(&self, mut state: MutexGuard<'_, State>) {
        if state.credit_is_due(self.at.id) {
            state.give_credit(self.at.id, Instant::now());
        }
        release(state, Vec::new());
    }

    /// Ends a change of the state that began with a write.
    fn written(
        &self,
        cx: &Context<'_>,
        mut state: MutexGuard<'_, State>,
        outcome: Result<WriteOutcome, (ReasonCode, String)>,
    ) -> io::Result<Written> {
        match outcome {
            Ok(WriteOutcome::Took(0)) => {
                state.wait_to_write(self.at.id, cx.waker());
                Ok(Written::Wait)
            }
            Ok(WriteOutcome::Took(len)) => {
                let mut wakers = Vec::new();
                if state.lane_is_due(self.at.id) {
                    state.want_lane(self.at.id, Instant::now(), &mut wakers);
                }
                release(state, wakers);
                Ok(Written::Took(len))
            }
            Ok(WriteOutcome::Lane(lane)) => {
                state.wait_to_write(self.at.id, cx.waker());
                Ok(Written::Lane(lane))
            }
            Err((code, reason)) => Err(reset_error(code, reason)),
        }
    }

    /// Marks the beginning of another exchange. A stream is bulk if a single exchange moves enough bytes.
    pub fn begin_exchange(&self) {
        self.at.shared.lock().begin_exchange(self.at.id);
    }

    /// Whether the stream has moved to a lane or is about to.
    #[must_use]
    pub fn is_on_lane(&self) -> bool {
        self.at.shared.lock().is_on_lane(self.at.id)
    }

    /// Whether the stream was reset or its link has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at.is_over()
    }

    /// Asks for a lane now, because a bulk transfer is about to begin.
    pub fn expect_bulk(&self) {
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        state.want_lane(self.at.id, Instant::now(), &mut wakers);
        release(state, wakers);
    }

    /// The stream without its handle, for a task that moves its bytes elsewhere.
    #[cfg(target_os = "linux")]
    pub(crate) const fn by_ref(&self) -> &StreamRef {
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
        let count = match ready!(lane.poll_read(cx, &mut part)) {
            Ok(()) => part.filled().len(),
            // The end of the stream's direction was a reset, and so was the lane's.
            Err(_) if self.is_over() => 0,
            Err(error) => return Poll::Ready(Err(error)),
        };
        self.at.arrived_on_lane(count);
        if count == 0 {
            // The lane was cut, or the count of all bytes is still on its way. The state knows which.
            let mut state = self.at.shared.lock();
            return match state.read(self.at.id, &mut []) {
                ReadOutcome::Reset(code, reason) => Poll::Ready(Err(reset_error(code, reason))),
                _ => {
                    state.wait_to_read(self.at.id, cx.waker());
                    Poll::Pending
                }
            };
        }
        let filled = buf.filled().len() + count;
        buf.set_filled(filled);
        Poll::Ready(Ok(()))
    }

    /// Resets the stream: ends both directions, and sends the peer the reason after everything that was written. What the
    /// peer still sends is discarded. Bytes that the peer does not take within 10 s are dropped.
    pub fn reset(self, code: ReasonCode, reason: &str) {
        let mut wakers = Vec::new();
        let mut state = self.at.shared.lock();
        state.reset_after_sent(self.at.id, code, reason, &mut wakers);
        release(state, wakers);
    }

    /// Half-closes this side and lets the stream finish in the background. What the peer still sends is discarded. The
    /// stream is reset if the peer does not finish within 10 s.
    pub fn finish(self) {
        let mut state = self.at.shared.lock();
        state.detach(self.at.id, Instant::now());
        release(state, Vec::new());
    }
}

impl StreamRef {
    pub(crate) fn is_over(&self) -> bool {
        self.shared.lock().is_reset(self.id)
    }

    /// The lane that this stream's next bytes come from, and the most bytes to read there. Reads must be reported with
    /// [`Self::arrived_on_lane`].
    #[cfg(target_os = "linux")]
    pub(crate) fn poll_lane_to_read(&self, cx: &Context<'_>) -> Option<(Arc<Lane>, u64)> {
        let mut state = self.shared.lock();
        let found = state.lane_to_read(self.id)?;
        // The count of all bytes, or a reset, comes over the link.
        state.wait_to_read(self.id, cx.waker());
        Some(found)
    }

    pub(crate) fn arrived_on_lane(&self, count: usize) {
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        state.arrived_on_lane(self.id, count, &mut wakers);
        if !wakers.is_empty() || count == 0 {
            wakers.extend(state.take_driver());
        }
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// The lane that this stream's next bytes go to. Writes must be reported with [`Self::sent_on_lane`].
    pub(crate) fn poll_lane_to_write(&self, cx: &Context<'_>) -> Option<Arc<Lane>> {
        let mut state = self.shared.lock();
        let lane = state.lane_to_write(self.id)?;
        state.wait_to_write(self.id, cx.waker());
        Some(lane)
    }

    pub(crate) fn sent_on_lane(&self, count: usize) {
        self.shared.lock().sent_on_lane(self.id, count);
    }
}

fn reset_error(code: ReasonCode, reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code, reason })
}

// A stream needs no exclusive access, so one task can read and write through two shared references without a split.
impl AsyncRead for &LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.at.shared.lock();
        match state.read(self.at.id, buf.initialize_unfilled()) {
            ReadOutcome::Bytes(len) => {
                self.was_read(state);
                buf.advance(len);
                Poll::Ready(Ok(()))
            }
            ReadOutcome::End => Poll::Ready(Ok(())),
            ReadOutcome::Reset(code, reason) => Poll::Ready(Err(reset_error(code, reason))),
            ReadOutcome::Lane(lane, left) => {
                state.wait_to_read(self.at.id, cx.waker());
                drop(state);
                self.poll_read_lane(cx, buf, (&lane, left))
            }
            ReadOutcome::Wait => {
                state.wait_to_read(self.at.id, cx.waker());
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
        let mut state = self.at.shared.lock();
        let outcome = state.write(self.at.id, buf);
        match self.written(cx, state, outcome)? {
            Written::Took(count) => Poll::Ready(Ok(count)),
            Written::Wait => Poll::Pending,
            Written::Lane(lane) => {
                let count = ready!(lane.poll_write(cx, buf))?;
                self.at.sent_on_lane(count);
                Poll::Ready(Ok(count))
            }
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
        // The half-close carries the count of all bytes, so they must be on their way.
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
        state.drop_handle(self.at.id, Instant::now(), &mut wakers);
        release(state, wakers);
    }
}
