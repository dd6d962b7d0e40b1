//! Native tunnels: each connection to the local service is a stream of the client's link that carries HTTP/1.1 or the
//! bytes of a TCP visitor. Connections are kept for the next request.

mod pool;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use retunnel_link::{Link, LinkStream, OpenError, Pump, StreamReset, poll_relay};
use retunnel_proto::{
    TunnelId,
    http1::{
        Framing, HeadLimits,
        body::{self, BadBody, Decoder},
        request::RequestHead,
        response::{self, InvalidResponse},
        write,
    },
    message::TunnelProtocol,
    native::{ReasonCode, control::Open},
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::pool::{Pool, Share};
use crate::{
    net::{
        buffer::{Draft, Joined},
        socket::Socket,
    },
    tunnel::upstream::{
        Answer, BodyMode, Closed, Exchange, Failure, Moved, Part, PollFor, Request, Sent, Soon, Trailers, Upgraded,
        Upstream, is_repeatable,
    },
};

/// Bytes of a body up to which it leaves with the head, in one frame. More follow without a copy.
const TOGETHER: usize = 1024;
/// A body of this length is bulk before its first byte.
const BULK_FROM: u64 = 1024 * 1024;
/// Interim answers passed on before the final one.
const MAX_INTERIM: usize = 16;
/// A new connection without an answer after this time may wait for an idle one: then that one is closed.
const SERIAL_AFTER: Duration = Duration::from_millis(250);
/// Longest pause until the next idle one is closed.
const SERIAL_PAUSE: Duration = Duration::from_secs(2);
/// An answer so soon after that is a sign that the service serves one connection at a time.
const SERIAL_WITHIN: Duration = Duration::from_millis(500);
/// Bytes of small frames that are gathered into one part, while there are more.
const GATHERED: usize = 32 * 1024;

/// The streams of one tunnel over its session's link.
#[derive(Debug)]
pub(crate) struct NativeUpstream {
    link: Link,
    id: TunnelId,
    /// Bounds of an answer's head.
    limits: HeadLimits,
    /// The client knows of the tunnel; before that it would refuse its streams.
    announced: CancellationToken,
    pool: Pool,
}

impl NativeUpstream {
    pub(crate) fn new(link: Link, id: TunnelId, limits: HeadLimits) -> Self {
        Self { link, id, limits, announced: CancellationToken::new(), pool: Pool::default() }
    }

    /// Waits until the client knows of the tunnel.
    async fn announced(&self) {
        tokio::select! {
            () = self.announced.cancelled() => {}
            _ = self.link.closed() => {}
        }
    }

    /// A new connection to the local service.
    fn open(&self, protocol: TunnelProtocol, visitor: String) -> Result<LinkStream, OpenError> {
        self.link.open(&Open { tunnel: self.id.clone(), protocol, visitor })
    }

    /// Begins an exchange on a new connection.
    fn begin<'a>(
        &'a self,
        head: &'a RequestHead,
        unsent: Draft,
        share: Option<Share>,
    ) -> Result<Box<dyn Exchange + 'a>, Failure> {
        let stream = self.open(TunnelProtocol::Http, String::new()).map_err(|error| {
            debug!(tunnel = %self.id, %error, "no stream");
            if matches!(error, OpenError::TooMany(_)) { Failure::Busy } else { Failure::Lost }
        })?;
        Ok(NativeExchange::boxed(self, head, stream, unsent, (false, share)))
    }
}

impl Upstream for NativeUpstream {
    fn body(&self, _: &RequestHead) -> BodyMode {
        BodyMode::Streamed { max: u64::MAX, answers_expect: true }
    }

    fn exchange<'a>(&'a self, request: Request<'a>) -> Soon<'a, Result<Box<dyn Exchange + 'a>, Failure>> {
        let Request { head, visitor, connection, may_reuse, may_keep, .. } = request;
        let mut unsent = Draft::new();
        write::request(head, visitor, &mut unsent);
        let share = match leaves_bytes(head) {
            _ if !may_keep => None,
            false => Some(Share::Everyone),
            true => connection.map(Share::Only),
        };
        if may_reuse && let Some((stream, of_stream)) = self.pool.take(connection, is_repeatable(head)) {
            let share = if of_stream == Share::Everyone { share } else { Some(of_stream) };
            return Soon::now(Ok(NativeExchange::boxed(self, head, stream, unsent, (true, share))));
        }
        if self.announced.is_cancelled() {
            return Soon::now(self.begin(head, unsent, share));
        }
        Soon::later(async move {
            self.announced().await;
            self.begin(head, unsent, share)
        })
    }

    fn relay<'a>(
        &'a self,
        visitor: &'a mut Socket,
        peer: SocketAddr,
        moved: &'a Moved,
    ) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if !self.announced.is_cancelled() {
                self.announced().await;
            }
            let stream = self.open(TunnelProtocol::Tcp, peer.to_string()).map_err(io::Error::other)?;
            relay(visitor, &stream, Pump::default(), moved).await
        })
    }

    fn is_lost(&self) -> bool {
        self.link.is_closed()
    }

    fn announce(&self) {
        self.announced.cancel();
    }

    fn sweep(&self) {
        self.pool.sweep();
    }
}

/// Whether a local service may leave bytes after this request's head unread. They would be the start of the next request on
/// the connection.
fn leaves_bytes(head: &RequestHead) -> bool {
    !matches!(head.body, Framing::None | Framing::Length(0)) || head.upgrade.is_some() || head.expects_continue
}

/// Relays until both directions have ended. `up` may hold what the visitor sent ahead.
async fn relay(visitor: &mut Socket, stream: &LinkStream, mut up: Pump, moved: &Moved) -> io::Result<()> {
    let mut down = Pump::default();
    poll_fn(|cx| {
        let before = (up.moved(), down.moved());
        let polled = poll_relay(cx, visitor, stream, &mut up, &mut down);
        moved.add_up(up.moved() - before.0);
        moved.add_down(down.moved() - before.1);
        polled
    })
    .await
}

/// One request and its answer on a connection to the local service.
struct NativeExchange<'a> {
    upstream: &'a NativeUpstream,
    request: &'a RequestHead,
    stream: LinkStream,
    is_reused: bool,
    /// Who may use the connection afterwards; `None`: it is closed.
    share: Option<Share>,
    /// The request's head, until it is sent.
    unsent: Mutex<Option<Draft>>,
    receiving: Mutex<Receiving>,
}

/// How far the answer has arrived. Both directions run in one task, so that no one ever waits for its lock.
#[derive(Debug, Default)]
struct Receiving {
    /// Arrived and not passed on.
    rest: Bytes,
    /// Bytes of an incomplete head at which it is parsed again.
    parse_at: usize,
    /// Interim answers so far.
    interim: usize,
    /// Where the final answer's body ends.
    decoder: Option<Decoder>,
    /// The local service takes another request on this connection.
    keep_alive: bool,
    /// The stream has ended, or bytes came that belong to no answer: the connection cannot be used again.
    is_spent: bool,
}

impl Receiving {
    /// Adds a frame to a head that may be incomplete.
    fn extend_head(&mut self, more: Bytes) {
        if self.rest.is_empty() {
            self.rest = more;
            return;
        }
        let before = self.rest.len();
        let mut head = BytesMut::from(std::mem::take(&mut self.rest));
        head.extend_from_slice(&more);
        // The empty line may lie across both.
        let joint = &head[before.saturating_sub(3)..];
        if joint.windows(2).any(|pair| pair == b"\n\n") || joint.windows(3).any(|line| line == b"\n\r\n") {
            self.parse_at = 0;
        }
        self.rest = head.freeze();
    }

    /// Takes the payload at the front of what has arrived.
    fn part(&mut self) -> Result<Part, BadBody> {
        let Some(decoder) = &mut self.decoder else { return Ok(Part::default()) };
        let mut payload = Joined::default();
        while !decoder.is_done() && !self.rest.is_empty() {
            let step = decoder.step(&self.rest)?;
            self.rest.advance(step.framing);
            payload.push(self.rest.split_to(step.payload));
        }
        let end = if decoder.is_done() { Some(decoder.trailers()?) } else { None };
        Ok(Part { payload: payload.into_bytes(), end })
    }
}

impl<'a> NativeExchange<'a> {
    fn boxed(
        upstream: &'a NativeUpstream,
        request: &'a RequestHead,
        stream: LinkStream,
        unsent: Draft,
        (is_reused, share): (bool, Option<Share>),
    ) -> Box<dyn Exchange + 'a> {
        if matches!(request.body, Framing::Length(length) if length >= BULK_FROM) {
            stream.expect_bulk();
        }
        let (unsent, receiving) = (Mutex::new(Some(unsent)), Mutex::default());
        Box::new(Self { upstream, request, stream, is_reused, share, unsent, receiving })
    }

    /// The answer on a new connection. A service that serves one connection at a time does not accept it before the idle ones
    /// are closed.
    async fn first_answer(&self) -> Result<Answer, Failure> {
        let (mut pause, mut closed_at) = (SERIAL_AFTER, None::<Instant>);
        loop {
            if let Ok(answer) = timeout(pause, Soon::<Result<Answer, Failure>>::Polled(self)).await {
                if closed_at.is_some_and(|at| at.elapsed() < SERIAL_WITHIN) && answer.is_ok() {
                    self.upstream.pool.seems_serial(&self.upstream.id);
                }
                return answer;
            }
            if self.upstream.pool.close_newest() {
                closed_at = Some(Instant::now());
            }
            pause = (pause * 2).min(SERIAL_PAUSE);
        }
    }

    fn receiving(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().expect("no code panics while it holds the state")
    }

    /// The next head among what has arrived, if it is complete.
    fn parse(&self) -> Result<Option<Answer>, Failure> {
        let mut receiving = self.receiving();
        if receiving.rest.is_empty() || receiving.rest.len() < receiving.parse_at {
            return Ok(None);
        }
        let parsed = response::parse(&receiving.rest, self.request.is_head(), self.upstream.limits);
        let parsed = parsed.map_err(|InvalidResponse(why)| Failure::LocalInvalidResponse(why))?;
        let Some(head) = parsed else {
            // Twice as much, or its end: a head in small pieces costs little more than one in a single piece.
            receiving.parse_at = receiving.rest.len() * 2;
            return Ok(None);
        };
        receiving.parse_at = 0;
        receiving.rest.advance(head.len);
        if head.is_interim() {
            receiving.interim += 1;
            let too_many = receiving.interim > MAX_INTERIM;
            return if too_many {
                Err(Failure::LocalInvalidResponse("it has too many interim answers"))
            } else {
                Ok(Some(Answer::Interim(head)))
            };
        }
        if head.status == 101 {
            let payload = std::mem::take(&mut receiving.rest);
            return Ok(Some(Answer::Final(head, Part { payload, end: None })));
        }
        receiving.keep_alive = head.keep_alive;
        receiving.decoder = Some(Decoder::new(head.body));
        let part = receiving.part().map_err(|BadBody| Failure::LocalInvalidResponse("its chunks are not valid"))?;
        drop(receiving);
        if matches!(head.body, Framing::Length(length) if length >= BULK_FROM) {
            self.stream.expect_bulk();
        }
        Ok(Some(Answer::Final(head, part)))
    }

    /// Whether nothing of an answer has arrived.
    fn is_silent(&self) -> bool {
        let receiving = self.receiving();
        receiving.rest.is_empty() && receiving.interim == 0
    }

    fn failure_of(&self, error: &io::Error) -> Failure {
        match StreamReset::of(error) {
            Some(reset) if reset.code == ReasonCode::LOCAL_UNREACHABLE => {
                Failure::LocalUnreachable(reset.reason.clone())
            }
            Some(reset) if reset.code == ReasonCode::BUSY => Failure::Busy,
            _ if self.is_silent() => Failure::Lost,
            _ => Failure::LocalClosedEarly,
        }
    }

    /// More of the answer's body, small frames together; whether the stream has ended.
    fn poll_more(&self, cx: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        let first = ready!(self.stream.poll_frame(cx)).map_err(|error| match StreamReset::of(&error) {
            Some(reset) if reset.code == ReasonCode::CANCELLED && !self.upstream.link.is_closed() => Failure::Reset,
            _ => Failure::Cut,
        })?;
        let mut joined = Joined::default();
        let mut is_end = first.is_empty();
        joined.push(first);
        while !is_end
            && joined.len() < GATHERED
            && let Poll::Ready(Ok(more)) = self.stream.poll_frame(cx)
        {
            is_end = more.is_empty();
            joined.push(more);
        }
        let mut receiving = self.receiving();
        receiving.rest = joined.into_bytes();
        receiving.is_spent = is_end;
        Poll::Ready(Ok(is_end))
    }
}

impl PollFor<Result<Answer, Failure>> for NativeExchange<'_> {
    fn poll_for(&self, cx: &mut Context<'_>) -> Poll<Result<Answer, Failure>> {
        loop {
            if let Some(answer) = self.parse()? {
                return Poll::Ready(Ok(answer));
            }
            let more = ready!(self.stream.poll_frame(cx)).map_err(|error| self.failure_of(&error))?;
            if more.is_empty() {
                let failure = if self.is_silent() { Failure::Lost } else { Failure::LocalClosedEarly };
                return Poll::Ready(Err(failure));
            }
            self.receiving().extend_head(more);
        }
    }
}

impl PollFor<Result<Part, Failure>> for NativeExchange<'_> {
    fn poll_for(&self, cx: &mut Context<'_>) -> Poll<Result<Part, Failure>> {
        let is_end = if self.receiving().is_spent { true } else { ready!(self.poll_more(cx))? };
        let mut receiving = self.receiving();
        let mut part = receiving.part().map_err(|BadBody| Failure::Cut)?;
        if is_end && part.end.is_none() && part.payload.is_empty() {
            // Only a body that lasts until the connection ends may end here.
            let may_end = receiving.decoder.as_ref().is_some_and(Decoder::may_end_here);
            part.end = Some(may_end.then(Trailers::new).ok_or(Failure::Cut)?);
        }
        Poll::Ready(Ok(part))
    }
}

impl Exchange for NativeExchange<'_> {
    fn send(&self, piece: Bytes, end: Option<Trailers>) -> Soon<'_, Result<(), Closed>> {
        let unsent = self.unsent.lock().expect("no code panics while it holds the head").take();
        let mut out = unsent.unwrap_or_default();
        let mut body = Bytes::new();
        if self.request.body == Framing::Chunked {
            if !piece.is_empty() {
                body::put_chunk(&piece, &mut out);
            }
            if let Some(trailers) = end {
                body::last_chunk(&trailers, &mut out);
            }
        } else if piece.len() < TOGETHER {
            out.put_slice(&piece);
        } else {
            body = piece;
        }
        let mut stream = &self.stream;
        // A head and a little more leave at once, unless the link is full.
        if !out.is_empty()
            && let Some(written) = stream.write(&out).now_or_never()
        {
            match written {
                Ok(count) => out.advance(count),
                Err(_) => return Soon::now(Err(Closed)),
            }
        }
        if out.is_empty() && body.is_empty() {
            return Soon::now(Ok(()));
        }
        Soon::later(async move {
            stream.write_all(&out).await.map_err(|_| Closed)?;
            drop(out);
            self.stream.write_owned(body).await.map_err(|_| Closed)
        })
    }

    fn raw_request(&self) -> Option<&LinkStream> {
        Some(&self.stream)
    }

    fn answer(&self) -> Soon<'_, Result<Answer, Failure>> {
        match self.is_reused || self.upstream.pool.serves_many() {
            true => Soon::Polled(self),
            false => Soon::later(self.first_answer()),
        }
    }

    fn receive(&self) -> Soon<'_, Result<Part, Failure>> {
        Soon::Polled(self)
    }

    fn raw_answer(&self) -> Option<(&LinkStream, u64)> {
        let receiving = self.receiving();
        let left =
            receiving.decoder.as_ref()?.sized_left().filter(|_| receiving.rest.is_empty() && !receiving.is_spent)?;
        Some((&self.stream, left))
    }

    fn moved_raw(&self, surplus: bool) {
        self.receiving().is_spent |= surplus;
    }

    fn upgraded<'a>(&'a self, visitor: Upgraded<'a>, moved: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        let Upgraded { socket, received } = visitor;
        Box::pin(relay(socket, &self.stream, Pump::starting_with(received), moved))
    }

    fn is_reused(&self) -> bool {
        self.is_reused
    }

    fn finish(self: Box<Self>, request: Sent) {
        let Self { upstream, stream, share, receiving, .. } = *self;
        let receiving = receiving.into_inner().expect("no code panics while it holds the state");
        // Bytes after the answer belong to nothing: the connection cannot be trusted any more.
        let is_clean =
            request == Sent::InOrder && receiving.keep_alive && !receiving.is_spent && receiving.rest.is_empty();
        match share {
            Some(share) if is_clean => upstream.pool.put(stream, share),
            _ => stream.finish(),
        }
    }
}
