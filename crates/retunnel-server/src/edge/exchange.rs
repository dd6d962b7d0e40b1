//! One request and its answer, between any visitor's protocol and any tunnel's wire. What holds for all of them is decided
//! here and only here: which tunnel, policy, waiting, retries, timing, keep-alive, the access log and the tunnel's report.

mod transfer;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use retunnel_proto::{
    PageCode,
    http1::{Framing, request::RequestHead, write::Visitor},
    message::RequestSummary,
};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use self::transfer::{Ended, Progress, attempt};
use super::{
    Edge,
    downstream::{AnswerSink, BodyError, Downstream, RequestBody},
    page::EdgeError,
    route::Route,
};
use crate::{
    account::AccountId,
    clock::unix_millis,
    limits::waiting::Charge,
    registry::Found,
    tunnel::{
        Tunnel,
        address::PublicAddress,
        upstream::{BodyMode, Request, WholeBody, is_repeatable},
    },
};

/// Longest part of a request target in a report, in bytes.
const REPORTED_TARGET: usize = 256;
/// How often a request whose client was lost before it answered is passed on, to the client's next sessions.
const TRIES: usize = 3;

/// How an exchange went.
#[derive(Debug, Default)]
struct Outcome {
    /// Status the local service answered with.
    answered: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    /// What to answer; nothing was sent to the visitor yet.
    error: Option<EdgeError>,
    /// An answer was begun and cannot be completed, or the visitor is gone.
    is_cut: bool,
    /// What cut the answer, unless the visitor or this server did.
    cut_by: Option<PageCode>,
    /// Another request may follow on the visitor's connection.
    keep_alive: bool,
    /// The local service does not accept the public host name.
    host_refused: bool,
    /// Nothing was answered or lost; the request may be passed to the tunnel's next session.
    may_retry: bool,
}

impl Outcome {
    /// Nothing of the request was passed on. A body is not read; without one the connection can stay open.
    fn refused(error: EdgeError, head: &RequestHead) -> Self {
        Self { error: Some(error), keep_alive: head.body == Framing::None, ..Self::default() }
    }

    /// The status the visitor saw; 0 when there was none.
    fn status(&self) -> u16 {
        self.answered.or_else(|| self.error.as_ref().map(EdgeError::status)).unwrap_or(0)
    }

    /// As [`RequestSummary::is_failed`] says.
    fn is_failed(&self) -> bool {
        let status = self.status();
        status == 0 || self.cut_by.is_some() || (self.error.is_some() && status >= 500)
    }

    /// The stable code of what went wrong; empty when nothing did.
    fn code(&self) -> &'static str {
        match &self.error {
            Some(error) => error.code(),
            None if let Some(code) = self.cut_by => code.as_str(),
            None if self.host_refused => PageCode::HostNotAllowed.as_str(),
            None => "",
        }
    }
}

/// Serves one request; says whether another may follow on the visitor's connection.
pub(super) async fn serve<D: Downstream>(edge: &Edge, downstream: &mut D, head: &RequestHead, route: Route) -> bool {
    let started = Instant::now();
    let (visitor, by_trusted_proxy) = edge.visitor_of(head, downstream.peer());
    let exchange = Exchange { edge, head, visitor, by_trusted_proxy };
    let (outcome, tunnel) = exchange.run(downstream, route, started).await;
    let keep_alive = finish(downstream, &outcome, head).await;
    let duration = started.elapsed();
    if let Some(tunnel) = tunnel {
        exchange.report(&tunnel, &outcome, duration);
    }
    if edge.config.access_log {
        exchange.log(&outcome, duration);
    }
    keep_alive && !edge.running.draining.is_cancelled()
}

/// Ends what an exchange left: an error page, a reset, or nothing.
async fn finish<D: Downstream>(downstream: &mut D, outcome: &Outcome, head: &RequestHead) -> bool {
    if outcome.is_cut {
        downstream.cut();
        return false;
    }
    match &outcome.error {
        Some(error) => {
            let keep_alive = head.keep_alive && outcome.keep_alive;
            downstream.refuse(error, head, keep_alive).await && keep_alive
        }
        None => outcome.keep_alive,
    }
}

/// One request and who it is from.
struct Exchange<'a> {
    edge: &'a Edge,
    head: &'a RequestHead,
    visitor: IpAddr,
    by_trusted_proxy: bool,
}

impl Exchange<'_> {
    /// Passes the request on to the tunnel that it names, if there is one that admits it.
    async fn run<D: Downstream>(
        &self,
        downstream: &mut D,
        route: Route,
        now: Instant,
    ) -> (Outcome, Option<Arc<Tunnel>>) {
        let (edge, head) = (self.edge, self.head);
        let address = match route {
            Route::Tunnel(name) => PublicAddress::Name(name),
            Route::Foreign(hostname) => PublicAddress::Host(hostname),
            Route::Api => return (Outcome::refused(EdgeError::TunnelNotFound, head), None),
        };
        let (mut tries, mut now) = (0, now);
        let mut whole = None;
        loop {
            tries += 1;
            let found = match edge.registry.find_now(&address, now) {
                // In a box, as everything that few requests need: the size of this future is paid by each.
                Found::Held(_) => {
                    let held = Box::pin(edge.registry.find(&address, now, edge.config.limits.hold_visitors));
                    tokio::select! {
                        found = held => found,
                        () = edge.running.draining.cancelled() => {
                            return (Outcome::refused(EdgeError::ShuttingDown, head), None);
                        }
                    }
                }
                found => found,
            };
            let tunnel = match found {
                Found::Live(tunnel) => tunnel,
                Found::Held(until) => {
                    let seconds = until.saturating_duration_since(Instant::now()).as_secs().max(1);
                    return (Outcome::refused(EdgeError::TunnelOffline(seconds), head), None);
                }
                Found::Free => return (Outcome::refused(EdgeError::TunnelNotFound, head), None),
            };
            let outcome = self.over(&tunnel, downstream, &mut whole).await;
            if !outcome.may_retry || tries == TRIES {
                return (outcome, Some(tunnel));
            }
            debug!(tunnel = %address, "client lost before it answered; passing the request on again");
            now = Instant::now();
        }
    }

    /// Passes the request on to one tunnel. `whole`: its body, if an earlier tunnel needed all of it.
    async fn over<D: Downstream>(&self, tunnel: &Tunnel, downstream: &mut D, whole: &mut Option<WholeBody>) -> Outcome {
        let (edge, head) = (self.edge, self.head);
        let rewrite = match tunnel.policy.on_http_request(head, self.visitor) {
            Ok(rewrite) => rewrite,
            Err(denied) => return Outcome::refused(EdgeError::Denied(denied), head),
        };
        let mode = tunnel.upstream.body(head);
        if whole.is_none()
            && let Err(ended) = self.check_length(mode)
        {
            return self.outcome(tunnel, &Progress::default(), Err(ended)).await;
        }
        if let (BodyMode::Whole { max }, None) = (mode, &*whole) {
            match Box::pin(self.collect(downstream, max, tunnel.account)).await {
                Ok(body) => *whole = Some(body),
                Err(ended) => return self.outcome(tunnel, &Progress::default(), Err(ended)).await,
            }
        }
        let visitor = Visitor {
            address: downstream.peer().ip(),
            by_trusted_proxy: self.by_trusted_proxy,
            is_encrypted: downstream.is_encrypted(),
            strip_authorization: rewrite.strip_authorization,
            local: rewrite.local_origin,
        };
        let connection = (!self.by_trusted_proxy).then(|| downstream.connection());
        let may_keep = !rewrite.close_local;
        let mut may_reuse = may_keep;
        loop {
            let body = whole.clone().unwrap_or_default();
            let request = Request { head, visitor, peer: downstream.peer(), connection, body, may_reuse, may_keep };
            let progress = Progress::default();
            let result = tokio::select! {
                biased;
                result = attempt(edge, downstream, &*tunnel.upstream, request, (mode, whole.is_some()), &progress) => result,
                () = tunnel.closed.cancelled() => Err(self.closed(&progress)),
                () = unanswered(rewrite.response_timeout, &progress) => Err(Ended::Page(EdgeError::LocalTimeout)),
            };
            let is_open = !tunnel.upstream.is_lost() && !tunnel.closed.is_cancelled();
            if progress.is_reused() && is_open && matches!(result, Err(Ended::Lost)) && is_repeatable(head) {
                // The kept connection was closed: once more on a new one.
                may_reuse = false;
                continue;
            }
            return self.outcome(tunnel, &progress, result).await;
        }
    }

    /// Refuses a body that is longer than the wire carries before any of it is read.
    fn check_length(&self, mode: BodyMode) -> Result<(), Ended> {
        let max = match mode {
            BodyMode::Streamed { max, .. } => max,
            BodyMode::Whole { max } => max as u64,
        };
        match self.head.body {
            Framing::Length(length) if length > max => Err(Ended::too_large(max)),
            _ => Ok(()),
        }
    }

    /// Reads a body whole, as some wires need it. It takes room as it arrives: a body that is only announced takes none.
    async fn collect<D: Downstream>(
        &self,
        downstream: &mut D,
        max: usize,
        account: AccountId,
    ) -> Result<WholeBody, Ended> {
        if let Framing::None | Framing::Length(0) = self.head.body {
            return Ok(WholeBody::default());
        }
        let edge = self.edge;
        let mut room = Charge::new(edge.whole_bodies.share(account));
        let (mut body, mut answer) = downstream.split(self.head);
        if self.head.expects_continue && body.is_awaited() {
            answer.proceed().await?;
        }
        let mut bytes = BytesMut::new();
        loop {
            let piece = body.arrived()?;
            bytes.extend_from_slice(&piece.payload);
            if bytes.len() > max {
                return Err(Ended::too_large(max as u64));
            }
            if !room.take_within(piece.payload.len(), edge.config.limits.hold_visitors).await {
                return Err(Ended::Page(EdgeError::TooManyConnections));
            }
            if piece.end.is_some() {
                return Ok(WholeBody::new(bytes.freeze(), room));
            }
            tokio::select! {
                more = body.more() => more?,
                () = edge.running.stopping.cancelled() => return Err(Ended::Cut),
            }
        }
    }

    /// The tunnel was closed, perhaps because the server stops.
    fn closed(&self, progress: &Progress) -> Ended {
        match progress.answered() {
            Some(_) => Ended::Cut,
            None if self.edge.running.stopping.is_cancelled() => Ended::Page(EdgeError::ShuttingDown),
            None => Ended::Lost,
        }
    }

    /// What an attempt means for the visitor.
    async fn outcome(&self, tunnel: &Tunnel, progress: &Progress, result: Result<bool, Ended>) -> Outcome {
        let mut outcome = Outcome {
            answered: progress.answered(),
            bytes_in: progress.moved.up(),
            bytes_out: progress.moved.down(),
            host_refused: progress.host_refused(),
            ..Outcome::default()
        };
        match result {
            Ok(keep_alive) => outcome.keep_alive = keep_alive,
            Err(ended @ (Ended::Lost | Ended::NotSent)) => {
                if tunnel.upstream.is_lost() {
                    // The session's end follows at once; only then does the registry hold the next try.
                    tunnel.closed.cancelled().await;
                }
                let is_closed = tunnel.closed.is_cancelled();
                let not_sent = matches!(ended, Ended::NotSent);
                outcome.may_retry = not_sent || (is_closed && is_repeatable(self.head));
                outcome.error = Some(match is_closed || not_sent {
                    true => EdgeError::TunnelOffline(1),
                    false => EdgeError::LocalClosedEarly,
                });
                outcome.keep_alive = self.head.body == Framing::None;
            }
            Err(Ended::Page(error)) => {
                debug!(tunnel = %tunnel.address, code = error.code(), "no answer");
                outcome.keep_alive = progress.request_done() && error.status() != 400;
                outcome.error = Some(error);
            }
            Err(Ended::Cut) => outcome.is_cut = true,
            Err(Ended::AnswerCut) => {
                let is_lost = tunnel.upstream.is_lost() || tunnel.closed.is_cancelled();
                outcome.is_cut = true;
                outcome.cut_by = Some(if is_lost { PageCode::TunnelOffline } else { PageCode::LocalClosedEarly });
            }
        }
        outcome
    }

    /// Reports the request to the tunnel's session.
    fn report(&self, tunnel: &Tunnel, outcome: &Outcome, duration: Duration) {
        tunnel.activity.record(outcome.is_failed(), || {
            let mut summary = RequestSummary::default();
            summary.method = String::from_utf8_lossy(&self.head.method).into_owned();
            summary.path = shortened(&self.head.target);
            summary.status = outcome.status();
            summary.duration_ms = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
            summary.bytes_out = outcome.bytes_out;
            summary.bytes_in = outcome.bytes_in;
            summary.started_ms = unix_millis().saturating_sub(milliseconds(duration));
            summary.visitor = self.visitor.to_string();
            summary.error = outcome.code().to_owned();
            summary
        });
    }

    fn log(&self, outcome: &Outcome, duration: Duration) {
        info!(
            target: "retunnel::access",
            host = %String::from_utf8_lossy(&self.head.authority),
            visitor = %self.visitor,
            method = %String::from_utf8_lossy(&self.head.method),
            path = %shortened(self.head.path()),
            status = outcome.status(),
            bytes_in = outcome.bytes_in,
            bytes_out = outcome.bytes_out,
            ms = milliseconds(duration),
            error = outcome.code(),
            truncated = outcome.is_cut,
        );
    }
}

impl From<BodyError> for Ended {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Malformed => Self::Page(EdgeError::BadRequest("the body does not follow its framing")),
            BodyError::TimedOut => Self::Page(EdgeError::RequestTimeout),
            BodyError::Gone | BodyError::StreamClosed => Self::Cut,
        }
    }
}

/// Waits until the answer to a complete request has not begun for so long.
async fn unanswered(limit: Option<Duration>, progress: &Progress) {
    let Some(limit) = limit else { return std::future::pending().await };
    // In a box: few tunnels have a limit.
    Box::pin(async {
        loop {
            let was_complete = progress.request_done();
            sleep(limit).await;
            if progress.answered().is_some() {
                return std::future::pending().await;
            }
            if was_complete {
                return;
            }
        }
    })
    .await;
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shortened(target: &[u8]) -> String {
    String::from_utf8_lossy(&target[..target.len().min(REPORTED_TARGET)]).into_owned()
}
