//! Native tunnels: each connection to the local service is a stream of the client's link that carries HTTP/1.1 or the
//! bytes of a TCP visitor. Connections are kept for the next request.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::{FutureExt, future::BoxFuture};
use retunnel_link::{Link, LinkStream, OpenError, Pump, StreamReset, poll_relay};
use retunnel_proto::{
    TunnelId,
    http1::{
        Framing, MAX_HEAD,
        body::{self, BadBody, Decoder},
        request::RequestHead,
        response, write,
    },
    message::TunnelProtocol,
    native::{ReasonCode, control::Open},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    net::{
        buffer::{Draft, Joined},
        socket::Socket,
    },
    tunnel::upstream::{
        Answer, BodyMode, Closed, Exchange, Failure, Moved, Part, PollFor, Request, Soon, Trailers, Upgraded, Upstream,
        is_repeatable,
    },
};

/// Idle connections that a tunnel keeps. More help only more visitors at the same instant.
const MAX_IDLE: usize = 1024;
/// How long an idle connection is kept. Shorter than the shortest keep-alive timeout among common servers (Node: 5 s), so
/// that this side closes first.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// A connection that was used so recently is not about to be closed for idleness: common servers wait at least two seconds
/// (gunicorn). Servers that close for another reason announce it in their last answer.
const SURELY_ALIVE: Duration = Duration::from_secs(1);
/// Bytes of a body up to which it leaves with the head, in one frame. More follow without a copy.
const TOGETHER: usize = 1024;
/// A body of this length is bulk before its first byte.
const BULK_FROM: u64 = 1024 * 1024;
/// Interim answers passed on before the final one.
const MAX_INTERIM: usize = 16;
/// Bytes of small frames that are gathered into one part, while there are more.
const GATHERED: usize = 32 * 1024;

/// The streams of one tunnel over its session's link.
#[derive(Debug)]
pub(crate) struct NativeUpstream {
    link: Link,
    id: TunnelId,
    /// The client knows of the tunnel; before that it would refuse its streams.
    announced: CancellationToken,
    /// Connections to the local service that wait for their next request, newest last.
    idle: Mutex<Vec<(LinkStream, Instant)>>,
}

impl NativeUpstream {
    pub(crate) fn new(link: Link, id: TunnelId) -> Self {
        Self { link, id, announced: CancellationToken::new(), idle: Mutex::new(Vec::new()) }
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

    /// Begins an exchange on a connection of its own.
    fn begin<'a>(&'a self, head: &'a RequestHead, unsent: Draft) -> Result<Box<dyn Exchange + 'a>, Failure> {
        let stream = self.open(TunnelProtocol::Http, String::new()).map_err(|error| {
            debug!(tunnel = %self.id, %error, "no stream");
            if matches!(error, OpenError::TooMany(_)) { Failure::Busy } else { Failure::Lost }
        })?;
        Ok(NativeExchange::boxed(self, head, stream, unsent, false))
    }

    /// An idle connection, if one is alive. A request that is not `repeatable` gets one that was used a moment ago, or none.
    fn reuse(&self, repeatable: bool) -> Option<LinkStream> {
        loop {
            let (mut stream, since) = self.lock().pop_if(|(_, since)| repeatable || since.elapsed() < SURELY_ALIVE)?;
            if since.elapsed() > KEEP_IDLE {
                // The others are older.
                stream.finish();
                self.sweep_idle();
                return None;
            }
            // Bytes, an end or a reset on an idle connection mean that it cannot be used.
            if stream.read_u8().now_or_never().is_none() {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection for the next request.
    fn keep(&self, stream: LinkStream) {
        if stream.is_on_lane() {
            // Its next requests are most likely small, and those share the link.
            return stream.finish();
        }
        stream.begin_exchange();
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push((stream, Instant::now()));
        }
    }

    fn sweep_idle(&self) {
        let mut idle = self.lock();
        let old = idle.iter().take_while(|(_, since)| since.elapsed() > KEEP_IDLE).count();
        idle.drain(..old).for_each(|(stream, _)| stream.finish());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(LinkStream, Instant)>> {
        self.idle.lock().expect("no code panics while it holds the list")
    }
}

impl Upstream for NativeUpstream {
    fn body(&self, _: &RequestHead) -> BodyMode {
        BodyMode::Streamed { max: u64::MAX, answers_expect: true }
    }

    fn exchange<'a>(&'a self, request: Request<'a>) -> Soon<'a, Result<Box<dyn Exchange + 'a>, Failure>> {
        let Request { head, visitor, may_reuse, .. } = request;
        let mut unsent = Draft::new();
        write::request(head, visitor, &mut unsent);
        if may_reuse && let Some(stream) = self.reuse(is_repeatable(head)) {
            return Soon::now(Ok(NativeExchange::boxed(self, head, stream, unsent, true)));
        }
        if self.announced.is_cancelled() {
            return Soon::now(self.begin(head, unsent));
        }
        Soon::later(async move {
            self.announced().await;
            self.begin(head, unsent)
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
        self.sweep_idle();
    }
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
    /// The request's head, until it is sent.
    unsent: Mutex<Option<Draft>>,
    receiving: Mutex<Receiving>,
}

/// How far the answer has arrived. Both directions run in one task, so that no one ever waits for its lock.
#[derive(Debug, Default)]
struct Receiving {
    /// Arrived and not passed on.
    rest: Bytes,
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
        is_reused: bool,
    ) -> Box<dyn Exchange + 'a> {
        if matches!(request.body, Framing::Length(length) if length >= BULK_FROM) {
            stream.expect_bulk();
        }
        let (unsent, receiving) = (Mutex::new(Some(unsent)), Mutex::default());
        Box::new(Self { upstream, request, stream, is_reused, unsent, receiving })
    }

    fn receiving(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().expect("no code panics while it holds the state")
    }

    /// The next head among what has arrived, if it is complete.
    fn parse(&self) -> Result<Option<Answer>, Failure> {
        let mut receiving = self.receiving();
        if receiving.rest.is_empty() {
            return Ok(None);
        }
        let parsed = response::parse(&receiving.rest, self.request.is_head());
        let Some(head) = parsed.map_err(|_| Failure::LocalInvalidResponse)? else { return Ok(None) };
        receiving.rest.advance(head.len);
        if head.is_interim() {
            receiving.interim += 1;
            let too_many = receiving.interim > MAX_INTERIM;
            return if too_many { Err(Failure::LocalInvalidResponse) } else { Ok(Some(Answer::Interim(head))) };
        }
        if head.status == 101 {
            let payload = std::mem::take(&mut receiving.rest);
            return Ok(Some(Answer::Final(head, Part { payload, end: None })));
        }
        receiving.keep_alive = head.keep_alive;
        receiving.decoder = Some(Decoder::new(head.body));
        let part = receiving.part().map_err(|BadBody| Failure::LocalInvalidResponse)?;
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
        let first = ready!(self.stream.poll_frame(cx)).map_err(|_| Failure::Cut)?;
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
            let mut receiving = self.receiving();
            receiving.rest = match receiving.rest.len() {
                0 => more,
                len if len < MAX_HEAD => [&receiving.rest[..], &more].concat().into(),
                _ => return Poll::Ready(Err(Failure::LocalInvalidResponse)),
            };
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
        Soon::Polled(self)
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

    fn finish(self: Box<Self>, request_done: bool) {
        let Self { upstream, stream, receiving, .. } = *self;
        let receiving = receiving.into_inner().expect("no code panics while it holds the state");
        // Bytes after the answer belong to nothing: the connection cannot be trusted any more.
        if request_done && receiving.keep_alive && !receiving.is_spent && receiving.rest.is_empty() {
            upstream.keep(stream);
        } else {
            stream.finish();
        }
    }
}
