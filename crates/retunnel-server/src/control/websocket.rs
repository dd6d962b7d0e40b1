//! WebSockets of clients: how they begin and end.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use retunnel_link::{MessageSocket, message_form};
use retunnel_proto::{limits::MAX_UNAUTHENTICATED_MESSAGE, native::SUBPROTOCOL};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_websockets::{Config, Limits, Message, ServerBuilder, WebSocketStream};
use tracing::debug;

use crate::limits::{
    Place,
    waiting::{Charge, Share},
};

/// How long a closing handshake may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes gathered before they are written, unless there is nothing more to send.
const FLUSH_AT: usize = 64 * 1024;

/// A socket that counts the bytes it moves, so that a peer that is busy with one long message counts as alive.
#[derive(Debug)]
pub(super) struct Counted<IO> {
    io: IO,
    read: u64,
    written: u64,
    /// What is read from now on waits for a visitor.
    charge: Option<Charge>,
}

impl<IO> Counted<IO> {
    /// Bytes read and written so far.
    pub(super) const fn moved(&self) -> (u64, u64) {
        (self.read, self.written)
    }

    /// Charges the bytes read from now on to those that wait for an account's visitors.
    pub(super) fn charge(&mut self, share: Share) {
        self.charge = Some(Charge::new(share));
    }

    /// The charge so far, to be kept as long as the bytes are.
    pub(super) const fn take_charge(&mut self) -> Option<Charge> {
        self.charge.take()
    }

    /// Whether reading failed because there was no room.
    pub(super) fn is_refused(&self) -> bool {
        self.charge.as_ref().is_some_and(Charge::is_refused)
    }

    fn count(&mut self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = result {
            self.written += *count as u64;
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        self.read += count as u64;
        if let Some(charge) = &mut self.charge
            && !charge.take(count)
        {
            return Poll::Ready(Err(io::Error::other("too many bytes wait for visitors")));
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Accepts a WebSocket that carries the bytes of a link or a lane.
pub(super) async fn link<IO>(io: IO) -> Option<MessageSocket<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (config, limits) = message_form();
    let builder = ServerBuilder::new()
        .config(config)
        .limits(limits)
        .add_header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL))
        .expect("the handshake does not set this header itself");
    let accepted = builder.accept(io).await;
    accepted.map(|(_, socket)| MessageSocket::new(socket)).ok()
}

/// Largest message that is taken.
pub(super) fn limits(max: usize) -> Limits {
    Limits::default().max_payload_len(Some(max))
}

/// Accepts a WebSocket and waits for its first message, as long as a peer that has not authenticated may take.
pub(super) async fn accept<IO>(io: IO, permit: &Place, limit: Duration) -> Option<(WebSocketStream<Counted<IO>>, Bytes)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let accepted = permit.within(limit, async {
        let builder = ServerBuilder::new()
            .config(Config::default().flush_threshold(FLUSH_AT).frame_size(usize::MAX))
            .limits(limits(MAX_UNAUTHENTICATED_MESSAGE));
        let (_, mut socket) = builder.accept(Counted { io, read: 0, written: 0, charge: None }).await.ok()?;
        loop {
            let message = next_message(&mut socket).await?;
            if message.is_binary() {
                return Some((socket, Bytes::from(message.into_payload())));
            }
            if message.is_text() || message.is_close() {
                return None;
            }
        }
    });
    accepted.await.flatten()
}

pub(super) async fn next_message<IO>(socket: &mut WebSocketStream<IO>) -> Option<Message>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match socket.next().await {
        Some(Ok(message)) => Some(message),
        Some(Err(error)) => {
            debug!(%error, "websocket failed");
            None
        }
        None => None,
    }
}

/// Ends a WebSocket with its closing handshake.
pub(super) async fn close<IO>(mut socket: WebSocketStream<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let _ = timeout(CLOSE_WITHIN, async {
        let _ = socket.close().await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}
