//! The handle to a link, and the peer's messages and streams.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use retunnel_proto::native::{ReasonCode, control::Open};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{
    config::{LinkConfig, Role},
    driver::Driver,
    error::{LinkError, OpenError},
    lane::Lane,
    shared::{Shared, release},
    state::{QueuedEvent, State},
    stream::LinkStream,
};

/// Something the peer did.
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// A control message, undecoded.
    Control(Bytes),
    /// The server opened a stream (client role only).
    Opened {
        /// What the stream carries.
        open: Open,
        /// The stream.
        stream: LinkStream,
    },
    /// The peer is about to end the link. Streams may finish.
    GoAway {
        /// Stable code.
        code: ReasonCode,
        /// Text to show to people.
        reason: String,
    },
    /// A bulk stream wants a lane (server role only): ask the client to open one with this number, then call
    /// [`Link::add_lane`].
    LaneWanted(u32),
}

/// Starts a link over `io`. Nothing moves until the [`Driver`] is polled. The driver's future ends with the link.
pub fn link<IO>(io: IO, role: Role, config: LinkConfig) -> (Link, Events, Driver<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared::new(State::new(role, config, Instant::now()));
    let driver = Driver::new(io, Arc::clone(&shared));
    (Link { shared: Arc::clone(&shared) }, Events { shared }, driver)
}

/// A cheap handle to a link.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Sends a control message. Waits while [`LinkConfig::max_control_queue`] messages are unsent.
    ///
    /// # Errors
    /// [`LinkError`], the cause of the link's end.
    pub async fn send_control(&self, payload: Vec<u8>) -> Result<(), LinkError> {
        let mut payload = Some(payload);
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            if let Some(error) = state.ended() {
                return Poll::Ready(Err(error.clone()));
            }
            if state.control_is_full() {
                state.wait_for_control(cx.waker());
                return Poll::Pending;
            }
            state.queue_control(payload.take().unwrap_or_default());
            release(state, Vec::new());
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Opens a stream. The client learns of it at once; bytes may be written before it answers.
    ///
    /// # Errors
    /// [`OpenError`] when the link has ended, is about to end, or has reached [`LinkConfig::max_streams`].
    pub fn open(&self, open: &Open) -> Result<LinkStream, OpenError> {
        let mut state = self.shared.lock();
        let id = state.open_stream(&open.encode(), Instant::now())?;
        release(state, Vec::new());
        Ok(LinkStream::new(Arc::clone(&self.shared), id))
    }

    /// Tells the peer that this link is about to end; streams may finish.
    pub fn go_away(&self, code: ReasonCode, reason: &str) {
        let mut state = self.shared.lock();
        state.queue_go_away(code, reason);
        release(state, Vec::new());
    }

    /// Ends the link: what is queued on the control channel and a go-away are flushed for at most
    /// [`LinkConfig::flush_on_close`], then every stream is reset.
    pub fn close(&self, code: ReasonCode, reason: &str) {
        let mut state = self.shared.lock();
        state.close(code, reason);
        release(state, Vec::new());
    }

    /// Sets the window in bytes that the peer's hello announced for each stream. Until then streams send nothing.
    pub fn set_peer_window(&self, bytes: u32) {
        let mut state = self.shared.lock();
        state.set_peer_window(bytes, Instant::now());
        release(state, Vec::new());
    }

    /// Lets streams move to lanes ([`LinkEvent::LaneWanted`]): the peer can open them.
    pub fn enable_lanes(&self) {
        self.shared.lock().enable_lanes();
    }

    /// Announces that a lane the server asked for is being opened (client role). [`Self::add_lane`] or
    /// [`Self::lane_failed`] must follow. Returns `false` if the limit of lanes is reached: do not open it.
    #[must_use]
    pub fn expect_lane(&self, number: u32) -> bool {
        self.shared.lock().expect_lane(number, Instant::now())
    }

    /// Adds a lane that was asked for. A lane that was not asked for, or that comes too late, is closed.
    pub fn add_lane(&self, number: u32, lane: Lane) {
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        state.add_lane(number, lane, Instant::now(), &mut wakers);
        release(state, wakers);
    }

    /// Reports that a lane that was asked for cannot be opened. Its stream stays on the link.
    pub fn lane_failed(&self, number: u32) {
        let mut state = self.shared.lock();
        state.lane_failed(number);
        release(state, Vec::new());
    }

    /// Sets the largest control message in bytes. Raise it once the peer is authenticated.
    pub fn set_max_control(&self, bytes: usize) {
        self.shared.lock().set_max_control(bytes);
    }

    /// Says who the link belongs to, for example an account. All links of one owner share its part of the
    /// [`crate::Budget`]; a link without an owner has a part of its own. Only the first call counts.
    pub fn set_owner(&self, owner: u128) {
        self.shared.lock().share().set_owner(owner);
    }

    /// Round-trip time of the last ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.shared.lock().rtt()
    }

    /// Streams that are not finished in both directions.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.shared.lock().stream_count()
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().ended().is_some()
    }

    /// Waits for the end of the link and returns its cause.
    pub async fn closed(&self) -> LinkError {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            match state.ended() {
                Some(error) => Poll::Ready(error.clone()),
                None => {
                    state.wait_for_end(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// The peer's messages and streams, in order.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

impl Events {
    /// Waits for the next event. Returns `None` when the link has ended and no event is left. Cancel-safe.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            let Some(event) = state.next_event() else {
                if state.ended().is_some() {
                    return Poll::Ready(None);
                }
                state.wait_for_event(cx.waker());
                return Poll::Pending;
            };
            // The driver stops reading while the queue is full.
            release(state, Vec::new());
            Poll::Ready(Some(match event {
                QueuedEvent::Control(payload) => LinkEvent::Control(payload),
                QueuedEvent::Opened(open, id) => {
                    LinkEvent::Opened { open, stream: LinkStream::new(Arc::clone(&self.shared), id) }
                }
                QueuedEvent::GoAway(code, reason) => LinkEvent::GoAway { code, reason },
                QueuedEvent::LaneWanted(number) => LinkEvent::LaneWanted(number),
            }))
        })
        .await
    }
}
