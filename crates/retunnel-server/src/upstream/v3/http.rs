//! Requests over streams of a 3.x session: heads as values, bodies as frames, answers as they come.

use std::{
    io,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use retunnel_proto::{
    dialect::v3::{Assembly, HttpMeta, StreamEvent, StreamMode, StreamOpen, WireVersion},
    http1::{
        Framing, HeadLimits,
        response::{InvalidResponse, is_chunked},
    },
    limits::{V3_MAX_FRAME_TO_V1, V3_MAX_REQUEST_BODY},
};
use tokio::time::timeout;
use tracing::debug;

use super::{
    V3Upstream,
    mux::{CHUNK, Stream},
    stream_request,
};
use crate::{
    net::buffer::Joined,
    tunnel::upstream::{
        Answer, BodyMode, Closed, Exchange, Failure, Moved, Part, Request, Sent, Soon, Trailers, Upgraded, Upstream,
    },
    upstream::values::{BAD_VALUES, is_framing, response_head},
};

/// Bytes of an answer that are gathered into one part, while there are more.
const GATHERED: usize = 64 * 1024;
/// How long the head of a short answer waits for its body, so that both leave together. Clients send them in two messages.
const HEAD_WAITS: Duration = Duration::from_millis(5);
/// Largest head of an answer as values; as text it must fit the limit of all heads.
const MAX_META: usize = 2 * HeadLimits::RESPONSE.bytes;
/// What a header takes in a message beyond its text.
const HEADER_COST: usize = 10;

/// Opens a stream for a request.
pub(super) async fn exchange(upstream: &V3Upstream, request: Request<'_>) -> Result<HttpExchange, Failure> {
    let Request { head, visitor, body, .. } = request;
    let has_body = matches!(upstream.body(head), BodyMode::Streamed { .. });
    let open = stream_request(head, visitor, StreamMode::Http, body.bytes.clone(), has_body);
    if upstream.mux.version == WireVersion::One && size_of(&open) > V3_MAX_FRAME_TO_V1 {
        return Err(Failure::RequestTooLarge(upstream.max_body()));
    }
    let stream = upstream.open(open).await?;
    Ok(HttpExchange { stream, has_body, to_head: head.is_head(), receiving: Mutex::default() })
}

/// An upper bound of the request's message.
fn size_of(request: &StreamOpen) -> usize {
    let headers = request.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_COST).sum::<usize>();
    1024 + request.path.len() + headers + request.body.len()
}

/// One request on its stream.
pub(super) struct HttpExchange {
    stream: Stream,
    /// The body follows in frames.
    has_body: bool,
    to_head: bool,
    receiving: Mutex<Receiving>,
}

/// How far the answer has arrived. Both directions run in one task, so that no one ever waits for its lock.
#[derive(Debug)]
struct Receiving {
    framing: Framing,
    /// Bytes that are left of a body with a length.
    left: u64,
    is_over: bool,
    /// What was gathered before a failure is passed on first.
    has_failed: bool,
}

impl Default for Receiving {
    fn default() -> Self {
        Self { framing: Framing::None, left: 0, is_over: false, has_failed: false }
    }
}

impl Receiving {
    /// Takes an event of the stream; its payload, if it has some.
    fn take(&mut self, event: StreamEvent) -> Result<Bytes, Failure> {
        match event {
            StreamEvent::Data { data, .. } if data.is_empty() || self.framing == Framing::None => Ok(Bytes::new()),
            StreamEvent::Data { data, .. } => {
                if let Framing::Length(_) = self.framing {
                    self.left = self.left.checked_sub(data.len() as u64).ok_or(Failure::Cut)?;
                    self.is_over = self.left == 0;
                }
                Ok(data)
            }
            StreamEvent::Close { .. } if self.left > 0 => Err(Failure::Cut),
            StreamEvent::Close { .. } => {
                self.is_over = true;
                Ok(Bytes::new())
            }
            StreamEvent::Reset { .. } => Err(Failure::Cut),
        }
    }
}

impl HttpExchange {
    fn receiving(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().expect("no code panics while it holds the state")
    }

    /// Gathers what has arrived, beginning with `first`.
    fn gather(&self, first: Option<StreamEvent>) -> Result<Part, Failure> {
        let mut receiving = self.receiving();
        let mut payload = Joined::default();
        let mut next = first;
        while !receiving.is_over && payload.len() < GATHERED {
            let Some(event) = next.take().or_else(|| self.stream.try_next()) else { break };
            match receiving.take(event) {
                Ok(data) => payload.push(data),
                Err(failure) if payload.len() == 0 => return Err(failure),
                Err(_) => {
                    receiving.has_failed = true;
                    break;
                }
            }
        }
        Ok(Part { payload: payload.into_bytes(), end: receiving.is_over.then(Trailers::new) })
    }
}

impl Exchange for HttpExchange {
    fn send(&self, mut piece: Bytes, end: Option<Trailers>) -> Soon<'_, Result<(), Closed>> {
        Soon::later(async move {
            // The wire has no trailers.
            let is_last = end.is_some();
            while self.has_body && (is_last || !piece.is_empty()) {
                let part = piece.split_to(piece.len().min(CHUNK));
                let fin = is_last && piece.is_empty();
                self.stream.send(part, None, Some(fin)).await.map_err(|_| Closed)?;
                if fin {
                    break;
                }
            }
            Ok(())
        })
    }

    fn answer(&self) -> Soon<'_, Result<Answer, Failure>> {
        Soon::later(async move {
            let meta = HttpMeta::decode(&meta(&self.stream).await?).map_err(|error| {
                debug!(%error, "head of an answer is not valid");
                Failure::LocalInvalidResponse("the client's report of it cannot be read")
            })?;
            // A client that has decoded the chunks may leave a length that is not the body's.
            let was_chunked = was_chunked(&meta.headers)?;
            let kept = meta
                .headers
                .iter()
                .filter(|(name, _)| !is_framing(name) || (!was_chunked && name.eq_ignore_ascii_case("content-length")));
            let kept = kept.map(|(name, value)| (name, value));
            let head = response_head(meta.status, kept, None, self.to_head)
                .filter(|head| head.status >= 200)
                .ok_or(Failure::LocalInvalidResponse(BAD_VALUES))?;
            let left = if let Framing::Length(length) = head.body { length } else { 0 };
            {
                let mut receiving = self.receiving();
                receiving.framing = head.body;
                receiving.left = left;
                receiving.is_over = matches!(head.body, Framing::Length(0) | Framing::None);
            }
            let mut first = None;
            if (1..=GATHERED as u64).contains(&left) {
                first = match self.stream.try_next() {
                    Some(event) => Some(event),
                    None => {
                        timeout(HEAD_WAITS, self.stream.next()).await.ok().transpose().map_err(|_| Failure::Lost)?
                    }
                };
            }
            // The head leaves in any case.
            let part = self.gather(first).unwrap_or_else(|_| {
                self.receiving().has_failed = true;
                Part::default()
            });
            Ok(Answer::Final(head, part))
        })
    }

    fn receive(&self) -> Soon<'_, Result<Part, Failure>> {
        Soon::later(async move {
            if self.receiving().has_failed {
                return Err(Failure::Cut);
            }
            let first = self.stream.next().await.map_err(|_| Failure::Cut)?;
            self.gather(Some(first))
        })
    }

    fn upgraded<'a>(&'a self, _: Upgraded<'a>, _: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::Error::other("the request asked for no upgrade"))))
    }

    fn cancel(&self, reason: &str) {
        self.stream.reset(reason);
    }

    fn finish(self: Box<Self>, request: Sent) {
        if request != Sent::Never {
            self.stream.let_go();
        }
    }
}

/// Whether the local service sent chunks, which the client has decoded.
fn was_chunked(headers: &[(String, String)]) -> Result<bool, Failure> {
    let codings = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
    let codings = codings.map(|(_, value)| value.as_bytes());
    is_chunked(codings).map_err(|InvalidResponse(why)| Failure::LocalInvalidResponse(why))
}

/// The first message of a stream, assembled.
pub(super) async fn meta(stream: &Stream) -> Result<Bytes, Failure> {
    let mut assembly = Assembly::new(MAX_META);
    loop {
        match stream.next().await {
            Ok(StreamEvent::Data { data, fin, .. }) => match assembly.push(data, fin) {
                Ok(Some(meta)) => return Ok(meta),
                Ok(None) => {}
                Err(_) => return Err(Failure::LocalInvalidResponse("its head is too large")),
            },
            Ok(StreamEvent::Reset { reason }) => return Err(failure_of(reason)),
            Ok(StreamEvent::Close { .. }) => return Err(Failure::LocalClosedEarly),
            Err(_) => return Err(Failure::Lost),
        }
    }
}

/// What a reset before the answer means: clients send the text of their exception.
pub(super) fn failure_of(reason: String) -> Failure {
    let says = |text: &str| reason.contains(text);
    if says("disconnected") || says("reset by peer") {
        Failure::LocalClosedEarly
    } else if says("UnicodeEncodeError") || says("InvalidURL") || says("BadHttpMessage") || says("ResponseError") {
        Failure::LocalInvalidResponse("the client cannot read it")
    } else if says("body larger than") {
        Failure::RequestTooLarge(V3_MAX_REQUEST_BODY)
    } else if says("client busy") || says("buffer overflow") {
        Failure::Busy
    } else if says("imeout") {
        Failure::LocalTimeout
    } else {
        Failure::LocalUnreachable(if reason.is_empty() { "no reason given".into() } else { reason })
    }
}
