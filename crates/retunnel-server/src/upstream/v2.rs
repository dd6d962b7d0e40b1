//! Tunnels of 2.x sessions. Data sockets carry neither tunnel nor request, so the requests of a session wait in one queue
//! and each socket that arrives takes the oldest. A socket serves one request with a whole body and one whole answer
//! (`docs/protocol.md`, dialect 2).

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use retunnel_proto::{
    RequestId, TunnelId,
    http1::{
        Framing,
        body::{Decoder, Step},
        request::RequestHead,
        write::{Visitor, forwarded},
    },
    limits::V2_MAX_REQUEST_BODY,
    message::{ProxyRequest, ProxyResponse, ServerMessage, StartProxy},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::values::{BAD_VALUES, is_framing, response_head, text};
use crate::{
    account::AccountId,
    limits::waiting::Charge,
    net::socket::Socket,
    tunnel::upstream::{
        Answer, BodyMode, Closed, Exchange, Failure, Moved, Part, Request, Sent, Soon, Trailers, Upgraded, Upstream,
        WholeBody,
    },
};

/// Requests of one session that wait for a data socket or an answer. The clients run 10 to 100 at a time.
const MAX_PENDING: usize = 256;
/// Control messages that wait to be sent.
const MAX_QUEUED: usize = 512;
/// A request that got no data socket for so long asks again: clients lose a `ReqProxy` when their own connection limit
/// makes it wait too long.
const ASK_AGAIN: Duration = Duration::from_secs(12);

/// A request that waits for a data socket.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) start: StartProxy,
    pub(crate) request: ProxyRequest,
    pub(crate) answer: oneshot::Sender<Result<Answered, RelayError>>,
    asked_at: Instant,
}

/// An answer, and its share of all that wait.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: ProxyResponse,
    /// Returned when the answer is dropped.
    pub(crate) charge: Option<Charge>,
}

/// Why a request over a 2.x session has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RelayError {
    /// The client closed the data socket without an answer: the local service cannot be reached.
    #[error("the client closed the data socket without an answer")]
    ClosedEarly,
    /// The answer cannot be understood.
    #[error("the client's answer is invalid")]
    Invalid,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The session ended.
    #[error("the client's session ended")]
    SessionEnded,
    /// Too many requests wait.
    #[error("too many requests wait for this client")]
    TooMany,
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::ClosedEarly => Self::LocalUnreachable("the client closed its data connection".into()),
            RelayError::Invalid => Self::LocalInvalidResponse("the client cannot read it"),
            RelayError::Timeout => Self::LocalTimeout,
            RelayError::SessionEnded => Self::Lost,
            RelayError::TooMany => Self::Busy,
        }
    }
}

/// The requests of one session, as its visitors and its data sockets share them.
#[derive(Debug)]
pub(crate) struct Requests {
    /// Owner of the session.
    pub(crate) account: AccountId,
    /// Where the session's client is.
    peer: IpAddr,
    /// A data socket of the session has presented a token: all of its client's do.
    shows_tokens: AtomicBool,
    pending: Mutex<VecDeque<Pending>>,
    in_flight: Semaphore,
    control: mpsc::Sender<ServerMessage>,
}

impl Requests {
    /// An empty queue, and the messages that the session has to send for it.
    pub(crate) fn new(account: AccountId, peer: IpAddr) -> (Arc<Self>, mpsc::Receiver<ServerMessage>) {
        let (control, queue) = mpsc::channel(MAX_QUEUED);
        let in_flight = Semaphore::new(MAX_PENDING);
        let shows_tokens = AtomicBool::new(false);
        let requests = Self { account, peer, shows_tokens, pending: Mutex::default(), in_flight, control };
        (Arc::new(requests), queue)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.pending.lock().expect("no code panics while it holds the queue")
    }

    /// A data socket has presented the session's token.
    pub(crate) fn has_shown_token(&self) {
        self.shows_tokens.store(true, Relaxed);
    }

    /// Whether a data socket without a token may be the session's.
    pub(crate) fn admits_without_token(&self, peer: IpAddr) -> bool {
        peer == self.peer && !self.shows_tokens.load(Relaxed)
    }

    /// The oldest request whose visitor still waits.
    pub(crate) fn next(&self) -> Option<Pending> {
        let mut pending = self.lock();
        while let Some(oldest) = pending.pop_front() {
            if !oldest.answer.is_closed() {
                return Some(oldest);
            }
        }
        None
    }

    /// Asks again for requests that got no data socket.
    pub(crate) fn ask_again(&self) {
        let now = Instant::now();
        let mut pending = self.lock();
        pending.retain(|waiting| !waiting.answer.is_closed());
        for waiting in pending.iter_mut().filter(|waiting| now.duration_since(waiting.asked_at) >= ASK_AGAIN) {
            waiting.asked_at = now;
            let _ = self.control.try_send(ServerMessage::ReqProxy);
        }
    }

    /// The session has ended: visitors that wait are notified at once.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Sends a request and waits for its answer.
    async fn send(&self, start: StartProxy, request: ProxyRequest, limit: Duration) -> Result<Answered, RelayError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| RelayError::TooMany)?;
        let (answer, answered) = oneshot::channel();
        self.lock().push_back(Pending { start, request, answer, asked_at: Instant::now() });
        self.control.send(ServerMessage::ReqProxy).await.map_err(|_| RelayError::SessionEnded)?;
        match timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RelayError::SessionEnded),
            Err(_) => Err(RelayError::Timeout),
        }
    }
}

/// One tunnel of a 2.x session.
#[derive(Debug)]
pub(crate) struct V2Upstream {
    requests: Arc<Requests>,
    id: TunnelId,
    public_url: String,
    /// Time a client has for an answer.
    timeout: Duration,
}

impl V2Upstream {
    pub(crate) const fn new(requests: Arc<Requests>, id: TunnelId, public_url: String, timeout: Duration) -> Self {
        Self { requests, id, public_url, timeout }
    }
}

impl Upstream for V2Upstream {
    fn body(&self, _: &RequestHead) -> BodyMode {
        BodyMode::Whole { max: V2_MAX_REQUEST_BODY }
    }

    fn exchange<'a>(&'a self, request: Request<'a>) -> Soon<'a, Result<Box<dyn Exchange + 'a>, Failure>> {
        let Request { head, visitor, peer, body, .. } = request;
        if head.upgrade.is_some() {
            return Soon::now(Err(Failure::UpgradeUnsupported));
        }
        let start = StartProxy {
            // The clients look for the tunnel's id anywhere in this text.
            url: format!("{}#{}", self.public_url, self.id),
            client_addr: peer.to_string(),
            request_id: RequestId::random(),
        };
        let request = proxy_request(head, visitor, body.bytes.clone());
        let exchange = V2Exchange {
            upstream: self,
            to_head: head.is_head(),
            unsent: Mutex::new(Some((start, request))),
            _body: body,
            charge: Mutex::default(),
        };
        Soon::now(Ok(Box::new(exchange) as Box<dyn Exchange>))
    }

    fn relay<'a>(&'a self, _: &'a mut Socket, _: SocketAddr, _: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::Error::other("this client cannot carry TCP"))))
    }

    fn is_lost(&self) -> bool {
        self.requests.control.is_closed()
    }
}

/// One request over a data socket.
struct V2Exchange<'a> {
    upstream: &'a V2Upstream,
    to_head: bool,
    unsent: Mutex<Option<(StartProxy, ProxyRequest)>>,
    /// Keeps the room that the request takes.
    _body: WholeBody,
    /// Keeps the room that the answer takes.
    charge: Mutex<Option<Charge>>,
}

impl Exchange for V2Exchange<'_> {
    fn send(&self, _: Bytes, _: Option<Trailers>) -> Soon<'_, Result<(), Closed>> {
        // The request leaves as a whole once its answer is asked for.
        Soon::now(Ok(()))
    }

    fn answer(&self) -> Soon<'_, Result<Answer, Failure>> {
        Soon::later(async move {
            let unsent = self.unsent.lock().expect("no code panics while it holds the request").take();
            let Some((start, request)) = unsent else { return Err(Failure::Lost) };
            let answered = self.upstream.requests.send(start, request, self.upstream.timeout).await?;
            let Answered { response, charge } = answered;
            *self.charge.lock().expect("no code panics while it holds the charge") = charge;
            final_answer(response, self.to_head).ok_or(Failure::LocalInvalidResponse(BAD_VALUES))
        })
    }

    fn receive(&self) -> Soon<'_, Result<Part, Failure>> {
        // The first part was all of it.
        Soon::now(Err(Failure::Cut))
    }

    fn upgraded<'a>(&'a self, _: Upgraded<'a>, _: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::Error::other("this client cannot carry upgrades"))))
    }

    fn finish(self: Box<Self>, _: Sent) {}
}

/// A request with its whole body as dialect 2 carries it: one value per name, `Connection: close`, own length.
fn proxy_request(head: &RequestHead, visitor: Visitor<'_>, body: Bytes) -> ProxyRequest {
    let mut headers: Vec<(String, String)> = Vec::new();
    forwarded(head, visitor, |name, value| {
        if name.eq_ignore_ascii_case(b"expect") {
            return;
        }
        let (name, value) = (String::from_utf8_lossy(name).into_owned(), text(value));
        match headers.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some((known, joined)) => {
                joined.push_str(if known.eq_ignore_ascii_case("cookie") { "; " } else { ", " });
                joined.push_str(&value);
            }
            None => headers.push((name, value)),
        }
    });
    if !body.is_empty() || head.body != Framing::None {
        headers.push(("Content-Length".into(), body.len().to_string()));
    }
    headers.push(("Connection".into(), "close".into()));
    ProxyRequest {
        method: String::from_utf8_lossy(&head.method).into_owned(),
        path: text(head.path()),
        query: text(head.query()),
        headers,
        body,
    }
}

/// A client's whole answer. Its length is that of the body that arrived; `None` when it cannot be passed on.
fn final_answer(response: ProxyResponse, to_head: bool) -> Option<Answer> {
    let ProxyResponse { status, headers, body } = response;
    let has_body = !to_head && status != 204 && status != 304;
    let is_coded = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("transfer-encoding") && value.to_ascii_lowercase().contains("chunked")
    };
    let payload = match (has_body, headers.iter().any(is_coded)) {
        (false, _) => Bytes::new(),
        (true, false) => body,
        (true, true) => dechunked(&body),
    };
    // An answer without a body may still say how long it would have been.
    let kept = headers.iter().filter(|(name, _)| {
        !is_framing(name) || (!has_body && status != 204 && name.eq_ignore_ascii_case("content-length"))
    });
    let kept = kept.map(|(name, value)| (name, latin1(value)));
    let head = response_head(status, kept, has_body.then_some(payload.len()), to_head)?;
    Some(Answer::Final(head, Part { payload, end: Some(Trailers::new()) }))
}

/// The clients decode header bytes as Latin-1; characters beyond it were UTF-8 from the start.
fn latin1(value: &str) -> Vec<u8> {
    value
        .chars()
        .map(|character| u8::try_from(u32::from(character)))
        .collect::<Result<Vec<_>, _>>()
        .unwrap_or_else(|_| value.as_bytes().to_vec())
}

/// The payload of a chunked body that may have been cut short or, from some clients, was never chunked at all.
fn dechunked(raw: &Bytes) -> Bytes {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut payload = BytesMut::with_capacity(raw.len());
    let mut at = 0;
    while !decoder.is_done() && at < raw.len() {
        match decoder.step(&raw[at..]) {
            Ok(Step { framing: 0, payload: 0 }) => break,
            Ok(step) => {
                payload.put_slice(&raw[at + step.framing..at + step.framing + step.payload]);
                at += step.framing + step.payload;
            }
            Err(_) if payload.is_empty() => return raw.clone(),
            Err(_) => break,
        }
    }
    payload.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(headers: &[(&str, &str)], body: &'static [u8]) -> ProxyResponse {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ProxyResponse { status: 200, headers, body: Bytes::from_static(body) }
    }

    #[test]
    fn row_26_a_hostile_client_cannot_write_lines_of_its_own() {
        for (name, value) in
            [("A", "b\r\nSet-Cookie: evil"), ("A\r\nB", "c"), (":status", "200"), ("", "x"), ("A", "b\0")]
        {
            assert!(final_answer(response(&[(name, value)], b""), false).is_none(), "{name:?}: {value:?}");
        }
        let response = response(&[("Transfer-Encoding", "chunked"), ("X-Name", "\u{e9}")], b"5\r\nhello\r\n0\r\n\r\n");
        let Some(Answer::Final(head, part)) = final_answer(response, false) else { panic!("not valid") };
        assert_eq!((&part.payload[..], head.body), (&b"hello"[..], Framing::Length(5)));
        assert_eq!(head.headers.get("x-name"), Some(&b"\xe9"[..]), "Latin-1 stays Latin-1");
        assert_eq!(head.headers.get("transfer-encoding"), None);
    }
}
