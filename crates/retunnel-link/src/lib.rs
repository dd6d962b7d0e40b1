//! The native transport: many flow-controlled byte streams and one control channel over one byte stream.
//!
//! [`link`] takes anything that reads and writes (TCP, TLS, a WebSocket) and gives back a handle ([`Link`]), the
//! peer's messages and streams ([`Events`]), and the [`Driver`] that must be polled for anything to move. The frame
//! layout is [`retunnel_proto::native`]; this crate adds what needs a clock and tasks: credit, fair turns between
//! streams, batched writes, heartbeat, and an end that every stream notices.
//!
//! Bounds: received bytes per stream (its window), per link ([`LinkConfig::max_buffered`]) and per process
//! ([`Budget`]); bytes waiting to be sent per stream and per link; streams; control messages.

#[cfg(target_os = "linux")]
mod bulk;
mod chunk;
mod config;
mod driver;
mod error;
mod lane;
mod messages;
mod read_ahead;
mod received;
mod relay;
#[cfg(target_os = "linux")]
mod splice;
mod state;
mod stream;
mod tls;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use retunnel_proto::native::{ReasonCode, control::Open};
use tokio::io::{AsyncRead, AsyncWrite};

pub use config::{Budget, LinkConfig};
pub use driver::Driver;
pub use error::{LinkError, OpenError};
pub use lane::{Duplex, Lane};
pub use messages::{MessageSocket, message_form};
pub use read_ahead::ReadAhead;
pub use relay::{MaybeTcp, Pump, Way, poll_down, poll_relay, poll_up};
pub use stream::{LinkStream, StreamReset};
pub use tls::TlsSocket;

use state::State;

/// Which end this is. Only the server opens streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepts streams.
    Client,
    /// Opens streams.
    Server,
}

/// What the peer did.
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
        /// Why.
        code: ReasonCode,
        /// For people.
        reason: String,
    },
    /// A bulk stream wants a lane: ask the client for one with this number ([`Link::add_lane`], server role only).
    LaneWanted(u32),
}

/// Starts a link over `io`. Nothing moves until the [`Driver`] is polled; it ends when the link ends.
pub fn link<IO>(io: IO, role: Role, config: LinkConfig) -> (Link, Events, Driver<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Arc::new(Shared { state: Mutex::new(State::new(role, config)) });
    let driver = Driver::new(io, Arc::clone(&shared));
    (Link { shared: Arc::clone(&shared) }, Events { shared }, driver)
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the link's state")
    }
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
    /// The cause of the link's end.
    pub async fn send_control(&self, payload: Vec<u8>) -> Result<(), LinkError> {
        let mut payload = Some(payload);
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            if let Some(error) = &state.ended {
                return Poll::Ready(Err(error.clone()));
            }
            if state.control_is_full() {
                state.control_waiters.push(cx.waker().clone());
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
    /// [`OpenError`] when the link ended, is about to end, or has as many streams as it may have.
    pub fn open(&self, open: &Open) -> Result<LinkStream, OpenError> {
        let mut state = self.shared.lock();
        let id = state.open_stream(&open.encode())?;
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
        state.queue_go_away(code, reason);
        state.closing.get_or_insert(LinkError::ClosedHere { code, reason: reason.into() });
        release(state, Vec::new());
    }

    /// The window the peer announced for each stream, from its hello. Until then streams send nothing.
    pub fn set_peer_window(&self, bytes: u32) {
        let mut state = self.shared.lock();
        state.set_peer_window(bytes);
        release(state, Vec::new());
    }

    /// Lets streams move to lanes ([`LinkEvent::LaneWanted`]): the peer can open them.
    pub fn enable_lanes(&self) {
        self.shared.lock().lanes.enabled = true;
    }

    /// A lane that the server asked for is being opened (client role): it will be added, or fail. `false`: there are as many as
    /// there may be, do not open it.
    #[must_use]
    pub fn expect_lane(&self, number: u32) -> bool {
        self.shared.lock().expect_lane(number)
    }

    /// A lane that was asked for is open. One that nobody asked for, or too late, is closed.
    pub fn add_lane(&self, number: u32, lane: Lane) {
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        state.add_lane(number, lane, &mut wakers);
        release(state, wakers);
    }

    /// A lane that was asked for will not come; streams stay on the link.
    pub fn lane_failed(&self, number: u32) {
        let mut state = self.shared.lock();
        state.lane_failed(number);
        release(state, Vec::new());
    }

    /// Raises the limit for control messages once the peer is authenticated.
    pub fn set_max_control(&self, bytes: usize) {
        self.shared.lock().max_control = bytes;
    }

    /// Round-trip time of the last ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.shared.lock().rtt
    }

    /// Streams that are not finished in both directions.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.shared.lock().streams.len()
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// Waits for the end of the link and gives its cause.
    pub async fn closed(&self) -> LinkError {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            match &state.ended {
                Some(error) => Poll::Ready(error.clone()),
                None => {
                    state.end_waiters.push(cx.waker().clone());
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
    /// The next event; `None` when the link has ended and nothing is left. Cancel-safe.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            let Some(event) = state.events.pop_front() else {
                if state.ended.is_some() {
                    return Poll::Ready(None);
                }
                state.events_waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            // The driver stops reading while the queue is full.
            release(state, Vec::new());
            Poll::Ready(Some(match event {
                state::QueuedEvent::Control(payload) => LinkEvent::Control(payload),
                state::QueuedEvent::Opened(open, id) => {
                    LinkEvent::Opened { open, stream: LinkStream::new(Arc::clone(&self.shared), id) }
                }
                state::QueuedEvent::GoAway(code, reason) => LinkEvent::GoAway { code, reason },
                state::QueuedEvent::LaneWanted(number) => LinkEvent::LaneWanted(number),
            }))
        })
        .await
    }
}

/// Lets others go first, those whose bytes arrived meanwhile as well: a task that merely wakes itself is polled again and
/// again (61 times with tokio's defaults) before the runtime looks at its sockets.
pub(crate) fn take_turns(cx: &mut Context<'_>) {
    // The first poll only registers the task to be woken after that look.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// Ends a change of the state: the driver looks at what it left, and `wakers` at what became of theirs.
pub(crate) fn release(mut state: MutexGuard<'_, State>, wakers: Vec<Waker>) {
    let driver = state.driver_waker.take();
    drop(state);
    driver.into_iter().chain(wakers).for_each(Waker::wake);
}
