//! One request and its answer over a stream.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{StatusCode, body::Frame, header::CONTENT_LENGTH};
use retunnel_proto::{
    PageCode,
    dialect::v3::{HttpMeta, StreamEvent, StreamOpen},
    rules,
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    access,
    stream::{Gone, Inbox, Outbox, Stream},
};
use crate::{
    error::RelayError,
    exchange::{
        self, RequestBody,
        visit::{Visit, visitor_in},
    },
    service::Service,
};

/// Pieces of a request's body between its queue and the local connection.
const FEED: usize = 1;

type Feed = mpsc::Sender<Result<Bytes, io::Error>>;

/// Why an answer was not completed.
enum Failure {
    Gone(Gone),
    Local(RelayError),
}

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Self {
        Self::Gone(gone)
    }
}

/// Serves one request.
pub(super) async fn serve(mut open: StreamOpen, stream: Stream, served: Service) {
    let Stream { mut inbox, outbox } = stream;
    let visitor = visitor_in(&open.headers).unwrap_or_default().to_owned();
    let mut visit = Visit::new(served, &open.method, &open.path, &visitor);
    visit.summary.bytes_in = open.body.len() as u64;
    let (feed, body) = if open.has_body {
        let (feed, body) = streamed(std::mem::take(&mut open.body)).await;
        (Some(feed), body)
    } else {
        (None, exchange::whole(std::mem::take(&mut open.body)))
    };
    let (mut received, overflow) = (0, inbox.overflow());
    let answered = tokio::select! {
        () = overflow.cancelled() => Err(Gone::Overflow.into()),
        answered = answer(open, body, &outbox, &mut visit) => answered,
        gone = follow(&mut inbox, feed, &mut received) => Err(gone.into()),
    };
    visit.summary.bytes_in += received;
    match answered {
        Ok(()) => outbox.close(None, None).await,
        Err(Failure::Gone(gone)) => outbox.gone(gone).await,
        Err(Failure::Local(error)) => {
            debug!(tunnel = visit.served.name, %error, "no answer of the local service");
            if matches!(error, RelayError::LocalUnreachable { .. }) {
                visit.served.unreachable(&error);
            }
            visit.failed(502, error.code());
            outbox.reset(&error.to_string()).await;
        }
    }
}

/// A body that comes in pieces. `first` is what came with the request.
async fn streamed(first: Bytes) -> (Feed, RequestBody) {
    let (feed, pieces) = mpsc::channel(FEED);
    if !first.is_empty() {
        let _ = feed.send(Ok(first)).await;
    }
    let frames = stream::unfold(pieces, |mut pieces| async move {
        let piece: Result<Bytes, io::Error> = pieces.recv().await?;
        Some((piece.map(Frame::data), pieces))
    });
    (feed, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

/// Passes the request's body on, and then waits for the visitor to leave: nothing else is left to come.
async fn follow(inbox: &mut Inbox, mut feed: Option<Feed>, received: &mut u64) -> Gone {
    loop {
        let Some(event) = inbox.next().await else { return inbox.end() };
        let (StreamEvent::Data { data, fin, .. }, Some(to_local)) = (event, &feed) else {
            // A body that was cut must not look complete.
            if let Some(to_local) = feed {
                let _ = to_local.try_send(Err(io::ErrorKind::ConnectionReset.into()));
            }
            return Gone::Visitor;
        };
        *received += data.len() as u64;
        if !data.is_empty() {
            // A local service that has its answer may not want the rest.
            let _ = to_local.send(Ok(data)).await;
        }
        if fin == Some(true) {
            feed = None;
        }
    }
}

async fn answer(open: StreamOpen, body: RequestBody, outbox: &Outbox, visit: &mut Visit) -> Result<(), Failure> {
    let StreamOpen { method, path, mut headers, has_body, .. } = open;
    if !access::is_granted(&visit.served.rules.basic_auth, &mut headers) {
        visit.failed(401, PageCode::Unauthorized);
        return own(outbox, StatusCode::UNAUTHORIZED, &[access::CHALLENGE], "Unauthorized").await;
    }
    let mut request = match exchange::request(&method, &path, &headers, body) {
        Ok(request) => request,
        Err(reason) => {
            visit.failed(400, PageCode::BadRequest);
            let headers = [("x-retunnel-error", PageCode::BadRequest.as_str())];
            return own(outbox, StatusCode::BAD_REQUEST, &headers, &format!("{reason} [bad_request]\n")).await;
        }
    };
    if !has_body {
        // The body is here as a whole; its length is what it is.
        request.headers_mut().remove(CONTENT_LENGTH);
    }
    let exchange = exchange::send(&visit.served, request).await.map_err(Failure::Local)?;
    let (mut head, mut body) = exchange.response.into_parts();
    visit.summary.status = head.status.as_u16();
    let headers = exchange::answer_headers(&mut head.headers, exchange::utf_8);
    let meta = HttpMeta { status: head.status.as_u16(), headers };
    outbox.message(meta.encode(), None).await?;
    let status = head.status.as_u16();
    let mut is_first = true;
    while let Some(frame) = body.frame().await {
        // Trailers have no place in this dialect.
        let Ok(data) = frame.map_err(|error| Failure::Local(exchange::failed(error)))?.into_data() else { continue };
        if std::mem::take(&mut is_first) && rules::host_refused(status, &data) {
            visit.failed(status, PageCode::HostNotAllowed);
        }
        visit.summary.bytes_out += data.len() as u64;
        outbox.bytes(data).await?;
    }
    Ok(())
}

/// What this side answers in the place of the local service.
async fn own(outbox: &Outbox, status: StatusCode, headers: &[(&str, &str)], text: &str) -> Result<(), Failure> {
    let mut all = vec![("content-type".to_owned(), "text/plain; charset=utf-8".to_owned())];
    all.push(("content-length".to_owned(), text.len().to_string()));
    all.extend(headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
    outbox.message(HttpMeta { status: status.as_u16(), headers: all }.encode(), None).await?;
    outbox.bytes(Bytes::copy_from_slice(text.as_bytes())).await?;
    Ok(())
}
