//! One request and its answer, between a visitor and a tunnel's upstream.

mod v3;
mod websocket;

use std::{
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use retunnel_link::{LinkStream, Pump, StreamReset};
use retunnel_proto::{limits::V2_MAX_REQUEST_BODY, message::TunnelProtocol, native::ReasonCode};
use tokio::{
    io::AsyncWriteExt,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    control::{
        native::NativeUpstream,
        v2::{RelayError, V2Upstream},
    },
    core::{BODY_PIECE, Core},
    edge::{
        buffer::{self, BUFFER, Buffer, Draft},
        connection::Connection,
        http1::{
            Framing, MAX_HEAD,
            body::{self, CHUNK_HEAD, CHUNK_TAIL, Decoder},
            request::RequestHead,
            response::{self, ResponseHead},
            write::{self, Answer, Visitor},
        },
        origin::{host_refused, restore},
        page::EdgeError,
        relay,
        socket::{ReadHalf, WriteHalf},
    },
    tunnel::{Tunnel, Upstream},
};

/// Bytes read ahead of a pipelining visitor while its first request is being answered.
const READ_AHEAD: usize = 64 * 1024;
/// Interim answers passed on before the final one.
const MAX_INTERIM: usize = 16;
/// A visitor that has closed its sending side is given up when its answer makes no progress for so long. Some half-close
/// and wait for the answer; most are gone.
const GONE_AFTER: Duration = Duration::from_secs(5);
const BAD_BODY: EdgeError = EdgeError::BadRequest("the body does not follow its framing");
/// So many bytes of a body leave with the head, in one frame; more follow it without a copy.
const TOGETHER: usize = 1024;
/// A body of this length is bulk before its first byte.
const BULK_FROM: u64 = 1024 * 1024;
/// Room in front of a buffer's payload and behind it.
const PAYLOAD_START: usize = CHUNK_HEAD;
const PAYLOAD_ROOM: usize = BUFFER - CHUNK_HEAD - CHUNK_TAIL.len();

/// How an exchange went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Status the local service answered with.
    pub(crate) answered: Option<u16>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// What to answer; nothing was sent to the visitor yet.
    pub(crate) error: Option<EdgeError>,
    /// An answer was begun and cannot be completed, or the visitor is gone.
    pub(crate) cut: bool,
    /// Another request may follow on the visitor's connection.
    pub(crate) keep_alive: bool,
    /// The local service does not answer to the public host name.
    pub(crate) host_refused: bool,
    /// Nothing was answered or lost; the request may be passed to the tunnel's next session.
    pub(crate) retry: bool,
}

impl Outcome {
    /// The status the visitor saw; 0 when there was none.
    pub(crate) fn status(&self) -> u16 {
        self.answered.or_else(|| self.error.as_ref().map(EdgeError::status)).unwrap_or(0)
    }
}

/// Why an exchange stopped.
#[derive(Debug)]
enum Failure {
    /// Before anything was answered.
    Answer(EdgeError),
    /// After the answer was begun, or because the visitor is gone.
    Cut,
    /// The connection was lost before a byte of the answer.
    Lost,
}

/// Passes a request on and its answer back. Never panics, never waits for a visitor that is gone.
pub(crate) async fn exchange(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    tunnel: &Tunnel,
    (_, by_trusted_proxy): (IpAddr, bool),
) -> Outcome {
    let visitor = Visitor {
        address: connection.peer.ip(),
        by_trusted_proxy,
        is_encrypted: connection.socket.is_encrypted(),
        strip_authorization: tunnel.access.is_some(),
        local: tunnel.local_origin.as_ref(),
    };
    match &tunnel.upstream {
        Upstream::Native(upstream) => native(core, connection, head, tunnel, upstream, visitor).await,
        // In boxes, so that the others' requests are not as large as theirs.
        Upstream::V2(upstream) => Box::pin(v2(core, connection, head, tunnel, upstream, visitor)).await,
        Upstream::V3(upstream) => Box::pin(v3::exchange(core, connection, head, tunnel, upstream, visitor)).await,
    }
}

/// How far an exchange is, seen by both its directions. They run in one task, so the order of memory does not matter.
#[derive(Debug, Default)]
struct Progress {
    up: AtomicU64,
    down: AtomicU64,
    request_done: AtomicBool,
    answered: AtomicU16,
    host_refused: AtomicBool,
}

impl Progress {
    fn add_up(&self, count: usize) {
        self.up.fetch_add(count as u64, Relaxed);
    }

    fn add_down(&self, count: usize) {
        self.down.fetch_add(count as u64, Relaxed);
    }

    fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }

    /// Whether the request has arrived completely and was passed on.
    fn request_done(&self) -> bool {
        self.request_done.load(Relaxed)
    }

    /// Status of the answer, once its head was sent.
    fn answered(&self) -> Option<u16> {
        Some(self.answered.load(Relaxed)).filter(|status| *status != 0)
    }

    fn set_answered(&self, status: u16) {
        self.answered.store(status, Relaxed);
    }

    /// Looks at the first bytes of an answer's body; later ones are none of our business.
    fn body_begins(&self, payload: &[u8]) {
        if self.down() == 0 && host_refused(self.answered.load(Relaxed), payload) {
            self.host_refused.store(true, Relaxed);
        }
    }
}

async fn native(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    tunnel: &Tunnel,
    upstream: &NativeUpstream,
    visitor: Visitor<'_>,
) -> Outcome {
    let repeatable = is_repeatable(head);
    // A kept connection may be closed by the local service at any moment.
    let mut reused = upstream.reuse(repeatable);
    loop {
        let is_reused = reused.is_some();
        let stream = match reused.take() {
            Some(stream) => stream,
            None => match upstream.open(TunnelProtocol::Http, String::new()).await {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(tunnel = %tunnel.key, %error, "no stream");
                    let full = matches!(error, retunnel_link::OpenError::TooMany(_));
                    if upstream.is_lost() {
                        tunnel.closed.cancelled().await;
                    }
                    let error = if full { EdgeError::TooManyConnections } else { EdgeError::TunnelOffline(1) };
                    return Outcome {
                        error: Some(error),
                        keep_alive: head.body == Framing::None,
                        retry: !full,
                        ..Outcome::default()
                    };
                }
            },
        };
        let progress = Progress::default();
        let result = tokio::select! {
            biased;
            result = over_stream(core, connection, head, &stream, visitor, &progress) => result,
            () = tunnel.closed.cancelled() => Err(closed(core, &progress)),
        };
        let mut outcome = Outcome {
            answered: progress.answered(),
            bytes_in: progress.up(),
            bytes_out: progress.down(),
            host_refused: progress.host_refused.load(Relaxed),
            ..Outcome::default()
        };
        match result {
            Ok(done) => {
                if done.upstream_reusable {
                    upstream.keep(stream);
                } else {
                    stream.finish();
                }
                outcome.keep_alive = done.visitor_reusable;
            }
            Err(Failure::Lost) if is_reused && repeatable && !upstream.is_lost() && !tunnel.closed.is_cancelled() => {
                // Stale: once more on a fresh connection.
                continue;
            }
            Err(Failure::Lost) => {
                if upstream.is_lost() {
                    // The session's end follows at once; only then does the registry hold the next try.
                    tunnel.closed.cancelled().await;
                }
                outcome.retry = repeatable && tunnel.closed.is_cancelled();
                outcome.error = Some(match tunnel.closed.is_cancelled() {
                    true => EdgeError::TunnelOffline(1),
                    false => EdgeError::LocalClosedEarly,
                });
                outcome.keep_alive = head.body == Framing::None;
            }
            Err(Failure::Answer(error)) => {
                outcome.keep_alive = progress.request_done() && error.status() != 400;
                outcome.error = Some(error);
            }
            Err(Failure::Cut) => outcome.cut = true,
        }
        return outcome;
    }
}

/// The tunnel was closed, perhaps because the server stops.
fn closed(core: &Core, progress: &Progress) -> Failure {
    match progress.answered() {
        Some(_) => Failure::Cut,
        None if core.stopping.is_cancelled() => Failure::Answer(EdgeError::ShuttingDown),
        None => Failure::Lost,
    }
}

/// Whether a request can be sent twice without harm.
fn is_repeatable(head: &RequestHead) -> bool {
    head.body == Framing::None
        && head.upgrade.is_none()
        && matches!(&head.method[..], b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE")
}

/// A completed exchange.
struct Done {
    upstream_reusable: bool,
    visitor_reusable: bool,
}

async fn over_stream(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    stream: &LinkStream,
    visitor: Visitor<'_>,
    progress: &Progress,
) -> Result<Done, Failure> {
    let Connection { socket, received, .. } = connection;
    let finished = {
        let (mut from_visitor, mut to_visitor) = socket.split();
        let up = pin!(send_request(core, head, stream, visitor, &mut from_visitor, received, progress));
        let down = pin!(receive_answer(core, head, stream, visitor, &mut to_visitor, progress));
        both(up, down, progress).await
    };
    match finished? {
        Finished::Upgrade => {
            Box::pin(upgraded(core, connection, stream, progress)).await?;
            Ok(Done { upstream_reusable: false, visitor_reusable: false })
        }
        Finished::Answer { upstream_reusable, visitor_reusable } => {
            let done = progress.request_done();
            Ok(Done { upstream_reusable: upstream_reusable && done, visitor_reusable: visitor_reusable && done })
        }
    }
}

/// Runs both directions until the answer is complete: it may begin, and end, before the request does.
async fn both<T>(
    mut up: Pin<&mut impl Future<Output = UpEnd>>,
    mut down: Pin<&mut impl Future<Output = Result<T, Failure>>>,
    progress: &Progress,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        finished = &mut down => finished,
        stopped = &mut up => match stopped {
            UpEnd::VisitorHalfClosed => loop {
                let before = (progress.down(), progress.answered());
                if let Ok(finished) = timeout(GONE_AFTER, &mut down).await {
                    break finished;
                }
                if before == (progress.down(), progress.answered()) {
                    break Err(Failure::Cut);
                }
            },
            UpEnd::VisitorGone => Err(Failure::Cut),
            UpEnd::Refused(error) if progress.answered().is_none() => Err(Failure::Answer(error)),
            UpEnd::Refused(_) => Err(Failure::Cut),
            // The local service stopped reading; it may still answer.
            UpEnd::UpstreamClosed => down.await,
        },
    }
}

/// Why the sending direction stopped. It never stops merely because the request is complete: it then watches whether the
/// visitor stays.
enum UpEnd {
    VisitorHalfClosed,
    VisitorGone,
    /// The request breaks a rule.
    Refused(EdgeError),
    UpstreamClosed,
}

async fn send_request(
    core: &Core,
    head: &RequestHead,
    stream: &LinkStream,
    visitor: Visitor<'_>,
    from_visitor: &mut ReadHalf<'_>,
    received: &mut BytesMut,
    progress: &Progress,
) -> UpEnd {
    let mut out = Draft::new();
    write::request(head, visitor, &mut out);
    let mut decoder = Decoder::new(head.body);
    if matches!(head.body, Framing::Length(length) if length >= BULK_FROM) {
        stream.expect_bulk();
    }
    let mut to_stream = stream;
    // What arrived with the head goes with the head.
    let is_chunked = head.body == Framing::Chunked;
    loop {
        let mut body = Bytes::new();
        if let Some(left) = decoder.sized_left().filter(|_| !received.is_empty()) {
            let count = received.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            body = received.split_to(count).freeze();
            progress.add_up(count);
            decoder.skip(count as u64);
            if body.len() < TOGETHER {
                out.put_slice(&std::mem::take(&mut body));
            }
        } else if !received.is_empty() && !decoder.is_done() {
            let mut payload = Draft::new();
            let Ok(used) = take_payload(&mut decoder, received, |bytes| payload.put_slice(bytes)) else {
                return UpEnd::Refused(BAD_BODY);
            };
            received.advance(used);
            if !payload.is_empty() {
                progress.add_up(payload.len());
                put_framed(&payload, is_chunked, &mut out);
            }
        }
        if decoder.is_done() && is_chunked {
            match decoder.trailers() {
                Ok(trailers) => body::last_chunk(&trailers, &mut out),
                Err(_) => return UpEnd::Refused(BAD_BODY),
            }
        }
        if !out.is_empty() && to_stream.write_all(&out).await.is_err() {
            return UpEnd::UpstreamClosed;
        }
        drop(out);
        if !body.is_empty() && stream.write_owned(body).await.is_err() {
            return UpEnd::UpstreamClosed;
        }
        if let Some(left) = decoder.sized_left() {
            let patience = core.config.limits.body_timeout;
            match relay::up(from_visitor, stream, left, patience, |count| progress.add_up(count)).await {
                Ok(()) => decoder.skip(left),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return UpEnd::Refused(EdgeError::RequestTimeout);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return UpEnd::VisitorGone,
                Err(_) if stream.is_over() => return UpEnd::UpstreamClosed,
                Err(_) => return UpEnd::VisitorGone,
            }
        }
        if decoder.is_done() {
            break;
        }
        match timeout(core.config.limits.body_timeout, buffer::read_behind(from_visitor, received)).await {
            Err(_) => return UpEnd::Refused(EdgeError::RequestTimeout),
            // The body was cut short.
            Ok(Ok(0) | Err(_)) => return UpEnd::VisitorGone,
            Ok(Ok(_)) => out = Draft::new(),
        }
    }
    if received.is_empty() {
        *received = BytesMut::new();
    }
    progress.request_done.store(true, Relaxed);
    // Bytes behind a handshake are kept as well: they belong to the other protocol once that is agreed.
    watch(from_visitor, received).await
}

/// Waits for the visitor's end, keeping what it sends ahead.
async fn watch(from_visitor: &mut ReadHalf<'_>, received: &mut BytesMut) -> UpEnd {
    loop {
        if received.len() >= READ_AHEAD {
            return std::future::pending().await;
        }
        match buffer::read_behind(from_visitor, received).await {
            Ok(0) => return UpEnd::VisitorHalfClosed,
            Ok(_) => {}
            Err(_) => return UpEnd::VisitorGone,
        }
    }
}

/// Runs a decoder over `input` as far as possible; gives the count of used bytes.
fn take_payload(decoder: &mut Decoder, input: &[u8], mut emit: impl FnMut(&[u8])) -> Result<usize, body::BadBody> {
    let mut at = 0;
    while !decoder.is_done() {
        let step = decoder.step(&input[at..])?;
        let start = at + step.framing;
        at = start + step.payload;
        if step.payload > 0 {
            emit(&input[start..at]);
        } else if step.framing == 0 || at == input.len() {
            break;
        }
    }
    Ok(at)
}

fn put_framed(payload: &[u8], is_chunked: bool, out: &mut BytesMut) {
    if is_chunked {
        let mut size = [0; CHUNK_HEAD];
        let start = body::chunk_head(&mut size, payload.len());
        out.put_slice(&size[start..]);
        out.put_slice(payload);
        out.put_slice(CHUNK_TAIL);
    } else {
        out.put_slice(payload);
    }
}

/// How the answering direction ended.
enum Finished {
    Answer { upstream_reusable: bool, visitor_reusable: bool },
    Upgrade,
}

async fn receive_answer(
    core: &Core,
    request: &RequestHead,
    stream: &LinkStream,
    visitor: Visitor<'_>,
    to_visitor: &mut WriteHalf<'_>,
    progress: &Progress,
) -> Result<Finished, Failure> {
    let (mut head, mut rest) = answer_head(request, stream, to_visitor).await?;
    if let Some(local) = visitor.local {
        restore(local, &mut head, &visitor.public_origin(request));
    }
    if head.status == 101 {
        if request.upgrade.is_none() {
            return Err(Failure::Answer(EdgeError::LocalInvalidResponse));
        }
        let answer = Answer { framing: Framing::None, keep_alive: true, visitor_is_http_11: true };
        let mut out = BytesMut::new();
        write::response(&head, answer, &mut out);
        // The first bytes of the other protocol may have come with the head.
        out.put_slice(&rest);
        progress.set_answered(101);
        progress.add_down(rest.len());
        to_visitor.write_all(&out).await.map_err(|_| Failure::Cut)?;
        return Ok(Finished::Upgrade);
    }
    let framing = match head.body {
        Framing::Chunked | Framing::UntilClose if request.is_http_11 => Framing::Chunked,
        Framing::Chunked => Framing::UntilClose,
        other => other,
    };
    let visitor_reusable = request.keep_alive
        && progress.request_done()
        && framing != Framing::UntilClose
        && !core.draining.is_cancelled();
    let answer = Answer { framing, keep_alive: visitor_reusable, visitor_is_http_11: request.is_http_11 };
    let is_chunked = framing == Framing::Chunked;
    let mut decoder = Decoder::new(head.body);
    if matches!(head.body, Framing::Length(length) if length >= BULK_FROM) {
        stream.expect_bulk();
    }
    let mut out = Draft::new();
    write::response(&head, answer, &mut out);

    // What arrived with the head goes with the head, in one write.
    let mut payload = Draft::new();
    let used = take_payload(&mut decoder, &rest, |bytes| payload.put_slice(bytes))
        .map_err(|_| Failure::Answer(EdgeError::LocalInvalidResponse))?;
    rest.advance(used);
    if !payload.is_empty() {
        put_framed(&payload, is_chunked, &mut out);
    }
    if decoder.is_done() && is_chunked {
        let trailers = decoder.trailers().map_err(|_| Failure::Answer(EdgeError::LocalInvalidResponse))?;
        body::last_chunk(&trailers, &mut out);
    }
    progress.set_answered(head.status);
    progress.body_begins(&payload);
    progress.add_down(payload.len());
    drop(payload);
    to_visitor.write_all(&out).await.map_err(|_| Failure::Cut)?;
    drop(out);

    let ended = pump_answer(&mut decoder, is_chunked, stream, to_visitor, progress).await?;
    // Bytes behind the answer belong to nothing: the connection cannot be trusted any more.
    let upstream_reusable = head.keep_alive && !ended && rest.is_empty();
    Ok(Finished::Answer { upstream_reusable, visitor_reusable })
}

/// Passes the rest of an answer's body; says whether the upstream's end was its end.
async fn pump_answer(
    decoder: &mut Decoder,
    is_chunked: bool,
    stream: &LinkStream,
    to_visitor: &mut WriteHalf<'_>,
    progress: &Progress,
) -> Result<bool, Failure> {
    let mut from_stream = stream;
    while !decoder.is_done() {
        // The first bytes of a body are looked at.
        if let Some(left) = decoder.sized_left().filter(|_| progress.down() > 0) {
            let surplus = relay::down(stream, to_visitor, left, |count| progress.add_down(count)).await;
            return surplus.map_err(|_| Failure::Cut);
        }
        let room = PAYLOAD_START..PAYLOAD_START + PAYLOAD_ROOM;
        let (mut buffer, count) = Buffer::read(&mut from_stream, room).await.map_err(|_| Failure::Cut)?;
        if count == 0 {
            if !decoder.may_end_here() {
                return Err(Failure::Cut);
            }
            if is_chunked {
                to_visitor.write_all(b"0\r\n\r\n").await.map_err(|_| Failure::Cut)?;
            }
            return Ok(true);
        }
        // Payload is moved together, so that it leaves as one chunk.
        let (mut at, mut len) = (PAYLOAD_START, 0);
        let end = PAYLOAD_START + count;
        while at < end && !decoder.is_done() {
            let step = decoder.step(&buffer[at..end]).map_err(|_| Failure::Cut)?;
            let start = at + step.framing;
            at = start + step.payload;
            if step.payload > 0 {
                if start != PAYLOAD_START + len {
                    buffer.copy_within(start..at, PAYLOAD_START + len);
                }
                len += step.payload;
            }
        }
        let surplus = at < end;
        let mut tail = BytesMut::new();
        let mut span = (PAYLOAD_START, PAYLOAD_START + len);
        if is_chunked && len > 0 {
            span.0 = body::chunk_head(&mut buffer[..CHUNK_HEAD], len);
            buffer[span.1..span.1 + CHUNK_TAIL.len()].copy_from_slice(CHUNK_TAIL);
            span.1 += CHUNK_TAIL.len();
        }
        if is_chunked && decoder.is_done() {
            let trailers = decoder.trailers().map_err(|_| Failure::Cut)?;
            body::last_chunk(&trailers, &mut tail);
        }
        if len > 0 {
            progress.body_begins(&buffer[PAYLOAD_START..PAYLOAD_START + len]);
            to_visitor.write_all(&buffer[span.0..span.1]).await.map_err(|_| Failure::Cut)?;
            progress.add_down(len);
        }
        if !tail.is_empty() {
            to_visitor.write_all(&tail).await.map_err(|_| Failure::Cut)?;
        }
        if surplus {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The head of the final answer and what came behind it. Interim answers are passed on.
async fn answer_head(
    request: &RequestHead,
    stream: &LinkStream,
    to_visitor: &mut WriteHalf<'_>,
) -> Result<(ResponseHead, Bytes), Failure> {
    let mut bytes = Bytes::new();
    let mut interim = 0;
    loop {
        if !bytes.is_empty() {
            match response::parse(&bytes, request.is_head()) {
                Ok(Some(head)) if head.is_interim() => {
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Err(Failure::Answer(EdgeError::LocalInvalidResponse));
                    }
                    if request.is_http_11 {
                        let mut out = Draft::new();
                        let answer = Answer { framing: Framing::None, keep_alive: true, visitor_is_http_11: true };
                        write::response(&head, answer, &mut out);
                        to_visitor.write_all(&out).await.map_err(|_| Failure::Cut)?;
                    }
                    bytes.advance(head.len);
                    continue;
                }
                Ok(Some(head)) => {
                    let rest = bytes.slice(head.len..);
                    return Ok((head, rest));
                }
                Ok(None) => {}
                Err(_) => return Err(Failure::Answer(EdgeError::LocalInvalidResponse)),
            }
        }
        match stream.read_frame().await {
            Ok(more) if more.is_empty() && bytes.is_empty() && interim == 0 => return Err(Failure::Lost),
            Ok(more) if more.is_empty() => return Err(Failure::Answer(EdgeError::LocalClosedEarly)),
            Ok(more) if bytes.is_empty() => bytes = more,
            Ok(more) if bytes.len() < MAX_HEAD => bytes = [bytes, more].concat().into(),
            Ok(_) => return Err(Failure::Answer(EdgeError::LocalInvalidResponse)),
            Err(error) => return Err(failure_of(&error, bytes.is_empty() && interim == 0)),
        }
    }
}

fn failure_of(error: &io::Error, nothing_came: bool) -> Failure {
    match StreamReset::of(error) {
        Some(reset) if reset.code == ReasonCode::LOCAL_UNREACHABLE => {
            Failure::Answer(EdgeError::LocalUnreachable(reset.reason.clone()))
        }
        _ if nothing_came => Failure::Lost,
        _ => Failure::Answer(EdgeError::LocalClosedEarly),
    }
}

/// Both protocols agreed to leave HTTP: bytes pass until both ends are done.
async fn upgraded(
    core: &Core,
    connection: &mut Connection,
    stream: &LinkStream,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut up = Pump::starting_with(std::mem::take(&mut connection.received));
    let mut down = Pump::default();
    let result = tokio::select! {
        result = relay::relay(&mut connection.socket, stream, &mut up, &mut down) => result.map_err(|_| Failure::Cut),
        () = core.stopping.cancelled() => Err(Failure::Cut),
    };
    progress.up.fetch_add(up.moved(), Relaxed);
    progress.down.fetch_add(down.moved(), Relaxed);
    result
}

// --- dialect 2 -----------------------------------------------------------------------------------------------

async fn v2(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    tunnel: &Tunnel,
    upstream: &V2Upstream,
    visitor: Visitor<'_>,
) -> Outcome {
    let failed = |error: EdgeError, keep_alive: bool| Outcome { error: Some(error), keep_alive, ..Outcome::default() };
    if head.upgrade.is_some() {
        return failed(EdgeError::UpgradeUnsupported, true);
    }
    let (body, _room) = match whole_body(core, connection, head, V2_MAX_REQUEST_BODY).await {
        Ok(whole) => whole,
        Err(Failure::Answer(error)) => return failed(error, false),
        Err(_) => return Outcome { cut: true, ..Outcome::default() },
    };
    let bytes_in = body.len() as u64;
    let request = write::proxy_request(head, visitor, body);
    let sending = upstream.send(&tunnel.url, connection.peer, request, core.config.limits.v2_response_timeout);
    let result = tokio::select! {
        result = sending => result,
        () = tunnel.closed.cancelled() => match closed(core, &Progress::default()) {
            Failure::Answer(error) => return Outcome { bytes_in, ..failed(error, false) },
            _ => Err(RelayError::SessionEnded),
        },
    };
    let answered = match result {
        Ok(answered) => answered,
        Err(error) => {
            debug!(tunnel = %tunnel.key, %error, "no answer");
            let error = match error {
                RelayError::ClosedEarly => EdgeError::LocalUnreachable("the client closed its data connection".into()),
                RelayError::Invalid => EdgeError::LocalInvalidResponse,
                RelayError::Timeout => EdgeError::LocalTimeout,
                RelayError::SessionEnded => EdgeError::TunnelOffline(1),
                RelayError::TooMany => EdgeError::TooManyConnections,
            };
            return Outcome { bytes_in, ..failed(error, true) };
        }
    };
    let keep_alive = head.keep_alive && !core.draining.is_cancelled();
    let answer = Answer { framing: Framing::None, keep_alive, visitor_is_http_11: head.is_http_11 };
    let response = &answered.response;
    let Ok((mut out, body)) = write::proxy_response(response, head.is_head(), answer) else {
        return Outcome { bytes_in, ..failed(EdgeError::LocalInvalidResponse, true) };
    };
    let bytes_out = body.len() as u64;
    // Small answers leave in one packet.
    let written = if body.len() <= BUFFER {
        out.put_slice(&body);
        connection.socket.write_all(&out).await
    } else {
        match connection.socket.write_all(&out).await {
            Ok(()) => connection.socket.write_all(&body).await,
            Err(error) => Err(error),
        }
    };
    Outcome {
        answered: Some(response.status),
        host_refused: host_refused(response.status, &response.body),
        bytes_in,
        bytes_out,
        cut: written.is_err(),
        keep_alive,
        ..Outcome::default()
    }
}

/// Reads a body whole, as the published dialects need it. The permit stands for the memory it takes; all of it is taken before the
/// first byte is read, so that bodies which wait for room hold none.
async fn whole_body(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    max: usize,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failure> {
    let too_large = || Failure::Answer(EdgeError::RequestTooLarge(max));
    let most = match head.body {
        Framing::None | Framing::Length(0) => return Ok((Bytes::new(), None)),
        Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
        Framing::Chunked | Framing::UntilClose => max,
    };
    if most > max {
        return Err(too_large());
    }
    let pieces = u32::try_from(most.div_ceil(BODY_PIECE)).unwrap_or(u32::MAX);
    let room = timeout(core.config.limits.hold_visitors, Arc::clone(&core.whole_bodies).acquire_many_owned(pieces));
    let Ok(Ok(room)) = room.await else { return Err(Failure::Answer(EdgeError::TooManyConnections)) };
    if head.expects_continue && connection.received.is_empty() {
        connection.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Failure::Cut)?;
    }
    let mut decoder = Decoder::new(head.body);
    let mut body = BytesMut::new();
    loop {
        let used = take_payload(&mut decoder, &connection.received, |bytes| body.put_slice(bytes))
            .map_err(|_| Failure::Answer(BAD_BODY))?;
        connection.received.advance(used);
        if body.len() > max {
            return Err(too_large());
        }
        if decoder.is_done() {
            return Ok((body.freeze(), Some(room)));
        }
        let reading = buffer::read_behind(&mut connection.socket, &mut connection.received);
        tokio::select! {
            read = reading => if matches!(read, Ok(0) | Err(_)) {
                return Err(Failure::Cut);
            },
            () = sleep(core.config.limits.body_timeout) => return Err(Failure::Answer(EdgeError::RequestTimeout)),
            () = core.stopping.cancelled() => return Err(Failure::Cut),
        }
    }
}
