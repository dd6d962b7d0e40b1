//! One visitor's HTTP request, done with the local service: access, checks, rewriting, the request itself, counting, and
//! the answer after a failure. This is for dialects that carry requests as messages: a dialect maps its wire to
//! [`Request`] and [`Answer`]. The native link carries bytes instead ([`crate::relay`]).

pub(crate) mod headers;
mod own;
mod refusal;
mod request;
pub(crate) mod visit;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request as HttpRequest, Response, StatusCode,
    body::{Body, Incoming},
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use retunnel_proto::{
    PageCode,
    http1::{HeadLimits, response::is_chunked},
    rules,
};
use tokio::task::JoinSet;

use self::{headers::strip_hop, refusal::Refusable, visit::Visit};
pub(crate) use self::{
    own::OwnAnswer,
    request::{Request, RequestBody, whole},
};
use crate::{error::RelayError, service::Service};

/// Sends the answer to a request in a dialect.
pub(crate) trait Answer {
    /// Why the answer cannot be sent.
    type Error: Send;

    /// The head comes first, without headers that concern one connection only.
    fn head(&mut self, status: StatusCode, headers: HeaderMap) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Then the body, piece by piece.
    fn data(&mut self, data: Bytes) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why an answer was not completed.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    /// The answer cannot be sent.
    Answer(E),
    /// The local service failed.
    Local(RelayError),
}

/// Why a request was not sent to the local service, or got no answer.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The visitor gets this answer from the client.
    Answered(OwnAnswer),
    /// The local service failed.
    Local(RelayError),
}

/// Answers a request. `visit` records the outcome.
pub(crate) async fn serve<A: Answer>(
    request: Request,
    visit: &mut Visit,
    answer: &mut A,
) -> Result<(), Failure<A::Error>> {
    let exchange = match send(request, visit).await {
        Ok(exchange) => exchange,
        Err(Unsent::Answered(own)) => {
            answer.head(own.status(), own.headers()).await.map_err(Failure::Answer)?;
            return answer.data(own.body()).await.map_err(Failure::Answer);
        }
        Err(Unsent::Local(error)) => return Err(Failure::Local(error)),
    };
    let (head, mut body) = exchange.response.into_parts();
    answer.head(head.status, head.headers).await.map_err(Failure::Answer)?;
    let status = head.status.as_u16();
    let mut is_first = true;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Local(visit.local_failed(failed(error))))?;
        // The published dialects carry no trailers.
        let Ok(data) = frame.into_data() else { continue };
        if std::mem::take(&mut is_first) && rules::host_refused(status, &data) {
            visit.failed(status, PageCode::HostNotAllowed);
        }
        visit.summary.bytes_out += data.len() as u64;
        answer.data(data).await.map_err(Failure::Answer)?;
    }
    Ok(())
}

/// The local service's answer. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) response: Response<Incoming>,
    /// Moves the connection's bytes while the answer is read.
    _connection: JoinSet<()>,
}

/// Sends a request if the visitor may make it, and waits for the head of the answer.
pub(crate) async fn send(request: Request, visit: &mut Visit) -> Result<Exchange, Unsent> {
    let request = match request.checked(&visit.service.rules.basic_auth) {
        Ok(request) => request,
        Err(own) => {
            visit.failed(own.status().as_u16(), own.code());
            return Err(Unsent::Answered(own));
        }
    };
    let exchange = exchange(&visit.service, request).await.map_err(|error| Unsent::Local(visit.local_failed(error)))?;
    visit.summary.status = exchange.response.status().as_u16();
    Ok(exchange)
}

/// Why an exchange with the local service failed.
pub(crate) fn failed(error: hyper::Error) -> RelayError {
    let is_malformed = error.is_parse();
    let cause = Arc::new(error);
    if is_malformed { RelayError::InvalidAnswer(cause) } else { RelayError::AnswerCut(cause) }
}

async fn exchange(service: &Service, mut request: HttpRequest<RequestBody>) -> Result<Exchange, RelayError> {
    let public_origin =
        service.rules.local_origin.as_ref().map(|local| headers::localize(local, request.headers_mut()));
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::try_from(service.target.authority()).unwrap_or(HeaderValue::from_static("localhost"));
        request.headers_mut().insert(header::HOST, host);
    }
    let has_body = !request.body().is_end_stream();
    let local = match service.connect().await {
        Ok(local) => local,
        Err(error) => {
            service.show_failed(&headers::head_of(&request), &error);
            return Err(error);
        }
    };
    let (mut sender, driver) = http1::Builder::new()
        .title_case_headers(true)
        .max_headers(HeadLimits::RESPONSE.lines)
        .handshake(TokioIo::new(Refusable::new(local, has_body)))
        .await
        .map_err(failed)?;
    let mut connection = JoinSet::new();
    connection.spawn(async move {
        // Its failure is the failure of the answer.
        let _ = driver.with_upgrades().await;
    });
    let mut response = sender.send_request(request).await.map_err(failed)?;
    let codings = response.headers().get_all(header::TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    if is_chunked(codings).map_err(|why| RelayError::InvalidAnswer(Arc::new(why)))? {
        // A length beside chunks does not count.
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    strip_hop(response.headers_mut());
    if let (Some(local), Some(public)) = (&service.rules.local_origin, public_origin) {
        headers::restore(local, response.headers_mut(), &public);
    }
    Ok(Exchange { response, _connection: connection })
}
