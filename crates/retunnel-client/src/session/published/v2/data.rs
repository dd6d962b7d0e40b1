//! Data sockets: `RegProxy`, then for each visitor `StartProxy`, the whole request, and the whole answer.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, SET_COOKIE, UPGRADE},
};
use retunnel_proto::{
    PageCode,
    dialect::v2,
    limits::{V2_MAX_MESSAGE_TO_CLIENT, V2_MAX_RESPONSE},
    message::{ClientMessage, ProxyRequest, ProxyResponse, RegProxy, ServerMessage, StartProxy},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_websockets::Message;
use tracing::debug;

use super::wire::{Opener, send};
use crate::{
    error::RelayError,
    exchange::{
        self, Answer, Failure, OwnAnswer, Request,
        headers::{latin_1, texts, visitor_in},
        visit::Visit,
    },
    service::Service,
    transport::websocket::{self, WebSocket},
};

/// How long a data socket may be without a request.
const IDLE: Duration = Duration::from_secs(300);
/// Largest message of a server. The published clients take less.
const MAX_REQUEST: usize = 2 * V2_MAX_MESSAGE_TO_CLIENT;

/// A request and its data socket.
pub(super) struct Arrival {
    socket: WebSocket,
    pub(super) start: StartProxy,
    request: ProxyRequest,
}

/// Opens a data socket and waits for its first request.
pub(super) async fn open(opener: Arc<Opener>) -> Option<Arrival> {
    let opened = opener.dialer.websocket("/api/v1/ws/proxy", opener.token.as_ref(), MAX_REQUEST).await;
    let mut socket = opened.inspect_err(|error| debug!(%error, "cannot open a data socket")).ok()?;
    let register = ClientMessage::RegProxy(RegProxy { client_id: opener.client_id.clone() });
    send(&mut socket, &register).await.ok()?;
    arrival(socket, None).await
}

/// Waits for another request on a data socket. Most servers close it instead.
pub(super) async fn again(done: Arrival) -> Option<Arrival> {
    arrival(done.socket, Some(done.start)).await
}

async fn arrival(mut socket: WebSocket, mut start: Option<StartProxy>) -> Option<Arrival> {
    let request = timeout(IDLE, async {
        loop {
            let message = websocket::next(&mut socket).await.ok()?;
            match v2::decode_server(&message) {
                Ok(ServerMessage::StartProxy(started)) => start = Some(started),
                _ => match v2::decode_request(&message) {
                    Ok(request) if start.is_some() => return Some(request),
                    Ok(_) => debug!("a request came before StartProxy"),
                    Err(error) => debug!(%error, "message on a data socket ignored"),
                },
            }
        }
    });
    match request.await {
        Ok(Some(request)) => Some(Arrival { socket, start: start?, request }),
        Ok(None) => None,
        Err(_) => {
            websocket::close(socket).await;
            None
        }
    }
}

/// Answers a request; returns its socket for the next one.
pub(super) async fn serve(mut arrival: Arrival, service: Service, opener: Arc<Opener>) -> Option<Arrival> {
    let request = std::mem::take(&mut arrival.request);
    let answered = tokio::select! {
        answered = answer(request, &arrival.start, service, &opener.answers) => answered,
        // The server closes the socket when the visitor has left.
        () = gone(&mut arrival.socket) => None,
    };
    let Some((response, _budget)) = answered else {
        // Closed without an answer, which servers turn into 502.
        websocket::close(arrival.socket).await;
        return None;
    };
    let message = Message::binary(v2::encode_response(&response));
    drop(response);
    websocket::send(&mut arrival.socket, message).await.ok()?;
    Some(arrival)
}

async fn gone(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            return;
        }
    }
}

/// An answer that is sent as a whole, and its share of the session's memory.
struct Collected {
    response: ProxyResponse,
    body: BytesMut,
    has_body: bool,
    is_to_head: bool,
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

/// The answer is larger than one may be, or than the session has memory for.
#[derive(Debug)]
struct TooLarge;

impl Collected {
    fn new(is_to_head: bool, budget: Arc<Semaphore>) -> Self {
        let response = ProxyResponse { status: 0, headers: Vec::new(), body: Bytes::new() };
        Self { response, body: BytesMut::new(), has_body: true, is_to_head, budget, held: None }
    }

    fn finish(mut self) -> (ProxyResponse, Option<OwnedSemaphorePermit>) {
        if self.has_body {
            self.response.headers.retain(|(name, _)| name != CONTENT_LENGTH.as_str());
            self.response.headers.push((CONTENT_LENGTH.to_string(), self.body.len().to_string()));
        }
        self.response.body = self.body.freeze();
        (self.response, self.held)
    }
}

impl Answer for Collected {
    type Error = TooLarge;

    async fn head(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), TooLarge> {
        self.has_body = !self.is_to_head
            && !status.is_informational()
            && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.response.status = status.as_u16();
        self.response.headers = one_per_name(texts(&headers, latin_1));
        Ok(())
    }

    async fn data(&mut self, data: Bytes) -> Result<(), TooLarge> {
        if self.body.len() + data.len() > V2_MAX_RESPONSE {
            return Err(TooLarge);
        }
        self.body.extend_from_slice(&data);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(self.body.len().div_ceil(1024) - held).map_err(|_| TooLarge)?;
        let more = Arc::clone(&self.budget).try_acquire_many_owned(more).map_err(|_| TooLarge)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

/// The answer to a request; `None` closes the data socket.
async fn answer(
    request: ProxyRequest,
    start: &StartProxy,
    service: Service,
    budget: &Arc<Semaphore>,
) -> Option<(ProxyResponse, Option<OwnedSemaphorePermit>)> {
    let target = match request.query.as_str() {
        "" => request.path,
        query => format!("{}?{query}", request.path),
    };
    let visitor = visitor_in(&request.headers).unwrap_or(&start.client_addr).to_owned();
    let mut visit = Visit::new(service, &request.method, &target, &visitor);
    visit.summary.bytes_in = request.body.len() as u64;
    if request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(UPGRADE.as_str())) {
        let text = "the server speaks dialect 2, which cannot carry WebSocket";
        return Some((own(&mut visit, StatusCode::NOT_IMPLEMENTED, PageCode::UpgradeUnsupported, text), None));
    }
    let mut collected = Collected::new(request.method == "HEAD", Arc::clone(budget));
    let request = Request {
        method: request.method,
        target,
        headers: request.headers,
        body: exchange::whole(request.body),
        is_whole: true,
        hop: HeaderMap::new(),
    };
    let response = match exchange::serve(request, &mut visit, &mut collected).await {
        Ok(()) => return Some(collected.finish()),
        // Servers expect silence then.
        Err(Failure::Local(RelayError::LocalUnreachable { .. })) => return None,
        Err(Failure::Local(error)) => {
            let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            own(&mut visit, status, error.code(), &error.to_string())
        }
        Err(Failure::Answer(TooLarge)) => {
            let text = "the server speaks dialect 2, which cannot carry an answer of this size";
            own(&mut visit, StatusCode::BAD_GATEWAY, PageCode::ResponseTooLarge, text)
        }
    };
    Some((response, None))
}

/// An answer of the client instead of the local service's.
fn own(visit: &mut Visit, status: StatusCode, code: PageCode, text: &str) -> ProxyResponse {
    visit.failed(status.as_u16(), code);
    visit.summary.bytes_out = 0;
    let own = OwnAnswer::new(status, code, text);
    ProxyResponse { status: status.as_u16(), headers: texts(&own.headers(), latin_1), body: own.body() }
}

/// The dialect has one value per name. Lists are joined. Cookies must not be joined, so each further one gets another
/// spelling of the name, which means the same to its receiver.
fn one_per_name(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::with_capacity(headers.len());
    let mut cookies = 0;
    for (name, value) in headers {
        if name == SET_COOKIE.as_str() {
            out.push((respelled(&name, cookies), value));
            cookies += 1;
        } else if let Some((_, known)) = out.iter_mut().find(|(known, _)| *known == name) {
            known.push_str(", ");
            known.push_str(&value);
        } else {
            out.push((name, value));
        }
    }
    out
}

/// The same name with capitals where `number` has bits.
fn respelled(name: &str, number: usize) -> String {
    let mut bits = number;
    name.chars()
        .map(|c| {
            if !c.is_ascii_alphabetic() {
                return c;
            }
            let is_capital = bits & 1 == 1;
            bits >>= 1;
            if is_capital { c.to_ascii_uppercase() } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_occurs_once_and_no_value_is_lost() {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let headers =
            [("vary", "a"), ("set-cookie", "a=1"), ("vary", "b"), ("set-cookie", "b=2"), ("set-cookie", "c=3")];
        let joined = one_per_name(headers.map(pair).into());
        let expected = [("vary", "a, b"), ("set-cookie", "a=1"), ("Set-cookie", "b=2"), ("sEt-cookie", "c=3")];
        assert_eq!(joined, expected.map(pair));
    }

    #[test]
    fn a_hundred_spellings_differ() {
        let spellings: std::collections::HashSet<_> = (0..100).map(|n| respelled("set-cookie", n)).collect();
        assert_eq!(spellings.len(), 100);
        assert!(spellings.iter().all(|name| name.eq_ignore_ascii_case("set-cookie")));
    }
}
