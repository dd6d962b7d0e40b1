//! WebSockets over streams of a 3.x session. The wire carries messages, not bytes, so this side is the server of the
//! visitor's WebSocket (RFC 6455), and pings stay on their hop.

use std::{
    io,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{
    Sink, SinkExt, StreamExt,
    future::BoxFuture,
    stream::{SplitSink, SplitStream},
};
use retunnel_proto::{
    dialect::v3::{Assembly, MessageKind, SocketMeta, StreamEvent, StreamMode, WireVersion, chunks},
    http1::{request::RequestHead, response::ResponseHead, tokens},
    limits::{V3_MAX_FRAME_TO_V1, V3_MAX_MESSAGE},
};
use sha1_smol::Sha1;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_websockets::{CloseCode, Config, Limits, Message, ServerBuilder, WebSocketStream};

use super::{
    V3Upstream,
    http::{failure_of, meta},
    mux::Stream,
    stream_request,
};
use crate::{
    net::rewind::Rewind,
    tunnel::upstream::{Answer, Closed, Exchange, Failure, Moved, Part, Request, Sent, Soon, Trailers, Upgraded},
    upstream::values::{BAD_VALUES, response_head},
};

/// In version 1 the visitor's handshake is answered before the local service is known to agree. A refusal that comes
/// this quickly is still passed on.
const REFUSAL_WITHIN: Duration = Duration::from_millis(150);
/// How long the visitor may take to end a WebSocket that the local service ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Largest message of a visitor in version 1: it must fit a frame of the client, or the client drops its connection.
const MAX_MESSAGE_V1: usize = V3_MAX_FRAME_TO_V1 - 1024;
/// Longest reason of a closing frame, in bytes (RFC 6455, 5.5).
const MAX_REASON: usize = 123;
/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The local service's answer to a handshake.
enum Answered {
    Accepted { subprotocol: Option<String>, first: Option<StreamEvent> },
    Refused { status: u16, headers: Vec<(String, String)> },
}

/// Opens a stream for a handshake.
pub(super) async fn exchange<'a>(upstream: &V3Upstream, request: Request<'a>) -> Result<SocketExchange<'a>, Failure> {
    let Request { head, visitor, .. } = request;
    let key = key_of(head)?;
    let stream = upstream.open(stream_request(head, visitor, StreamMode::WebSocket, Bytes::new(), false)).await?;
    Ok(SocketExchange { stream, request: head, key, first: Mutex::default() })
}

/// One WebSocket on its stream.
pub(super) struct SocketExchange<'a> {
    stream: Stream,
    request: &'a RequestHead,
    key: Bytes,
    /// Arrived before the handshake was answered.
    first: Mutex<Option<StreamEvent>>,
}

impl SocketExchange<'_> {
    fn first(&self) -> MutexGuard<'_, Option<StreamEvent>> {
        self.first.lock().expect("no code panics while it holds the event")
    }
}

impl Exchange for SocketExchange<'_> {
    fn send(&self, _: Bytes, _: Option<Trailers>) -> Soon<'_, Result<(), Closed>> {
        Soon::now(Ok(()))
    }

    fn answer(&self) -> Soon<'_, Result<Answer, Failure>> {
        Soon::later(async move {
            let answered = match self.stream.version() {
                WireVersion::One => refused_at_once(&self.stream).await?,
                WireVersion::Two => answer(&self.stream).await?,
            };
            let head = match answered {
                Answered::Refused { status, headers } => refusal(status, &headers),
                Answered::Accepted { subprotocol, first } => {
                    *self.first() = first;
                    let subprotocol = match self.stream.version() {
                        WireVersion::One => only_offer(self.request),
                        WireVersion::Two => subprotocol,
                    };
                    agreement(&self.key, subprotocol.as_deref())
                }
            };
            let head = head.ok_or(Failure::LocalInvalidResponse(BAD_VALUES))?;
            let end = (head.status != 101).then(Trailers::new);
            Ok(Answer::Final(head, Part { payload: Bytes::new(), end }))
        })
    }

    fn receive(&self) -> Soon<'_, Result<Part, Failure>> {
        // A refusal has no body.
        Soon::now(Err(Failure::Cut))
    }

    fn upgraded<'a>(&'a self, visitor: Upgraded<'a>, moved: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        let first = self.first().take();
        Box::pin(async move {
            let gone = |Cut| io::Error::other("the visitor or the client is gone");
            relay(visitor, &self.stream, first, moved).await.map_err(gone)
        })
    }

    fn finish(self: Box<Self>, _: Sent) {}
}

/// One side is gone before both have said goodbye.
struct Cut;

/// The key of a handshake that RFC 6455 allows.
fn key_of(head: &RequestHead) -> Result<Bytes, Failure> {
    let upgrade = head.upgrade.as_deref().unwrap_or_default();
    if !tokens(std::iter::once(upgrade)).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
        return Err(Failure::UpgradeUnsupported);
    }
    let key = head.header("sec-websocket-key").unwrap_or_default();
    if &head.method[..] != b"GET" || !BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(Failure::BadRequest("the WebSocket handshake has no valid key"));
    }
    if head.header("sec-websocket-version") != Some(b"13") {
        return Err(Failure::BadRequest("the WebSocket handshake is not of version 13"));
    }
    Ok(Bytes::copy_from_slice(key))
}

async fn answer(stream: &Stream) -> Result<Answered, Failure> {
    match SocketMeta::decode(&meta(stream).await?) {
        Ok(SocketMeta::Accepted { subprotocol }) => Ok(Answered::Accepted { subprotocol, first: None }),
        Ok(SocketMeta::Refused { status, headers, .. }) => Ok(Answered::Refused { status, headers }),
        Err(_) => Err(Failure::LocalInvalidResponse("the client's report of it cannot be read")),
    }
}

/// Version 1 reports refusals only, as a reset with the status in its text.
async fn refused_at_once(stream: &Stream) -> Result<Answered, Failure> {
    let first = match timeout(REFUSAL_WITHIN, stream.next()).await {
        Err(_) => None,
        Ok(Err(_)) => return Err(Failure::Lost),
        Ok(Ok(StreamEvent::Reset { reason })) => {
            let status = reason.split_once("HTTP ").and_then(|(_, status)| status.get(..3)?.parse().ok());
            return match status {
                Some(status) => Ok(Answered::Refused { status, headers: Vec::new() }),
                None => Err(failure_of(reason)),
            };
        }
        Ok(Ok(event)) => Some(event),
    };
    Ok(Answered::Accepted { subprotocol: None, first })
}

/// The subprotocol, if the visitor offers only one. Version 1 does not report which one was chosen, and browsers fail when
/// none of their offers is.
fn only_offer(head: &RequestHead) -> Option<String> {
    let mut offers = tokens(head.headers.all("sec-websocket-protocol"));
    let only = offers.next().filter(|_| offers.next().is_none())?;
    String::from_utf8(only.to_vec()).ok()
}

/// The local service's refusal. The wire carries its head but not its body.
fn refusal(status: u16, headers: &[(String, String)]) -> Option<ResponseHead> {
    const OF_THE_BODY: [&str; 4] = ["content-length", "content-encoding", "content-type", "transfer-encoding"];
    let kept = headers.iter().filter(|(name, _)| !OF_THE_BODY.iter().any(|known| name.eq_ignore_ascii_case(known)));
    let length = (!matches!(status, 204 | 304)).then_some(0);
    response_head(status, kept.map(|(name, value)| (name, value)), length, false).filter(|head| head.status >= 200)
}

/// The 101 for a handshake.
fn agreement(key: &[u8], subprotocol: Option<&str>) -> Option<ResponseHead> {
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(GUID);
    let accept = BASE64.encode(&digest.digest().bytes());
    let is_token = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    let headers = [("Upgrade", Some("websocket")), ("Sec-WebSocket-Accept", Some(accept.as_str()))];
    let headers = headers.into_iter().chain([("Sec-WebSocket-Protocol", subprotocol.filter(is_token))]);
    response_head(101, headers.filter_map(|(name, value)| Some((name, value?))), None, false)
}

/// Who ended a WebSocket.
enum End {
    Visitor,
    LocalService,
}

async fn relay(visitor: Upgraded<'_>, stream: &Stream, first: Option<StreamEvent>, moved: &Moved) -> Result<(), Cut> {
    let max = if stream.version() == WireVersion::One { MAX_MESSAGE_V1 } else { V3_MAX_MESSAGE };
    let Upgraded { socket, received } = visitor;
    let socket = ServerBuilder::new()
        .config(Config::default().frame_size(usize::MAX))
        .limits(Limits::default().max_payload_len(Some(max)))
        .serve(Rewind::new(received.freeze(), socket));
    let (mut to_visitor, mut from_visitor) = socket.split();
    // The directions are apart: one that waits for its reader must not hold the other up.
    let end = tokio::select! {
        end = from_visitor_to_client(&mut from_visitor, stream, moved) => end?,
        end = from_client_to_visitor(&mut to_visitor, stream, first, moved) => end?,
    };
    let _ = timeout(CLOSE_WITHIN, async {
        let _ = to_visitor.flush().await;
        if matches!(end, End::LocalService) {
            while let Some(Ok(_)) = from_visitor.next().await {}
        }
    })
    .await;
    Ok(())
}

async fn from_visitor_to_client<IO>(
    from_visitor: &mut SplitStream<WebSocketStream<IO>>,
    stream: &Stream,
    moved: &Moved,
) -> Result<End, Cut>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = match from_visitor.next().await {
            Some(Ok(message)) => message,
            Some(Err(tokio_websockets::Error::PayloadTooLong { .. })) => {
                stream.close(Some(CloseCode::MESSAGE_TOO_BIG.into()), Some("the message is too large".into()));
                return Ok(End::Visitor);
            }
            Some(Err(tokio_websockets::Error::Protocol(_))) => {
                stream.close(Some(CloseCode::PROTOCOL_ERROR.into()), None);
                return Ok(End::Visitor);
            }
            Some(Err(_)) | None => {
                stream.close(Some(CloseCode::GOING_AWAY.into()), Some("the visitor is gone".into()));
                return Err(Cut);
            }
        };
        if let Some((code, reason)) = message.as_close() {
            // A visitor that sends no code reports no error.
            let code = if code.is_reserved() { CloseCode::NORMAL_CLOSURE } else { code };
            stream.close(Some(code.into()), Some(reason.to_owned()));
            return Ok(End::Visitor);
        }
        let kind = match message.is_text() {
            true => MessageKind::Text,
            false if message.is_binary() => MessageKind::Binary,
            false => continue,
        };
        let payload = Bytes::from(message.into_payload());
        moved.add_up(payload.len() as u64);
        match stream.version() {
            WireVersion::One => stream.send(payload, Some(kind), None).await.map_err(|_| Cut)?,
            WireVersion::Two => {
                for (chunk, fin) in chunks(payload) {
                    stream.send(chunk, Some(kind), Some(fin)).await.map_err(|_| Cut)?;
                }
            }
        }
    }
}

async fn from_client_to_visitor<IO>(
    to_visitor: &mut SplitSink<WebSocketStream<IO>, Message>,
    stream: &Stream,
    first: Option<StreamEvent>,
    moved: &Moved,
) -> Result<End, Cut>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut assembly = Assembly::new(V3_MAX_MESSAGE);
    let mut text = false;
    let mut ready = first;
    loop {
        let event = match ready.take().or_else(|| stream.try_next()) {
            Some(event) => event,
            None => {
                // Nothing more for now: what was gathered leaves.
                to_visitor.flush().await.map_err(|_| Cut)?;
                stream.next().await.map_err(|_| Cut)?
            }
        };
        match event {
            StreamEvent::Data { data, kind, fin } => {
                if assembly.is_empty() {
                    text = kind == Some(MessageKind::Text);
                }
                let message = match assembly.push(data, fin) {
                    Ok(None) => continue,
                    Ok(Some(message)) if text && std::str::from_utf8(&message).is_err() => {
                        let code = CloseCode::INVALID_FRAME_PAYLOAD_DATA;
                        stream.close(Some(code.into()), None);
                        return close(to_visitor, code, "").await;
                    }
                    Ok(Some(message)) => message,
                    Err(_) => {
                        let code = CloseCode::MESSAGE_TOO_BIG;
                        stream.close(Some(code.into()), None);
                        return close(to_visitor, code, "").await;
                    }
                };
                moved.add_down(message.len() as u64);
                let message = if text { Message::text(message) } else { Message::binary(message) };
                to_visitor.feed(message).await.map_err(|_| Cut)?;
            }
            StreamEvent::Close { code, reason } => {
                return close(to_visitor, close_code(code), reason.as_deref().unwrap_or_default()).await;
            }
            StreamEvent::Reset { .. } => return close(to_visitor, CloseCode::INTERNAL_SERVER_ERROR, "").await,
        }
    }
}

/// A code that may be on the wire. What may not is the local service's failure, or none at all.
fn close_code(code: Option<u16>) -> CloseCode {
    match code {
        None | Some(1005) => CloseCode::NORMAL_CLOSURE,
        Some(code) => CloseCode::try_from(code)
            .ok()
            .filter(|code| !code.is_reserved())
            .unwrap_or(CloseCode::INTERNAL_SERVER_ERROR),
    }
}

async fn close<S>(to_visitor: &mut S, code: CloseCode, reason: &str) -> Result<End, Cut>
where
    S: Sink<Message> + Unpin,
{
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    to_visitor.send(Message::close(Some(code), reason)).await.map_err(|_| Cut)?;
    Ok(End::LocalService)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreement_is_that_of_the_standard() {
        let head = |subprotocol| agreement(b"dGhlIHNhbXBsZSBub25jZQ==", subprotocol).expect("a head");
        let accept = head(None).headers.get("sec-websocket-accept").map(<[u8]>::to_vec);
        assert_eq!(accept.as_deref(), Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
        assert_eq!(head(Some("chat")).headers.get("sec-websocket-protocol"), Some(&b"chat"[..]));
        assert_eq!(head(Some("a\r\nSet-Cookie: x")).headers.iter().count(), 2);
    }

    #[test]
    fn codes_that_may_not_be_sent_are_replaced() {
        for (given, sent) in [(None, 1000), (Some(1005), 1000), (Some(1006), 1011), (Some(7), 1011), (Some(4001), 4001)]
        {
            assert_eq!(u16::from(close_code(given)), sent);
        }
    }
}
