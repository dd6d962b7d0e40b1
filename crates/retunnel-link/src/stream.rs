//! One stream of a link, as a reader and writer.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use retunnel_proto::native::ReasonCode;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Shared, state::ReadOutcome, wake};

/// One stream of a link.
///
/// Reading gives 0 bytes once the peer half-closed; `shutdown` half-closes this side. A reset by either side or the
/// end of the link is [`io::ErrorKind::ConnectionReset`] with [`StreamReset`] inside. Dropping the stream before both
/// directions ended resets it.
#[derive(Debug)]
pub struct LinkStream {
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
        Self { shared, id }
    }

    /// The stream's number on its link.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Waits until a read would not wait. Cancel-safe; lets a waiting reader own no buffer.
    pub async fn readable(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.is_readable(self.id) {
                return Poll::Ready(());
            }
            if let Some(stream) = state.streams.get_mut(&self.id) {
                stream.read_waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Ends both directions at once and tells the peer why.
    pub fn reset(self, code: ReasonCode, reason: &str) {
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        state.reset_here(self.id, code, reason, &mut wakers);
        wakers.extend(state.driver_waker.take());
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Half-closes this side and lets the stream finish by itself: what the peer still sends is thrown away, and the
    /// stream is reset if the peer does not finish within ten seconds.
    pub fn finish(self) {
        let mut state = self.shared.lock();
        state.detach(self.id);
        let waker = state.driver_waker.take();
        drop(state);
        wake(waker);
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
        let mut state = self.shared.lock();
        match state.read(self.id, buf.initialize_unfilled()) {
            ReadOutcome::Bytes(len) => {
                let waker = state.driver_waker.take();
                drop(state);
                wake(waker);
                buf.advance(len);
                Poll::Ready(Ok(()))
            }
            ReadOutcome::End => Poll::Ready(Ok(())),
            ReadOutcome::Reset(code, reason) => Poll::Ready(Err(reset_error(code, reason))),
            ReadOutcome::Wait => {
                if let Some(stream) = state.streams.get_mut(&self.id) {
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
        let mut state = self.shared.lock();
        match state.write(self.id, buf) {
            Ok(0) => {
                if let Some(stream) = state.streams.get_mut(&self.id) {
                    stream.write_waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Ok(len) => {
                let waker = state.driver_waker.take();
                drop(state);
                wake(waker);
                Poll::Ready(Ok(len))
            }
            Err((code, reason)) => Poll::Ready(Err(reset_error(code, reason))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Written bytes are in the driver's hands.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        state.end_sending(self.id);
        let waker = state.driver_waker.take();
        drop(state);
        wake(waker);
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
        let mut state = self.shared.lock();
        state.drop_handle(self.id, &mut wakers);
        wakers.extend(state.driver_waker.take());
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}
