//! One WebSocket over a stream: the client does the handshake with the local service, then messages go both ways.

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use hyper::{
    StatusCode,
    header::{self, HeaderMap, HeaderValue},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use retunnel_proto::{
    PageCode,
    dialect::v3::{Assembly, MessageKind, SocketMeta, StreamEvent, StreamOpen, WireVersion},
    limits::V3_MAX_MESSAGE,
};
use sha1_smol::Sha1;
use tokio::time::{Duration, timeout};
use tokio_websockets::{ClientBuilder, CloseCode, Config, Limits, Message, WebSocketStream};
use tracing::debug;

use super::stream::{Gone, Inbox, Outbox, Stream};
use crate::{
    error::RelayError,
    exchange::{
        self, Request, Unsent,
        headers::{texts, utf_8, visitor_in},
        visit::Visit,
    },
    service::Service,
};

/// How long the local service may take for the handshake.
const UPGRADE_WITHIN: Duration = Duration::from_secs(30);
/// How long the local service may take for the closing handshake.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes that may wait for one write.
const BATCH: usize = 64 * 1024;
/// Longest reason of a close, in bytes (RFC 6455, 5.5).
const MAX_REASON: usize = 123;
/// Headers of the handshake that this side sets itself.
const OWN_HEADERS: [&str; 5] = [
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-accept",
    "content-length",
];

type Local = WebSocketStream<TokioIo<Upgraded>>;

/// The answer to the handshake.
enum Handshake {
    Accepted { local: Box<Local>, subprotocol: Option<String> },
    Refused { status: StatusCode, headers: HeaderMap },
}

/// Serves one WebSocket.
pub(super) async fn serve(open: StreamOpen, stream: Stream, service: Service) {
    let Stream { mut inbox, outbox } = stream;
    let visitor = visitor_in(&open.headers).unwrap_or_default().to_owned();
    let mut visit = Visit::new(service, "GET", &open.path, &visitor);
    let upgraded = timeout(UPGRADE_WITHIN, upgrade(open, &mut visit)).await;
    let (local, subprotocol) = match upgraded.unwrap_or(Err(Failed::Handshake("no answer in time"))) {
        Ok(Handshake::Accepted { local, subprotocol }) => (*local, subprotocol),
        Ok(Handshake::Refused { status, headers }) => return refuse(&outbox, status, &headers).await,
        Err(Failed::Local(error)) => return outbox.reset(&error.to_string()).await,
        Err(Failed::Handshake(reason)) => {
            visit.failed(502, PageCode::LocalInvalidResponse);
            return outbox.reset(reason).await;
        }
    };
    visit.summary.status = 101;
    if outbox.version == WireVersion::Two {
        let meta = SocketMeta::Accepted { subprotocol };
        if outbox.message(meta.encode(), None).await.is_err() {
            return;
        }
    }
    relay(local, &mut inbox, &outbox, &mut visit).await;
}

/// Reports a refused handshake. Its body is not sent. In version 1 only the reason can carry the status.
async fn refuse(outbox: &Outbox, status: StatusCode, headers: &HeaderMap) {
    if outbox.version == WireVersion::One {
        return outbox.reset(&format!("server rejected WebSocket connection: HTTP {}", status.as_u16())).await;
    }
    let reason = status.canonical_reason().unwrap_or_default().to_owned();
    let mut headers = texts(headers, utf_8);
    headers.retain(|(name, _)| name != header::CONTENT_LENGTH.as_str());
    let meta = SocketMeta::Refused { status: status.as_u16(), reason, headers };
    if outbox.message(meta.encode(), None).await.is_ok() {
        outbox.close(None, None).await;
    }
}

/// Why there is no WebSocket.
enum Failed {
    Local(RelayError),
    /// The local service answered, but not with a handshake.
    Handshake(&'static str),
}

/// The handshake with the local service.
async fn upgrade(open: StreamOpen, visit: &mut Visit) -> Result<Handshake, Failed> {
    let key = BASE64.encode(&rand::random::<[u8; 16]>());
    let mut hop = HeaderMap::new();
    hop.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    hop.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    hop.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    hop.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(&key).expect("Base64 is ASCII"));
    let mut headers = open.headers;
    headers.retain(|(name, _)| !OWN_HEADERS.iter().any(|own| name.eq_ignore_ascii_case(own)));
    let body = exchange::whole(Bytes::new());
    let request = Request { method: "GET".into(), target: open.path, headers, body, is_whole: true, hop };
    let mut response = match exchange::send(request, visit).await {
        Ok(exchange) => exchange,
        Err(Unsent::Answered(own)) => return Ok(Handshake::Refused { status: own.status(), headers: own.headers() }),
        Err(Unsent::Local(error)) => return Err(Failed::Local(error)),
    };
    let response = &mut response.response;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Handshake::Refused { status: response.status(), headers: std::mem::take(response.headers_mut()) });
    }
    let subprotocol = text(response.headers(), header::SEC_WEBSOCKET_PROTOCOL);
    if text(response.headers(), header::SEC_WEBSOCKET_ACCEPT) != Some(accepted(&key)) {
        return Err(Failed::Handshake("the local service did not accept the WebSocket handshake"));
    }
    let upgraded = hyper::upgrade::on(response).await;
    let upgraded = upgraded.map_err(|error| Failed::Local(visit.local_failed(exchange::failed(error))))?;
    let local = ClientBuilder::new()
        .limits(Limits::default().max_payload_len(Some(V3_MAX_MESSAGE)))
        .config(Config::default().flush_threshold(BATCH))
        .take_over(TokioIo::new(upgraded));
    Ok(Handshake::Accepted { local: Box::new(local), subprotocol })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// RFC 6455, 1.3.
fn accepted(key: &str) -> String {
    let mut sha = Sha1::new();
    sha.update(key.as_bytes());
    sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(&sha.digest().bytes())
}

/// How a WebSocket ended.
enum End {
    /// The local service closed it.
    Local {
        code: Option<u16>,
        reason: Option<String>,
    },
    /// The visitor closed it; the local service was notified.
    Visitor,
    Gone(Gone),
    Failed(String),
}

async fn relay(local: Local, inbox: &mut Inbox, outbox: &Outbox, visit: &mut Visit) {
    let (mut sink, mut source) = local.split();
    let (summary, overflow) = (&mut visit.summary, inbox.overflow());
    let end = tokio::select! {
        () = overflow.cancelled() => End::Gone(Gone::Overflow),
        end = to_local(inbox, &mut sink, &mut summary.bytes_in) => end,
        end = to_server(&mut source, outbox, &mut summary.bytes_out) => end,
    };
    match end {
        End::Local { code, reason } => outbox.close(code, reason).await,
        End::Visitor => {}
        End::Gone(gone) => return outbox.gone(gone).await,
        End::Failed(reason) => {
            debug!(tunnel = visit.service.name, reason, "WebSocket failed");
            return outbox.reset(&reason).await;
        }
    }
    // The closing handshake with the local service is completed.
    let _ = timeout(CLOSE_WITHIN, async {
        let _ = sink.flush().await;
        while let Some(Ok(_)) = source.next().await {}
    })
    .await;
}

async fn to_local(inbox: &mut Inbox, sink: &mut SplitSink<Local, Message>, count: &mut u64) -> End {
    let mut assembly = Assembly::new(V3_MAX_MESSAGE);
    let mut kind = None;
    loop {
        let (message, is_last) = match inbox.next().await {
            Some(StreamEvent::Data { data, kind: named, fin }) => {
                *count += data.len() as u64;
                if assembly.is_empty() {
                    kind = named;
                }
                match assembly.push(data, fin) {
                    Ok(None) => continue,
                    Ok(Some(message)) if kind == Some(MessageKind::Text) => {
                        if std::str::from_utf8(&message).is_err() {
                            return End::Failed("a text message is not UTF-8".into());
                        }
                        (Message::text(message), false)
                    }
                    Ok(Some(message)) => (Message::binary(message), false),
                    Err(error) => return End::Failed(error.to_string()),
                }
            }
            Some(StreamEvent::Close { code, reason }) => (closing(code, &reason.unwrap_or_default()), true),
            Some(StreamEvent::Reset { .. }) => (closing(Some(1011), ""), true),
            None => return End::Gone(inbox.end()),
        };
        match sink.send(message).await {
            Ok(()) if is_last => return End::Visitor,
            Ok(()) => {}
            Err(_) if is_last => return End::Visitor,
            Err(error) => return End::Failed(error.to_string()),
        }
    }
}

/// A close message with a code that may be sent.
fn closing(code: Option<u16>, reason: &str) -> Message {
    let code = code.and_then(|code| CloseCode::try_from(code).ok()).filter(|code| !code.is_reserved());
    match code {
        Some(code) => Message::close(Some(code), &reason[..reason.floor_char_boundary(MAX_REASON)]),
        None => Message::close(None, ""),
    }
}

async fn to_server(source: &mut SplitStream<Local>, outbox: &Outbox, count: &mut u64) -> End {
    loop {
        let message = match source.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return End::Failed(error.to_string()),
            None => return End::Failed("the local service ended the connection without a close".into()),
        };
        if let Some((code, reason)) = message.as_close() {
            let code = (code != CloseCode::NO_STATUS_RECEIVED).then(|| u16::from(code));
            let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
            return End::Local { code, reason };
        }
        let kind = if message.is_text() { MessageKind::Text } else { MessageKind::Binary };
        if !message.is_text() && !message.is_binary() {
            // Pings are answered on each connection separately.
            continue;
        }
        let data = Bytes::from(message.into_payload());
        *count += data.len() as u64;
        if let Err(gone) = outbox.message(data, Some(kind)).await {
            return End::Gone(gone);
        }
    }
}
