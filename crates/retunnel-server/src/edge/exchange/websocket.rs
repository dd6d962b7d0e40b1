//! WebSockets over streams of a 3.x session. The wire carries messages, not bytes, so the edge plays the server's part of
//! the visitor's WebSocket itself (RFC 6455) and pings stay on their hop.

use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use data_encoding::BASE64;
use futures_util::{
    Sink, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use retunnel_proto::{
    dialect::v3::{Assembly, MessageKind, SocketMeta, StreamEvent, StreamMode, WireVersion, chunks},
    limits::{V3_MAX_FRAME_TO_V1, V3_MAX_MESSAGE},
};
use sha1_smol::Sha1;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_websockets::{CloseCode, Config, Limits, Message, ServerBuilder, WebSocketStream};

use super::{
    Failure, Progress, both,
    v3::{meta, open, reset_error},
    watch,
};
use crate::{
    control::v3::{Stream, V3Upstream},
    core::Core,
    edge::{
        connection::Connection,
        http1::{
            Framing,
            request::RequestHead,
            tokens,
            write::{self, Answer, Visitor},
        },
        page::EdgeError,
        rewind::Rewind,
    },
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

/// Passes a handshake on and, once both sides agree, messages; says whether a request may follow on the connection.
pub(super) async fn exchange(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    upstream: &V3Upstream,
    visitor: Visitor<'_>,
    progress: &Progress,
) -> Result<bool, Failure> {
    let key = key_of(head).map_err(Failure::Answer)?;
    progress.request_done.store(true, Relaxed);
    let request = write::stream_request(head, visitor, StreamMode::WebSocket, Bytes::new(), false);
    let stream = open(upstream, request).await?;
    let answered = {
        let Connection { socket, received, .. } = &mut *connection;
        let (mut from_visitor, _) = socket.split();
        let answer = async {
            match stream.version() {
                WireVersion::One => refused_at_once(&stream).await,
                WireVersion::Two => answer(&stream).await,
            }
        };
        both(pin!(watch(&mut from_visitor, received)), pin!(answer), progress).await?
    };
    match answered {
        Answered::Refused { status, headers } => refuse(core, connection, head, status, &headers, progress).await,
        Answered::Accepted { subprotocol, first } => {
            let subprotocol = match stream.version() {
                WireVersion::One => only_offer(head),
                WireVersion::Two => subprotocol,
            };
            connection.socket.write_all(&agreement(&key, subprotocol.as_deref())).await.map_err(|_| Failure::Cut)?;
            progress.set_answered(101);
            relay(connection, &stream, first, progress).await?;
            Ok(false)
        }
    }
}

/// The key of a handshake that RFC 6455 allows.
fn key_of(head: &RequestHead) -> Result<Bytes, EdgeError> {
    let upgrade = head.upgrade.as_deref().unwrap_or_default();
    if !tokens(std::iter::once(upgrade)).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
        return Err(EdgeError::UpgradeUnsupported);
    }
    let key = head.header("sec-websocket-key").unwrap_or_default();
    if &head.method[..] != b"GET" || !BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(EdgeError::BadRequest("the WebSocket handshake has no valid key"));
    }
    if head.header("sec-websocket-version") != Some(b"13") {
        return Err(EdgeError::BadRequest("the WebSocket handshake is not of version 13"));
    }
    Ok(Bytes::copy_from_slice(key))
}

async fn answer(stream: &Stream) -> Result<Answered, Failure> {
    match SocketMeta::decode(&meta(stream).await?) {
        Ok(SocketMeta::Accepted { subprotocol }) => Ok(Answered::Accepted { subprotocol, first: None }),
        Ok(SocketMeta::Refused { status, headers, .. }) => Ok(Answered::Refused { status, headers }),
        Err(_) => Err(Failure::Answer(EdgeError::LocalInvalidResponse)),
    }
}

/// Version 1 tells of refusals only, by a reset with the status in its text.
async fn refused_at_once(stream: &Stream) -> Result<Answered, Failure> {
    let first = match timeout(REFUSAL_WITHIN, stream.next()).await {
        Err(_) => None,
        Ok(Err(_)) => return Err(Failure::Lost),
        Ok(Ok(StreamEvent::Reset { reason })) => {
            let status = reason.split_once("HTTP ").and_then(|(_, status)| status.get(..3)?.parse().ok());
            return match status {
                Some(status) => Ok(Answered::Refused { status, headers: Vec::new() }),
                None => Err(Failure::Answer(reset_error(reason))),
            };
        }
        Ok(Ok(event)) => Some(event),
    };
    Ok(Answered::Accepted { subprotocol: None, first })
}

/// The subprotocol that a visitor offers alone. Version 1 does not tell which one was chosen, and browsers give up when
/// none of those that they offered is.
fn only_offer(head: &RequestHead) -> Option<String> {
    let mut offers = tokens(head.headers.all("sec-websocket-protocol"));
    let only = offers.next().filter(|_| offers.next().is_none())?;
    String::from_utf8(only.to_vec()).ok()
}

/// The local service's refusal. The wire carries its head but not its body.
async fn refuse(
    core: &Core,
    connection: &mut Connection,
    head: &RequestHead,
    status: u16,
    headers: &[(String, String)],
    progress: &Progress,
) -> Result<bool, Failure> {
    let of_the_body = ["content-length", "content-encoding", "content-type", "transfer-encoding"];
    let headers: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !of_the_body.iter().any(|known| name.eq_ignore_ascii_case(known)))
        .cloned()
        .collect();
    let invalid = Failure::Answer(EdgeError::LocalInvalidResponse);
    let response = write::response_head(status, &headers, false).ok_or(invalid)?;
    let framing = if response.body == Framing::None { Framing::None } else { Framing::Length(0) };
    let keep_alive = head.keep_alive && !core.draining.is_cancelled();
    let mut out = BytesMut::new();
    write::response(&response, Answer { framing, keep_alive, visitor_is_http_11: true }, &mut out);
    progress.set_answered(status);
    connection.socket.write_all(&out).await.map_err(|_| Failure::Cut)?;
    Ok(keep_alive)
}

/// The 101 for a handshake.
fn agreement(key: &[u8], subprotocol: Option<&str>) -> BytesMut {
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(GUID);
    let mut out = BytesMut::with_capacity(256);
    out.put_slice(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
    out.put_slice(b"Sec-WebSocket-Accept: ");
    out.put_slice(BASE64.encode(&digest.digest().bytes()).as_bytes());
    let is_token = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if let Some(subprotocol) = subprotocol.filter(is_token) {
        out.put_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.put_slice(subprotocol.as_bytes());
    }
    out.put_slice(b"\r\n\r\n");
    out
}

/// Who ended a WebSocket.
enum End {
    Visitor,
    LocalService,
}

async fn relay(
    connection: &mut Connection,
    stream: &Stream,
    first: Option<StreamEvent>,
    progress: &Progress,
) -> Result<(), Failure> {
    let max = if stream.version() == WireVersion::One { MAX_MESSAGE_V1 } else { V3_MAX_MESSAGE };
    let received = std::mem::take(&mut connection.received).freeze();
    let socket = ServerBuilder::new()
        .config(Config::default().frame_size(usize::MAX))
        .limits(Limits::default().max_payload_len(Some(max)))
        .serve(Rewind::new(received, &mut connection.socket));
    let (mut to_visitor, mut from_visitor) = socket.split();
    // The directions are apart: one that waits for its reader must not hold the other up.
    let end = tokio::select! {
        end = from_visitor_to_client(&mut from_visitor, stream, progress) => end?,
        end = from_client_to_visitor(&mut to_visitor, stream, first, progress) => end?,
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
    progress: &Progress,
) -> Result<End, Failure>
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
                return Err(Failure::Cut);
            }
        };
        if let Some((code, reason)) = message.as_close() {
            // A visitor that gives no code has nothing to complain about.
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
        progress.add_up(payload.len());
        match stream.version() {
            WireVersion::One => stream.send(payload, Some(kind), None).await.map_err(|_| Failure::Cut)?,
            WireVersion::Two => {
                for (chunk, fin) in chunks(payload) {
                    stream.send(chunk, Some(kind), Some(fin)).await.map_err(|_| Failure::Cut)?;
                }
            }
        }
    }
}

async fn from_client_to_visitor<IO>(
    to_visitor: &mut SplitSink<WebSocketStream<IO>, Message>,
    stream: &Stream,
    first: Option<StreamEvent>,
    progress: &Progress,
) -> Result<End, Failure>
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
                to_visitor.flush().await.map_err(|_| Failure::Cut)?;
                stream.next().await.map_err(|_| Failure::Cut)?
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
                progress.add_down(message.len());
                let message = if text { Message::text(message) } else { Message::binary(message) };
                to_visitor.feed(message).await.map_err(|_| Failure::Cut)?;
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

async fn close<S>(to_visitor: &mut S, code: CloseCode, reason: &str) -> Result<End, Failure>
where
    S: Sink<Message> + Unpin,
{
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    to_visitor.send(Message::close(Some(code), reason)).await.map_err(|_| Failure::Cut)?;
    Ok(End::LocalService)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreement_is_that_of_the_standard() {
        let text = |subprotocol| {
            String::from_utf8(agreement(b"dGhlIHNhbXBsZSBub25jZQ==", subprotocol).to_vec()).expect("text")
        };
        assert!(text(None).contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
        assert!(text(Some("chat")).ends_with("\r\nSec-WebSocket-Protocol: chat\r\n\r\n"));
        assert!(!text(Some("a\r\nSet-Cookie: x")).contains("Cookie"));
    }

    #[test]
    fn codes_that_may_not_be_sent_are_replaced() {
        for (given, sent) in [(None, 1000), (Some(1005), 1000), (Some(1006), 1011), (Some(7), 1011), (Some(4001), 4001)]
        {
            assert_eq!(u16::from(close_code(given)), sent);
        }
    }
}
