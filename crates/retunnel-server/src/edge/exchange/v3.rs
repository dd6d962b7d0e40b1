//! Requests over streams of a 3.x session: heads as values, bodies as frames, answers passed on as they come.

use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use retunnel_proto::{
    dialect::v3::{Assembly, HttpMeta, StreamEvent, StreamMode, StreamOpen, WireVersion},
    limits::{V3_MAX_FRAME_TO_V1, V3_MAX_REQUEST_BODY, V3_MAX_REQUEST_BODY_V1},
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::debug;

use super::{
    BAD_BODY, Failure, MAX_HEAD, Outcome, Progress, UpEnd, both, closed, is_repeatable, put_framed, take_payload,
    watch, websocket, whole_body,
};
use crate::{
    control::v3::{CHUNK, OpenError, Stream, V3Upstream},
    core::Core,
    edge::{
        buffer::{self, BUFFER},
        connection::Connection,
        http1::{
            Framing,
            body::{self, CHUNK_HEAD, CHUNK_TAIL, Decoder},
            request::RequestHead,
            write::{self, Answer, Visitor},
        },
        page::EdgeError,
        socket::{ReadHalf, WriteHalf},
    },
    tunnel::Tunnel,
};

/// Bytes of an answer that are gathered into one write, while there are more.
const GATHERED: usize = 64 * 1024;
/// How long the head of a short answer waits for its body, so that both leave together. Clients send them in two messages.
const HEAD_WAITS: Duration = Duration::from_millis(5);
/// Largest head of an answer as values; as text it must fit the limit of all heads.
const MAX_META: usize = 2 * MAX_HEAD;
/// What a header takes in a message beyond its text.
const HEADER_COST: usize = 10;

/// Passes a request on and its answer back.
pub(super) async fn exchange(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    tunnel: &Tunnel,
    upstream: &V3Upstream,
    visitor: Visitor<'_>,
) -> Outcome {
    let progress = Progress::default();
    let serving = async {
        match head.upgrade {
            Some(_) => websocket::exchange(core, connection, head, upstream, visitor, &progress).await,
            None => request(core, connection, head, upstream, visitor, &progress).await,
        }
    };
    let result = tokio::select! {
        result = serving => result,
        () = tunnel.closed.cancelled() => Err(closed(core, &progress)),
    };
    let mut outcome = Outcome {
        answered: progress.answered(),
        bytes_in: progress.up(),
        bytes_out: progress.down(),
        ..Outcome::default()
    };
    match result {
        Ok(visitor_reusable) => outcome.keep_alive = visitor_reusable,
        Err(Failure::Lost) => {
            if upstream.is_lost() {
                // The session's end follows at once; only then does the registry hold the next try.
                tunnel.closed.cancelled().await;
            }
            outcome.retry = is_repeatable(head);
            outcome.error = Some(EdgeError::TunnelOffline(1));
            outcome.keep_alive = head.body == Framing::None;
        }
        Err(Failure::Answer(error)) => {
            debug!(tunnel = %tunnel.key, code = error.code(), "no answer");
            outcome.keep_alive = progress.request_done() && error.status() != 400;
            outcome.error = Some(error);
        }
        Err(Failure::Cut) => outcome.cut = true,
    }
    outcome
}

pub(super) async fn open(upstream: &V3Upstream, open: StreamOpen) -> Result<Stream, Failure> {
    upstream.open(open).await.map_err(|error| match error {
        OpenError::Lost => Failure::Lost,
        OpenError::TooMany => Failure::Answer(EdgeError::TooManyConnections),
    })
}

/// One request; says whether another may follow on the visitor's connection.
async fn request(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    upstream: &V3Upstream,
    visitor: Visitor<'_>,
    progress: &Progress,
) -> Result<bool, Failure> {
    let is_first = upstream.version() == WireVersion::One;
    let max = if is_first { V3_MAX_REQUEST_BODY_V1 } else { V3_MAX_REQUEST_BODY };
    let too_large = || Failure::Answer(EdgeError::RequestTooLarge(max));
    let has_body = match head.body {
        Framing::Length(length) if length > max as u64 => return Err(too_large()),
        Framing::Length(length) => !is_first && length > CHUNK as u64,
        Framing::Chunked => !is_first,
        Framing::None | Framing::UntilClose => false,
    };
    let (body, room) = if has_body { (Bytes::new(), None) } else { whole_body(core, connection, head, max).await? };
    let size = body.len();
    let request = write::stream_request(head, visitor, StreamMode::Http, body, has_body);
    if is_first && size_of(&request) > V3_MAX_FRAME_TO_V1 {
        return Err(too_large());
    }
    let stream = open(upstream, request).await?;
    drop(room);
    progress.add_up(size);
    if has_body && head.expects_continue && connection.received.is_empty() {
        connection.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Failure::Cut)?;
    }
    let Connection { socket, received, .. } = connection;
    let (mut from_visitor, mut to_visitor) = socket.split();
    let up = async {
        if has_body && let Err(end) = send_body(core, head, &stream, max, &mut from_visitor, received, progress).await {
            return end;
        }
        progress.request_done.store(true, Relaxed);
        watch(&mut from_visitor, received).await
    };
    let down = receive_answer(core, head, &stream, &mut to_visitor, progress);
    let visitor_reusable = both(pin!(up), pin!(down), progress).await?;
    if progress.request_done() {
        stream.let_go();
    }
    Ok(visitor_reusable)
}

/// An upper bound of the request's message.
fn size_of(request: &StreamOpen) -> usize {
    let headers = request.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_COST).sum::<usize>();
    1024 + request.path.len() + headers + request.body.len()
}

/// Sends a body in chunks, as large as they come, with `fin` on the last.
async fn send_body(
    core: &Core,
    head: &RequestHead,
    stream: &Stream,
    max: usize,
    from_visitor: &mut ReadHalf<'_>,
    received: &mut BytesMut,
    progress: &Progress,
) -> Result<(), UpEnd> {
    let mut decoder = Decoder::new(head.body);
    let mut chunk = BytesMut::new();
    let mut total = 0;
    loop {
        let before = chunk.len();
        let used = take_payload(&mut decoder, received, |bytes| chunk.put_slice(bytes))
            .map_err(|_| UpEnd::Refused(BAD_BODY))?;
        bytes::Buf::advance(received, used);
        progress.add_up(chunk.len() - before);
        total += chunk.len() - before;
        if total > max {
            stream.reset("the body is too large");
            return Err(UpEnd::Refused(EdgeError::RequestTooLarge(max)));
        }
        let is_done = decoder.is_done();
        while chunk.len() > CHUNK || is_done {
            let part = chunk.split_to(chunk.len().min(CHUNK)).freeze();
            let fin = is_done && chunk.is_empty();
            stream.send(part, None, Some(fin)).await.map_err(|_| UpEnd::UpstreamClosed)?;
            if fin {
                return Ok(());
            }
        }
        match buffer::read_behind(from_visitor, received).now_or_never() {
            // The body was cut short.
            Some(Ok(0) | Err(_)) => return Err(UpEnd::VisitorGone),
            Some(Ok(_)) => continue,
            None => {}
        }
        // Nothing more for now: what there is must not wait for it.
        if !chunk.is_empty() {
            stream.send(chunk.split().freeze(), None, Some(false)).await.map_err(|_| UpEnd::UpstreamClosed)?;
        }
        match timeout(core.config.limits.body_timeout, buffer::read_behind(from_visitor, received)).await {
            Err(_) => return Err(UpEnd::Refused(EdgeError::RequestTimeout)),
            Ok(Ok(0) | Err(_)) => return Err(UpEnd::VisitorGone),
            Ok(Ok(_)) => {}
        }
    }
}

/// The first message of a stream, put together.
pub(super) async fn meta(stream: &Stream) -> Result<Bytes, Failure> {
    let mut assembly = Assembly::new(MAX_META);
    loop {
        match stream.next().await {
            Ok(StreamEvent::Data { data, fin, .. }) => match assembly.push(data, fin) {
                Ok(Some(meta)) => return Ok(meta),
                Ok(None) => {}
                Err(_) => return Err(Failure::Answer(EdgeError::LocalInvalidResponse)),
            },
            Ok(StreamEvent::Reset { reason }) => return Err(Failure::Answer(reset_error(reason))),
            Ok(StreamEvent::Close { .. }) => return Err(Failure::Answer(EdgeError::LocalClosedEarly)),
            Err(_) => return Err(Failure::Lost),
        }
    }
}

/// What a reset before the answer means: clients send the text of their exception.
pub(super) fn reset_error(reason: String) -> EdgeError {
    let says = |text: &str| reason.contains(text);
    if says("disconnected") || says("reset by peer") {
        EdgeError::LocalClosedEarly
    } else if says("UnicodeEncodeError") || says("InvalidURL") || says("BadHttpMessage") || says("ResponseError") {
        EdgeError::LocalInvalidResponse
    } else if says("body larger than") {
        EdgeError::RequestTooLarge(V3_MAX_REQUEST_BODY)
    } else if says("client busy") || says("buffer overflow") {
        EdgeError::TooManyConnections
    } else if says("imeout") {
        EdgeError::LocalTimeout
    } else {
        EdgeError::LocalUnreachable(if reason.is_empty() { "no reason given".into() } else { reason })
    }
}

/// What goes to the visitor of an answer's body.
struct Body {
    framing: Framing,
    /// Of a body with a length.
    left: u64,
    is_over: bool,
}

impl Body {
    /// Writes a step of the stream; larger data is left to be written as it is.
    fn put(&mut self, event: StreamEvent, progress: &Progress, out: &mut BytesMut) -> Result<Option<Bytes>, Failure> {
        match event {
            StreamEvent::Data { data, .. } if data.is_empty() || self.framing == Framing::None => Ok(None),
            StreamEvent::Data { data, .. } => {
                if let Framing::Length(_) = self.framing {
                    self.left = self.left.checked_sub(data.len() as u64).ok_or(Failure::Cut)?;
                }
                progress.add_down(data.len());
                let is_chunked = self.framing == Framing::Chunked;
                if data.len() < BUFFER {
                    put_framed(&data, is_chunked, out);
                    return Ok(None);
                }
                if is_chunked {
                    let mut size = [0; CHUNK_HEAD];
                    let start = body::chunk_head(&mut size, data.len());
                    out.put_slice(&size[start..]);
                }
                Ok(Some(data))
            }
            StreamEvent::Close { .. } => {
                self.is_over = true;
                if self.framing == Framing::Chunked {
                    body::last_chunk(&[], out);
                }
                if self.left > 0 { Err(Failure::Cut) } else { Ok(None) }
            }
            StreamEvent::Reset { .. } => Err(Failure::Cut),
        }
    }

    /// Everything of the answer was passed on; only the end of the stream is missing.
    fn is_complete(&self) -> bool {
        matches!(self.framing, Framing::Length(_) | Framing::None) && self.left == 0
    }
}

async fn receive_answer(
    core: &Core,
    request: &RequestHead,
    stream: &Stream,
    to_visitor: &mut WriteHalf<'_>,
    progress: &Progress,
) -> Result<bool, Failure> {
    let invalid = || Failure::Answer(EdgeError::LocalInvalidResponse);
    let meta = HttpMeta::decode(&meta(stream).await?).map_err(|error| {
        debug!(%error, "head of an answer");
        invalid()
    })?;
    let head = write::response_head(meta.status, &meta.headers, request.is_head()).ok_or_else(invalid)?;
    let framing = match head.body {
        Framing::UntilClose if request.is_http_11 => Framing::Chunked,
        other => other,
    };
    let visitor_reusable = request.keep_alive
        && progress.request_done()
        && framing != Framing::UntilClose
        && !core.draining.is_cancelled();
    let answer = Answer { framing, keep_alive: visitor_reusable, visitor_is_http_11: request.is_http_11 };
    let mut out = BytesMut::new();
    write::response(&head, answer, &mut out);
    let left = if let Framing::Length(length) = framing { length } else { 0 };
    let mut body = Body { framing, left, is_over: false };
    let mut waited = None;
    if (1..=GATHERED as u64).contains(&left) {
        waited = match stream.try_next() {
            Some(event) => Some(event),
            None => timeout(HEAD_WAITS, stream.next()).await.ok().transpose().map_err(|_| Failure::Lost)?,
        };
    }
    while !body.is_over {
        while out.len() < GATHERED && !body.is_over {
            let Some(event) = waited.take().or_else(|| stream.try_next()) else { break };
            // Whatever was gathered before a failure is passed on.
            let put = body.put(event, progress, &mut out);
            if let Ok(Some(data)) = &put {
                progress.set_answered(head.status);
                to_visitor.write_all(&out).await.map_err(|_| Failure::Cut)?;
                out.clear();
                to_visitor.write_all(data).await.map_err(|_| Failure::Cut)?;
                if framing == Framing::Chunked {
                    out.put_slice(CHUNK_TAIL);
                }
            } else if put.is_err() {
                progress.set_answered(head.status);
                let _ = to_visitor.write_all(&out).await;
                return Err(Failure::Cut);
            }
        }
        if !out.is_empty() {
            progress.set_answered(head.status);
            to_visitor.write_all(&out).await.map_err(|_| Failure::Cut)?;
            out = BytesMut::new();
        }
        if body.is_over || body.is_complete() {
            break;
        }
        waited = Some(stream.next().await.map_err(|_| Failure::Cut)?);
    }
    Ok(visitor_reusable && progress.request_done())
}
