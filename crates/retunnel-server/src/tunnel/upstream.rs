//! What the edge needs of whatever carries a tunnel's visitors to its client. Implemented in [`crate::upstream`], once for
//! each wire.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use retunnel_link::LinkStream;
use retunnel_proto::http1::{Framing, request::RequestHead, response::ResponseHead, write};

use crate::{limits::waiting::Charge, net::socket::Socket};

/// Trailers of a body, in order.
pub(crate) type Trailers = Vec<(Bytes, Bytes)>;

/// The result of a step of an exchange. Most steps of the native wire need no future of their own, and so no allocation.
pub(crate) enum Soon<'a, T> {
    /// It is there; taken when polled.
    Now(Option<T>),
    /// The exchange itself is polled for it.
    Polled(&'a dyn PollFor<T>),
    /// A future of its own brings it.
    Later(BoxFuture<'a, T>),
}

/// Something that can be polled for a result.
pub(crate) trait PollFor<T>: Send + Sync {
    /// The result, once it is there.
    fn poll_for(&self, cx: &mut Context<'_>) -> Poll<T>;
}

impl<'a, T> Soon<'a, T> {
    /// A result that is there.
    pub(crate) const fn now(result: T) -> Self {
        Self::Now(Some(result))
    }

    /// A result that a future brings.
    pub(crate) fn later(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self::Later(Box::pin(future))
    }
}

impl<T: Unpin> Future for Soon<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Self::Now(result) => Poll::Ready(result.take().expect("a future is not polled after its end")),
            Self::Polled(exchange) => exchange.poll_for(cx),
            Self::Later(future) => future.as_mut().poll(cx),
        }
    }
}

/// One tunnel's way to its client.
pub(crate) trait Upstream: fmt::Debug + Send + Sync {
    /// How the body of such a request must be given to [`Self::exchange`].
    fn body(&self, request: &RequestHead) -> BodyMode;

    /// Begins an exchange. Nothing of the request has been sent when this fails.
    ///
    /// # Errors
    /// [`Failure`], never [`Failure::Cut`] or [`Failure::Reset`].
    fn exchange<'a>(&'a self, request: Request<'a>) -> Soon<'a, Result<Box<dyn Exchange + 'a>, Failure>>;

    /// Relays a visitor of a TCP tunnel until both sides have ended, and counts the bytes.
    ///
    /// # Errors
    /// The first failure of either side; the caller resets the visitor's connection then.
    fn relay<'a>(
        &'a self,
        visitor: &'a mut Socket,
        peer: SocketAddr,
        moved: &'a Moved,
    ) -> BoxFuture<'a, io::Result<()>>;

    /// Whether the client is gone. Its tunnels are closed a moment later.
    fn is_lost(&self) -> bool;

    /// The client knows of the tunnel; visitors may be sent to it.
    fn announce(&self) {}

    /// Frees what was idle for too long. Called once a second.
    fn sweep(&self) {}
}

/// How a request's body reaches an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyMode {
    /// In pieces, as the visitor sends it, and at most so many bytes. `answers_expect`: whether the local service itself
    /// answers `Expect: 100-continue`.
    Streamed { max: u64, answers_expect: bool },
    /// As a whole with the head, and at most so many bytes.
    Whole { max: usize },
}

/// A request for an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) visitor: write::Visitor<'a>,
    pub(crate) peer: SocketAddr,
    /// The visitor's connection; `None` if a proxy uses it for several visitors.
    pub(crate) connection: Option<ConnectionId>,
    /// The body, where it is given as a whole.
    pub(crate) body: WholeBody,
    /// Whether a kept connection to the local service may be used. It may turn out to be closed already.
    pub(crate) may_reuse: bool,
    /// Whether the connection to the local service may be kept afterwards.
    pub(crate) may_keep: bool,
}

/// One connection of a visitor to this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    /// The next one; none is ever given twice.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// A body that is kept whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct WholeBody {
    pub(crate) bytes: Bytes,
    /// Stands for the memory that it takes.
    _room: Option<Arc<Charge>>,
}

impl WholeBody {
    pub(crate) fn new(bytes: Bytes, room: Charge) -> Self {
        Self { bytes, _room: Some(Arc::new(room)) }
    }
}

/// Whether a request can be sent twice without harm: it has no body, and its method is idempotent.
pub(crate) fn is_repeatable(head: &RequestHead) -> bool {
    head.body == Framing::None
        && head.upgrade.is_none()
        && matches!(&head.method[..], b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE")
}

/// One request and its answer over an upstream: pieces of the request in, pieces of the answer out. Both directions run
/// side by side in one task.
pub(crate) trait Exchange: Send + Sync {
    /// Sends a piece of the request's body. The first call, which may have an empty piece, also sends the head. `end`: the
    /// body is complete, with these trailers.
    ///
    /// # Errors
    /// The local service or the client takes no more. It may still answer.
    fn send(&self, piece: Bytes, end: Option<Trailers>) -> Soon<'_, Result<(), Closed>>;

    /// The stream that the rest of a sized request body may be written to as it is.
    fn raw_request(&self) -> Option<&LinkStream> {
        None
    }

    /// The next head of the answer: interim ones, then the final one. Not cancel-safe.
    ///
    /// # Errors
    /// [`Failure`].
    fn answer(&self) -> Soon<'_, Result<Answer, Failure>>;

    /// The next part of the answer's body, until one has an end. Not cancel-safe.
    ///
    /// # Errors
    /// [`Failure::Cut`] or [`Failure::Reset`].
    fn receive(&self) -> Soon<'_, Result<Part, Failure>>;

    /// The stream that the rest of a sized answer arrives on as it is, and how many bytes that is.
    fn raw_answer(&self) -> Option<(&LinkStream, u64)> {
        None
    }

    /// The rest of a sized answer was moved without [`Self::receive`]. `surplus`: more bytes came after it.
    fn moved_raw(&self, _surplus: bool) {}

    /// Both sides have agreed to leave HTTP: relays what they say until both have ended, and counts the bytes.
    ///
    /// # Errors
    /// The first failure of either side; the caller resets the visitor's connection then.
    fn upgraded<'a>(&'a self, visitor: Upgraded<'a>, moved: &'a Moved) -> BoxFuture<'a, io::Result<()>>;

    /// Whether the exchange runs on a kept connection, which may have been closed before it began.
    fn is_reused(&self) -> bool {
        false
    }

    /// The visitor's request is given up for this reason.
    fn cancel(&self, _reason: &str) {}

    /// The answer is complete. An exchange that is dropped instead is cut.
    fn finish(self: Box<Self>, request: Sent);
}

/// When a request was sent completely, seen from the end of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Before the answer began.
    InOrder,
    /// While the answer arrived.
    Late,
    /// Not yet.
    Never,
}

/// What comes from an upstream before the body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// An answer that another one follows.
    Interim(ResponseHead),
    /// The final head and what arrived with it.
    Final(ResponseHead, Part),
}

/// A part of an answer's body. After a 101, bytes of the other protocol.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) payload: Bytes,
    /// The body is complete, with these trailers.
    pub(crate) end: Option<Trailers>,
}

/// A visitor's connection that leaves HTTP.
#[derive(Debug)]
pub(crate) struct Upgraded<'a> {
    pub(crate) socket: &'a mut Socket,
    /// What the visitor sent ahead.
    pub(crate) received: BytesMut,
}

/// The local service or the client takes no more of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection was lost before a byte of the answer.
    Lost,
    /// The client serves as many visitors as it can.
    Busy,
    /// The request breaks a rule of what it asks for.
    BadRequest(&'static str),
    /// This wire carries no upgrades.
    UpgradeUnsupported,
    /// This wire carries no larger bodies than this, in bytes.
    RequestTooLarge(usize),
    /// The local service cannot be reached, for this reason.
    LocalUnreachable(String),
    /// The local service ended the connection before its answer was complete.
    LocalClosedEarly,
    /// The local service's answer is not valid, for this reason.
    LocalInvalidResponse(&'static str),
    /// The local service did not answer in time.
    LocalTimeout,
    /// The local service reset the connection in the midst of its answer.
    Reset,
    /// The answer had begun, or the visitor is gone.
    Cut,
}

/// Bytes moved in each direction so far. Kept when the relay is dropped.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the visitor.
    up: AtomicU64,
    /// To the visitor.
    down: AtomicU64,
}

impl Moved {
    pub(crate) fn add_up(&self, count: u64) {
        self.up.fetch_add(count, Relaxed);
    }

    pub(crate) fn add_down(&self, count: u64) {
        self.down.fetch_add(count, Relaxed);
    }

    /// Bytes from the visitor.
    pub(crate) fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    /// Bytes to the visitor.
    pub(crate) fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }
}
