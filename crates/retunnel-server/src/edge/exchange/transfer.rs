//! The two directions of one exchange, side by side in one task.

use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use retunnel_proto::{
    http1::{Framing, request::RequestHead, write::Visitor},
    rules::host_refused,
};
use tokio::time::timeout;

use crate::{
    edge::{
        Edge,
        downstream::{AnswerSink, BodyError, Downstream, Gone, Leaving, RequestBody},
        page::EdgeError,
    },
    tunnel::upstream::{Answer, BodyMode, Exchange, Failure, Moved, Part, Request, Sent, Trailers, Upstream},
};

/// A visitor that has closed its sending side is given up when its answer makes no progress for so long. Some half-close
/// and wait for the answer; most are gone.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// How far an exchange is, as both its directions see it. They run in one task, so the order of memory does not matter.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) moved: Moved,
    request_done: AtomicBool,
    answered: AtomicU16,
    host_refused: AtomicBool,
    is_reused: AtomicBool,
}

impl Progress {
    /// Whether the request has arrived completely and was passed on.
    pub(super) fn request_done(&self) -> bool {
        self.request_done.load(Relaxed)
    }

    /// Status of the answer, once its head was sent.
    pub(super) fn answered(&self) -> Option<u16> {
        Some(self.answered.load(Relaxed)).filter(|status| *status != 0)
    }

    /// Whether the answer says that the local service does not serve the public host name.
    pub(super) fn host_refused(&self) -> bool {
        self.host_refused.load(Relaxed)
    }

    /// Whether the exchange runs on a kept connection.
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused.load(Relaxed)
    }

    /// Counts bytes of the answer. The first ones are inspected, later ones are not.
    fn add_down(&self, payload: &[u8]) {
        if self.moved.down() == 0 && host_refused(self.answered.load(Relaxed), payload) {
            self.host_refused.store(true, Relaxed);
        }
        self.moved.add_down(payload.len() as u64);
    }
}

/// Why an exchange ended without a complete answer.
#[derive(Debug)]
pub(super) enum Ended {
    /// Before anything of the request was sent, because the client is gone.
    NotSent,
    /// The connection was lost before a byte of the answer.
    Lost,
    /// Before anything was answered; the visitor gets this page.
    Page(EdgeError),
    /// After the answer was begun, or because the visitor is gone.
    Cut,
    /// After the answer was begun, by the local service or the client.
    AnswerCut,
}

impl Ended {
    pub(super) fn too_large(max: u64) -> Self {
        Self::Page(EdgeError::RequestTooLarge(usize::try_from(max).unwrap_or(usize::MAX)))
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Page(match failure {
            Failure::Lost => return Self::Lost,
            Failure::Cut | Failure::Reset => return Self::Cut,
            Failure::Busy => EdgeError::TooManyConnections,
            Failure::BadRequest(reason) => EdgeError::BadRequest(reason),
            Failure::UpgradeUnsupported => EdgeError::UpgradeUnsupported,
            Failure::RequestTooLarge(max) => EdgeError::RequestTooLarge(max),
            Failure::LocalUnreachable(reason) => EdgeError::LocalUnreachable(reason),
            Failure::LocalClosedEarly => EdgeError::LocalClosedEarly,
            Failure::LocalInvalidResponse(why) => EdgeError::LocalInvalidResponse(why),
            Failure::LocalTimeout => EdgeError::LocalTimeout,
        })
    }
}

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Self::Cut
    }
}

/// How the answering direction ended.
enum Finished {
    /// The answer is complete. `keep_alive`: the visitor's connection can be kept. `in_order`: the answer began after the
    /// request was complete.
    Answer { keep_alive: bool, in_order: bool },
    /// Both sides leave HTTP.
    Upgrade,
}

/// Passes a request on over an upstream, and its answer back; says whether another may follow on the visitor's connection.
/// `is_whole`: the body was collected before.
pub(super) async fn attempt<D: Downstream>(
    edge: &Edge,
    downstream: &mut D,
    upstream: &dyn Upstream,
    request: Request<'_>,
    (mode, is_whole): (BodyMode, bool),
    progress: &Progress,
) -> Result<bool, Ended> {
    let (head, visitor) = (request.head, request.visitor);
    let whole = is_whole.then(|| request.body.bytes.clone());
    if let Some(body) = &whole {
        progress.moved.add_up(body.len() as u64);
        progress.request_done.store(true, Relaxed);
    }
    let exchange = upstream.exchange(request).await.map_err(|failure| match failure {
        Failure::Lost => Ended::NotSent,
        failure => failure.into(),
    })?;
    progress.is_reused.store(exchange.is_reused(), Relaxed);
    let finished = {
        let (mut body, mut answer) = downstream.split(head);
        if let BodyMode::Streamed { answers_expect: false, .. } = mode
            && whole.is_none()
            && head.expects_continue
            && body.is_awaited()
        {
            answer.proceed().await?;
        }
        let up = pin!(send_request(&*exchange, &mut body, mode, whole, progress));
        let down = pin!(pass_answer(edge, &*exchange, &mut answer, head, visitor, progress));
        both(up, down, progress).await?
    };
    match finished {
        Finished::Upgrade => {
            let visitor = downstream.upgraded();
            Box::pin(async {
                tokio::select! {
                    result = exchange.upgraded(visitor, &progress.moved) => result.map_err(|_| Ended::Cut),
                    () = edge.running.stopping.cancelled() => Err(Ended::Cut),
                }
            })
            .await?;
            exchange.finish(Sent::Never);
            Ok(false)
        }
        Finished::Answer { keep_alive, in_order } => {
            exchange.finish(match progress.request_done() {
                true if in_order => Sent::InOrder,
                true => Sent::Late,
                false => Sent::Never,
            });
            Ok(keep_alive)
        }
    }
}

/// Why the sending direction stopped. It does not stop because the request is complete: it then watches whether the
/// visitor stays.
enum UpEnd {
    Left(Leaving),
    /// The request breaks a rule.
    Refused(EdgeError),
    /// The local service or the client takes no more; an answer may still come.
    UpstreamClosed,
}

/// Runs both directions until the answer is complete. It may begin, and end, before the request does.
async fn both<T>(
    mut up: Pin<&mut impl Future<Output = UpEnd>>,
    mut down: Pin<&mut impl Future<Output = Result<T, Ended>>>,
    progress: &Progress,
) -> Result<T, Ended> {
    tokio::select! {
        biased;
        finished = &mut down => finished,
        stopped = &mut up => match stopped {
            UpEnd::Left(Leaving::HalfClosed) => loop {
                let before = (progress.moved.down(), progress.answered());
                if let Ok(finished) = timeout(GONE_AFTER, &mut down).await {
                    break finished;
                }
                if before == (progress.moved.down(), progress.answered()) {
                    break Err(Ended::Cut);
                }
            },
            UpEnd::Left(Leaving::Gone) => Err(Ended::Cut),
            UpEnd::Refused(error) if progress.answered().is_none() => Err(Ended::Page(error)),
            UpEnd::Refused(_) => Err(Ended::Cut),
            UpEnd::UpstreamClosed => down.await,
        },
    }
}

async fn send_request<B: RequestBody>(
    exchange: &dyn Exchange,
    body: &mut B,
    mode: BodyMode,
    whole: Option<Bytes>,
    progress: &Progress,
) -> UpEnd {
    let sent = match whole {
        Some(bytes) => exchange.send(bytes, Some(Trailers::new())).await.map_err(|_| UpEnd::UpstreamClosed),
        None if body.is_empty() => {
            exchange.send(Bytes::new(), Some(Trailers::new())).await.map_err(|_| UpEnd::UpstreamClosed)
        }
        None => Box::pin(send_pieces(exchange, body, mode, progress)).await,
    };
    if let Err(end) = sent {
        return end;
    }
    progress.request_done.store(true, Relaxed);
    // Bytes after a handshake are kept as well: they belong to the other protocol once both sides agree on it.
    UpEnd::Left(body.watch().await)
}

async fn send_pieces<B: RequestBody>(
    exchange: &dyn Exchange,
    body: &mut B,
    mode: BodyMode,
    progress: &Progress,
) -> Result<(), UpEnd> {
    let max = if let BodyMode::Streamed { max, .. } = mode { max } else { u64::MAX };
    loop {
        // What arrived with the head leaves with the head.
        let piece = body.arrived()?;
        progress.moved.add_up(piece.payload.len() as u64);
        if progress.moved.up() > max {
            exchange.cancel("the body is too large");
            return Err(UpEnd::Refused(EdgeError::RequestTooLarge(usize::try_from(max).unwrap_or(usize::MAX))));
        }
        let is_end = piece.end.is_some();
        exchange.send(piece.payload, piece.end).await.map_err(|_| UpEnd::UpstreamClosed)?;
        if is_end {
            return Ok(());
        }
        if let Some(stream) = exchange.raw_request()
            && body.relay(stream, &progress.moved).await?
        {
            return Ok(());
        }
        body.more().await?;
    }
}

impl From<BodyError> for UpEnd {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone => Self::Left(Leaving::Gone),
            BodyError::StreamClosed => Self::UpstreamClosed,
            BodyError::Malformed => Self::Refused(EdgeError::BadRequest("the body does not follow its framing")),
            BodyError::TimedOut => Self::Refused(EdgeError::RequestTimeout),
        }
    }
}

async fn pass_answer<A: AnswerSink>(
    edge: &Edge,
    exchange: &dyn Exchange,
    answer: &mut A,
    request: &RequestHead,
    visitor: Visitor<'_>,
    progress: &Progress,
) -> Result<Finished, Ended> {
    let (mut head, first) = loop {
        match exchange.answer().await? {
            Answer::Interim(head) => answer.interim(&head).await?,
            Answer::Final(head, first) => break (head, first),
        }
    };
    if head.status == 101 && request.upgrade.is_none() {
        return Err(Ended::Page(EdgeError::LocalInvalidResponse("it switches protocols, which nobody asked for")));
    }
    if let Some(local) = visitor.local {
        local.restore(&mut head.headers, &visitor.public_origin(request));
    }
    let in_order = progress.request_done();
    let keep_alive = request.keep_alive && in_order && !edge.running.draining.is_cancelled();
    progress.answered.store(head.status, Relaxed);
    progress.add_down(&first.payload);
    let keep_alive = answer.begin(&head, &first, keep_alive).await?;
    if head.status == 101 {
        return Ok(Finished::Upgrade);
    }
    let mut is_complete = first.end.is_some();
    drop(first);
    while !is_complete {
        // The first bytes of a body are inspected.
        if progress.moved.down() > 0
            && let Some((stream, left)) = exchange.raw_answer()
            && let Some(surplus) = Box::pin(answer.relay(stream, left, &progress.moved)).await?
        {
            exchange.moved_raw(surplus);
            break;
        }
        let part = match exchange.receive().await {
            // A service that refuses a body without reading it causes a reset when it closes. Where that close is the end of
            // the answer, the visitor gets the refusal.
            Err(Failure::Reset)
                if head.status >= 400 && head.body == Framing::UntilClose && request.body != Framing::None =>
            {
                Part { end: Some(Trailers::new()), ..Part::default() }
            }
            part => part.map_err(|_| Ended::AnswerCut)?,
        };
        progress.add_down(&part.payload);
        answer.send(&part).await?;
        is_complete = part.end.is_some();
    }
    Ok(Finished::Answer { keep_alive, in_order })
}
