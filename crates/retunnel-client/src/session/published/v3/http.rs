//! One request and its answer over a stream.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, StatusCode, body::Frame};
use retunnel_proto::dialect::v3::{HttpMeta, StreamEvent, StreamOpen};
use tokio::sync::mpsc;

use super::stream::{Gone, Inbox, Outbox, Stream};
use crate::{
    exchange::{
        self, Answer, Failure, Request, RequestBody,
        headers::{texts, utf_8, visitor_in},
        visit::Visit,
    },
    service::Service,
};

/// Pieces of a request's body between its queue and the local connection.
const FEED: usize = 1;

type Feed = mpsc::Sender<Result<Bytes, io::Error>>;

/// Sends an answer to the server.
struct ToServer<'a>(&'a Outbox);

impl Answer for ToServer<'_> {
    type Error = Gone;

    async fn head(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), Gone> {
        let meta = HttpMeta { status: status.as_u16(), headers: texts(&headers, utf_8) };
        self.0.message(meta.encode(), None).await
    }

    async fn data(&mut self, data: Bytes) -> Result<(), Gone> {
        self.0.bytes(data).await
    }
}

/// Serves one request.
pub(super) async fn serve(open: StreamOpen, stream: Stream, service: Service) {
    let Stream { mut inbox, outbox } = stream;
    let StreamOpen { method, path, headers, body, has_body, .. } = open;
    let visitor = visitor_in(&headers).unwrap_or_default().to_owned();
    let mut visit = Visit::new(service, &method, &path, &visitor);
    visit.summary.bytes_in = body.len() as u64;
    let (feed, body) = if has_body {
        let (feed, body) = streamed(body).await;
        (Some(feed), body)
    } else {
        (None, exchange::whole(body))
    };
    let request = Request { method, target: path, headers, body, is_whole: !has_body, hop: HeaderMap::new() };
    let (mut received, overflow) = (0, inbox.overflow());
    let mut answer = ToServer(&outbox);
    let answered = tokio::select! {
        () = overflow.cancelled() => Err(Failure::Answer(Gone::Overflow)),
        answered = exchange::serve(request, &mut visit, &mut answer) => answered,
        gone = follow(&mut inbox, feed, &mut received) => Err(Failure::Answer(gone)),
    };
    visit.summary.bytes_in += received;
    match answered {
        Ok(()) => outbox.close(None, None).await,
        Err(Failure::Answer(gone)) => outbox.gone(gone).await,
        Err(Failure::Local(error)) => outbox.reset(&error.to_string()).await,
    }
}

/// A body that arrives in pieces. `first` came with the request.
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

/// Forwards the request's body, then waits until the visitor leaves: nothing else can arrive.
async fn follow(inbox: &mut Inbox, mut feed: Option<Feed>, received: &mut u64) -> Gone {
    loop {
        let Some(event) = inbox.next().await else { return inbox.end() };
        let (StreamEvent::Data { data, fin, .. }, Some(to_local)) = (event, &feed) else {
            // An incomplete body must not look complete.
            if let Some(to_local) = feed {
                let _ = to_local.try_send(Err(io::ErrorKind::ConnectionReset.into()));
            }
            return Gone::Visitor;
        };
        *received += data.len() as u64;
        if !data.is_empty() {
            // A local service that has answered may not read the rest.
            let _ = to_local.send(Ok(data)).await;
        }
        if fin == Some(true) {
            feed = None;
        }
    }
}
