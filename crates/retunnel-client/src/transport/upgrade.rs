//! The HTTP upgrade that turns a connection into a link or a lane. Where a proxy refuses it, the same bytes are carried by a
//! WebSocket, which almost all proxies allow (`docs/decisions/0007-websocket-fallback.md`).

use std::{io, sync::MutexGuard};

use bytes::BytesMut;
use retunnel_link::limit_unsent;
use retunnel_proto::{PageCode, message::Token};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};
use tracing::info;

use super::{
    dialer::{ANSWER_WITHIN, Dialer},
    path::{By, PathState, is_silent},
    socket::Socket,
};
use crate::{error::ConnectError, version::VERSION};

pub(super) const PATH: &str = "/api/v1/link";
/// Largest answer to the upgrade.
const MAX_ANSWER: usize = 16 * 1024;

/// Early data: what a client sends without waiting for the answer to its upgrade (`docs/decisions/0008-early-data.md`). The
/// token goes into the request's `Authorization` header, which proxies do not log. The frames follow the request.
#[derive(Debug)]
pub(crate) struct EarlyData {
    pub(crate) token: Option<Token>,
    pub(crate) frames: Vec<u8>,
}

/// Whether a proxy may have taken early data for a part of the request, or for the next request.
fn may_be_early_data(error: &ConnectError) -> bool {
    is_silent(error)
        || matches!(error, ConnectError::NotAServer { answer, .. } if answer.split(' ').nth(1) == Some("400"))
}

impl Dialer {
    fn path(&self) -> MutexGuard<'_, PathState> {
        self.path.lock().expect("no code panics while it holds what is known of the path")
    }

    /// The token is this very server's: it was saved for it, or the server has just issued it.
    pub(crate) fn trust(&self) {
        self.path().trusted = true;
    }

    /// Whether the token may be sent before the server has answered.
    pub(crate) fn may_send_token_first(&self) -> bool {
        self.path().trusted
    }

    /// Early data did not reach the server: the next attempts send none.
    pub(crate) fn early_data_was_lost(&self) {
        self.path().loses_early_data = true;
    }

    /// A connection that carries link frames from now on, and whether `early` was sent on it.
    pub(crate) async fn link(&self, early: Option<&EarlyData>) -> Result<(Socket, bool), ConnectError> {
        let mut refusal = None;
        if self.path().next() == By::Upgrade {
            match self.upgraded_early(early).await {
                Ok(link) => {
                    let mut path = self.path();
                    (path.passed, path.refused) = (true, None);
                    return Ok(link);
                }
                Err(error) if self.path().is_refusal(&error) => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        match self.in_messages(None).await {
            Ok(socket) => {
                if let Some(refusal) = refusal {
                    info!(%refusal, "the link uses a WebSocket: a proxy refused the upgrade");
                    let mut path = self.path();
                    (path.passed, path.refused) = (false, Some(Instant::now()));
                }
                Ok((socket, false))
            }
            Err(error) => {
                if matches!(error, ConnectError::NotAServer { .. }) {
                    // The path has changed: the next attempt starts with the upgrade again.
                    self.path().refused = None;
                }
                // The first answer identifies the server best.
                Err(refusal.unwrap_or(error))
            }
        }
    }

    async fn upgraded_early(&self, early: Option<&EarlyData>) -> Result<(Socket, bool), ConnectError> {
        if let Some(early) = early.filter(|_| self.path().may_be_early()) {
            let authorization = early.token.as_ref().map(|token| format!("Bearer {}", token.expose()));
            match self.upgraded(authorization, &early.frames).await {
                Err(error) if may_be_early_data(&error) => {
                    let socket = self.upgraded(None, &[]).await?;
                    self.early_data_was_lost();
                    return Ok((socket, false));
                }
                upgraded => return Ok((upgraded?, true)),
            }
        }
        Ok((self.upgraded(None, &[]).await?, false))
    }

    /// A connection that carries one bulk stream of a link, opened in the same way as the link.
    pub(crate) async fn lane(&self, nonce: &Token) -> Result<Socket, ConnectError> {
        let by = if self.path().refused.is_some() { By::WebSocket } else { By::Upgrade };
        let socket = match by {
            By::Upgrade => self.upgraded(Some(format!("Lane {}", nonce.expose())), &[]).await?,
            By::WebSocket => self.in_messages(Some(nonce)).await?,
        };
        if let Socket::Plain(socket) = &socket {
            // No other stream waits for a lane's bytes, and the kernel moves many at once.
            limit_unsent(socket, u32::MAX);
        }
        Ok(socket)
    }

    /// A connection after its upgrade. `early` follows the request without waiting for the answer.
    pub(crate) async fn upgraded(&self, authorization: Option<String>, early: &[u8]) -> Result<Socket, ConnectError> {
        let mut socket = self.connect().await?;
        let lost = |source| ConnectError::unreachable(&self.endpoint, source);
        let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let mut request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\n\
             User-Agent: retunnel/{}\r\n{authorization}\r\n",
            self.endpoint.authority(),
            VERSION,
        )
        .into_bytes();
        request.extend_from_slice(early);
        let answer = timeout(ANSWER_WITHIN, async {
            socket.write_all(&request).await?;
            socket.flush().await?;
            let mut answer = BytesMut::with_capacity(512);
            loop {
                if let Some(end) = answer.windows(4).position(|part| part == b"\r\n\r\n") {
                    return Ok(Some((end + 4, answer)));
                }
                if answer.len() > MAX_ANSWER || socket.read_buf(&mut answer).await? == 0 {
                    return Ok(if answer.is_empty() { None } else { Some((answer.len(), answer)) });
                }
            }
        });
        let (end, mut answer) = match answer.await {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(Err(source)) => return Err(lost(source)),
            Err(_) => return Err(self.too_slow(ANSWER_WITHIN)),
        };
        let head = answer.split_to(end).freeze();
        let status_line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let status_line: String =
            String::from_utf8_lossy(status_line).chars().filter(|c| !c.is_control()).take(120).collect();
        if has_header(&head, ERROR, HTTPS_REQUIRED) {
            return Err(ConnectError::TlsRequired { endpoint: self.endpoint.clone() });
        }
        if has_header(&head, ERROR, TUNNEL_NOT_FOUND) {
            return Err(ConnectError::OtherDomain { endpoint: self.endpoint.clone() });
        }
        match status_line.split(' ').nth(1) {
            // What follows may be the token: only a server that knows links gets it.
            Some("101") if has_header(&head, "upgrade", "retunnel") => {
                Ok(if answer.is_empty() { socket } else { Socket::Prefixed(answer.freeze(), Box::new(socket)) })
            }
            // The server is restarting, or the proxy in front of it says so.
            Some("429" | "502" | "503" | "504") => Err(lost(io::Error::other(format!("answered `{status_line}`")))),
            _ => Err(ConnectError::NotAServer { endpoint: self.endpoint.clone(), answer: status_line }),
        }
    }
}

/// The header with the code of an answer of the server itself.
pub(crate) const ERROR: &str = "x-retunnel-error";
/// The server accepts TLS only.
pub(crate) const HTTPS_REQUIRED: &str = PageCode::HttpsRequired.as_str();
/// The server takes the host name for a visitor's.
pub(crate) const TUNNEL_NOT_FOUND: &str = PageCode::TunnelNotFound.as_str();

fn has_header(head: &[u8], name: &str, value: &str) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':').map(<[u8]>::trim_ascii);
        let is = |part: Option<&[u8]>, text: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(text.as_bytes()));
        is(parts.next(), name) && is(parts.next(), value)
    })
}
