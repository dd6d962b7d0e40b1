//! Data sockets: `RegProxy`, then for each visitor `StartProxy`, the whole request, and the whole answer.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, SET_COOKIE, UPGRADE},
};
use retunnel_proto::{
    PageCode,
    dialect::v2,
    limits::{V2_MAX_MESSAGE_TO_CLIENT, V2_MAX_RESPONSE},
    message::{ClientMessage, ProxyRequest, ProxyResponse, RegProxy, ServerMessage, StartProxy},
    rules,
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
        self,
        visit::{Visit, visitor_in},
    },
    service::Service,
    transport::websocket::{self, WebSocket},
};

/// How long a server may keep a data socket without a request.
const IDLE: Duration = Duration::from_secs(300);
/// Largest message of a server. The published clients take less.
const MAX_REQUEST: usize = 2 * V2_MAX_MESSAGE_TO_CLIENT;

/// A request on its data socket.
pub(super) struct Arrival {
    socket: WebSocket,
    pub(super) start: StartProxy,
    request: ProxyRequest,
}

/// Opens a data socket and waits for its first request.
pub(super) async fn open(opener: Arc<Opener>) -> Option<Arrival> {
    let opened = opener.dialer.websocket("/api/v1/ws/proxy", opener.token.as_ref(), MAX_REQUEST).await;
    let mut socket = opened.inspect_err(|error| debug!(%error, "no data socket")).ok()?;
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
                    Ok(_) => debug!("a request before StartProxy"),
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

/// Answers a request; gives its socket back for the next one.
pub(super) async fn serve(mut arrival: Arrival, served: Service, opener: Arc<Opener>) -> Option<Arrival> {
    let request = std::mem::take(&mut arrival.request);
    let answered = tokio::select! {
        answered = answer(request, &arrival.start, served, &opener.answers) => answered,
        // The server closes the socket when the visitor has left.
        () = gone(&mut arrival.socket) => None,
    };
    let Some((response, _budget)) = answered else {
        // Without an answer, which servers turn into 502.
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

/// The answer and its share of the session's memory; `None` closes the data socket.
async fn answer(
    request: ProxyRequest,
    start: &StartProxy,
    served: Service,
    budget: &Arc<Semaphore>,
) -> Option<(ProxyResponse, Option<OwnedSemaphorePermit>)> {
    let target = match request.query.as_str() {
        "" => request.path,
        query => format!("{}?{query}", request.path),
    };
    let visitor = visitor_in(&request.headers).unwrap_or(&start.client_addr).to_owned();
    let mut visit = Visit::new(served, &request.method, &target, &visitor);
    visit.summary.bytes_in = request.body.len() as u64;
    let wants_upgrade = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(UPGRADE.as_str()));
    if wants_upgrade {
        let text = "the server speaks dialect 2, which cannot carry WebSocket";
        return Some((own(&mut visit, StatusCode::NOT_IMPLEMENTED, PageCode::UpgradeUnsupported, text), None));
    }
    let made = exchange::request(&request.method, &target, &request.headers, exchange::whole(request.body));
    let mut outgoing = match made {
        Ok(outgoing) => outgoing,
        Err(reason) => return Some((own(&mut visit, StatusCode::BAD_REQUEST, PageCode::BadRequest, reason), None)),
    };
    // The body is here as a whole; its length is what it is.
    outgoing.headers_mut().remove(CONTENT_LENGTH);
    let exchange = match exchange::send(&visit.served, outgoing).await {
        Ok(exchange) => exchange,
        Err(error) => return failed(&mut visit, &error).map(|response| (response, None)),
    };
    let (mut head, body) = exchange.response.into_parts();
    let has_body = exchange::has_body(&request.method, head.status);
    let (body, permit) = match collect(body, budget).await {
        Ok(collected) => collected,
        Err(Uncollected::Failed(error)) => {
            return failed(&mut visit, &exchange::failed(error)).map(|response| (response, None));
        }
        Err(Uncollected::TooLarge) => {
            let text = "the server speaks dialect 2, which cannot carry an answer of this size";
            return Some((own(&mut visit, StatusCode::BAD_GATEWAY, PageCode::ResponseTooLarge, text), None));
        }
    };
    if has_body {
        head.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    visit.summary.status = head.status.as_u16();
    if rules::host_refused(head.status.as_u16(), &body) {
        visit.failed(head.status.as_u16(), PageCode::HostNotAllowed);
    }
    visit.summary.bytes_out = body.len() as u64;
    let headers = one_per_name(exchange::answer_headers(&mut head.headers, exchange::latin_1));
    Some((ProxyResponse { status: head.status.as_u16(), headers, body }, permit))
}

/// What this side answers in the place of the local service.
fn own(visit: &mut Visit, status: StatusCode, code: PageCode, text: &str) -> ProxyResponse {
    visit.failed(status.as_u16(), code);
    let headers = [("content-type", "text/plain; charset=utf-8"), ("x-retunnel-error", code.as_str())];
    ProxyResponse {
        status: status.as_u16(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        body: format!("{text} [{}]\n", code.as_str()).into(),
    }
}

/// A local service that cannot be reached is reported by silence, as servers expect it.
fn failed(visit: &mut Visit, error: &RelayError) -> Option<ProxyResponse> {
    debug!(tunnel = visit.served.name, %error, "no answer of the local service");
    if matches!(error, RelayError::LocalUnreachable { .. }) {
        visit.served.unreachable(error);
        visit.failed(502, PageCode::LocalUnreachable);
        return None;
    }
    Some(own(visit, StatusCode::BAD_GATEWAY, error.code(), &error.to_string()))
}

enum Uncollected {
    TooLarge,
    Failed(hyper::Error),
}

/// A whole body within the bounds of one answer and of the session.
async fn collect(
    mut body: Incoming,
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Uncollected> {
    let mut collected = BytesMut::new();
    let mut permit: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        // Trailers have no place in this dialect.
        let Ok(data) = frame.map_err(Uncollected::Failed)?.into_data() else { continue };
        if collected.len() + data.len() > V2_MAX_RESPONSE {
            return Err(Uncollected::TooLarge);
        }
        collected.extend_from_slice(&data);
        let held = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(collected.len().div_ceil(1024) - held).map_err(|_| Uncollected::TooLarge)?;
        let more = Arc::clone(budget).try_acquire_many_owned(more).map_err(|_| Uncollected::TooLarge)?;
        match &mut permit {
            Some(permit) => permit.merge(more),
            None => permit = Some(more),
        }
    }
    Ok((collected.freeze(), permit))
}

/// The dialect has one value per name. Lists are joined; a cookie's values must not be, so that each further one gets
/// another spelling of the name, which means the same to the receiver.
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

/// The same name with the capitals that the bits of `number` say.
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
