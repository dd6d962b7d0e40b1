//! A WebSocket to the server, for the published dialects, and for links where nothing else passes.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use retunnel_link::{LinkError, MessageSocket, message_form};
use retunnel_proto::{message::Token, native::SUBPROTOCOL};
use tokio::{
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_websockets::{ClientBuilder, Config, Error, Limits, Message, WebSocketStream, upgrade};

use super::{
    dialer::{ANSWER_WITHIN, CLOSE_WITHIN, Dialer},
    socket::{ByteStream, Socket},
    upgrade::PATH,
};
use crate::error::ConnectError;

/// Bytes that may wait for one write.
const BATCH: usize = 64 * 1024;
/// How long the server may take to read what fits into one write.
pub(crate) const WRITE_WITHIN: Duration = Duration::from_secs(30);

pub(crate) type WebSocket = WebSocketStream<Socket>;

impl ByteStream for MessageSocket<Socket> {
    fn below(&self) -> Option<&TcpStream> {
        self.get_ref().below()
    }
}

impl Dialer {
    /// A WebSocket at `path`. `token` is sent in the handshake, as in 2.x. Messages may have up to `max` bytes.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        token: Option<&Token>,
        max: usize,
    ) -> Result<WebSocket, ConnectError> {
        let mut headers = Vec::new();
        if let Some(token) = token {
            let lost = |source| ConnectError::unreachable(&self.endpoint, source);
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| lost(io::Error::other("the token has characters that no header can carry")))?;
            value.set_sensitive(true);
            headers.push((AUTHORIZATION, value));
        }
        let form = (Config::default().flush_threshold(BATCH), Limits::default().max_payload_len(Some(max)));
        Ok(self.handshake(path, headers, form).await?.0)
    }

    /// A connection that carries a link in a WebSocket, or a lane with this nonce.
    pub(crate) async fn in_messages(&self, nonce: Option<&Token>) -> Result<Socket, ConnectError> {
        let mut headers = vec![(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL))];
        headers.extend(nonce.and_then(|nonce| {
            let mut value = HeaderValue::try_from(format!("Lane {}", nonce.expose())).ok()?;
            value.set_sensitive(true);
            Some((AUTHORIZATION, value))
        }));
        let (socket, agreed) = self.handshake(PATH, headers, message_form()).await?;
        if agreed.as_deref() != Some(SUBPROTOCOL) {
            let answer = "a WebSocket that is not a link".into();
            return Err(ConnectError::NotAServer { endpoint: self.endpoint.clone(), answer });
        }
        Ok(Socket::Other(Box::new(MessageSocket::new(socket))))
    }

    /// A WebSocket at `path`, and the subprotocol that the server agreed to.
    async fn handshake(
        &self,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        (config, limits): (Config, Limits),
    ) -> Result<(WebSocket, Option<String>), ConnectError> {
        let lost = |source| ConnectError::unreachable(&self.endpoint, source);
        let not_a_server = |answer| ConnectError::NotAServer { endpoint: self.endpoint.clone(), answer };
        let mut builder = ClientBuilder::new()
            .uri(&format!("ws://{}{path}", self.endpoint.authority()))
            .map_err(|error| lost(io::Error::other(error)))?
            .limits(limits)
            .config(config);
        for (name, value) in headers {
            builder = builder.add_header(name, value).map_err(|error| lost(io::Error::other(error)))?;
        }
        let socket = self.connect().await?;
        match timeout(ANSWER_WITHIN, builder.connect_on(socket)).await {
            Ok(Ok((socket, response))) => {
                let agreed = response.headers().get(SEC_WEBSOCKET_PROTOCOL);
                let agreed = agreed.and_then(|value| value.to_str().ok()).map(str::to_owned);
                Ok((socket, agreed))
            }
            Ok(Err(Error::Upgrade(upgrade::Error::DidNotSwitchProtocols(status)))) => {
                // The server is restarting, or the proxy in front of it says so.
                if matches!(status, 429 | 502 | 503 | 504) {
                    return Err(lost(io::Error::other(format!("answered with status {status}"))));
                }
                Err(not_a_server(format!("status {status}")))
            }
            Ok(Err(Error::Io(source))) => Err(lost(source)),
            Ok(Err(error)) => Err(not_a_server(error.to_string())),
            Err(_) => Err(self.too_slow(ANSWER_WITHIN)),
        }
    }
}

/// Sends a message.
pub(crate) async fn send(socket: &mut WebSocket, message: Message) -> Result<(), LinkError> {
    match timeout(WRITE_WITHIN, socket.send(message)).await {
        Ok(sent) => sent.map_err(failed),
        Err(_) => Err(LinkError::Silent(WRITE_WITHIN)),
    }
}

/// Why a WebSocket failed.
pub(crate) fn failed(error: tokio_websockets::Error) -> LinkError {
    match error {
        tokio_websockets::Error::Io(error) => LinkError::Io(Arc::new(error)),
        error => LinkError::Io(Arc::new(io::Error::other(error))),
    }
}

/// The next binary message. Cancel-safe.
pub(crate) async fn next(socket: &mut WebSocket) -> Result<Bytes, LinkError> {
    loop {
        match socket.next().await {
            Some(Ok(message)) if message.is_binary() => return Ok(message.into_payload().into()),
            Some(Ok(message)) if message.is_close() => return Err(LinkError::Io(Arc::new(close_reason(&message)))),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(error)),
            None => return Err(LinkError::ClosedByPeer),
        }
    }
}

/// Closes a WebSocket.
pub(crate) async fn close(mut socket: WebSocket) {
    let _ = timeout(CLOSE_WITHIN, async {
        let _ = socket.close().await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}

/// Why a WebSocket ended, from its closing message.
pub(crate) fn close_reason(message: &Message) -> io::Error {
    match message.as_close() {
        Some((code, reason)) if !reason.is_empty() => {
            let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
            io::Error::other(format!("the server closed the session: {reason} ({})", u16::from(code)))
        }
        _ => io::Error::other("the server closed the session"),
    }
}
