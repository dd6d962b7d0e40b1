//! The WebSocket of a 3.x session: what is queued goes out, what arrives is handed to its stream.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream as _};
use retunnel_proto::{
    DecodeError,
    dialect::v3::{FromClient, FromServer, StreamEvent, StreamFrame, TunnelCreate},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_websockets::{Message, WebSocketStream};
use tracing::debug;

use crate::{
    control::websocket::Counted,
    upstream::v3::mux::{Mux, Outgoing, Shared},
};

/// Messages taken in one turn; then other tasks have theirs.
const TURN: usize = 64;
/// Messages of the session itself that wait for the socket. A client that causes more does not read the answers.
const MAX_OWN: usize = 1024;
/// Heartbeats that the client has not answered. More come only when streams begin and end without any answer.
const MAX_UNANSWERED: usize = 16 * 1024;

/// What the session has to handle.
#[derive(Debug)]
pub(super) enum Arrived {
    TunnelCreate(TunnelCreate),
    /// A request for a tunnel that cannot be decoded.
    BadTunnelCreate(DecodeError),
    /// So much waits for visitors that nothing is read for now.
    Full,
    /// The connection ended, for this reason.
    End(&'static str),
}

pub(super) struct Wire<IO> {
    pub(super) socket: WebSocketStream<Counted<IO>>,
    mux: Arc<Mux>,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    /// The session's own messages, before those of its streams.
    own: VecDeque<Message>,
    /// Heartbeats that the client has not answered, oldest first. Answers carry no number.
    unanswered: VecDeque<(Arc<Shared>, u64, u64)>,
    /// Streams with a delivery in this turn. Each is woken once, at its end.
    delivered: Vec<Arc<Shared>>,
    /// Nothing is read.
    pub(super) is_paused: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    pub(super) const fn new(
        socket: WebSocketStream<Counted<IO>>,
        mux: Arc<Mux>,
        outgoing: mpsc::UnboundedReceiver<Outgoing>,
    ) -> Self {
        Self {
            socket,
            mux,
            outgoing,
            own: VecDeque::new(),
            unanswered: VecDeque::new(),
            delivered: Vec::new(),
            is_paused: false,
        }
    }

    /// Queues a message of the session.
    pub(super) fn queue(&mut self, message: &FromServer) {
        self.own.push_back(Message::binary(Bytes::from(message.encode(self.mux.version))));
    }

    pub(super) fn ping(&mut self) {
        self.own.push_back(Message::ping(Bytes::new()));
    }

    /// Bytes moved in both directions so far.
    pub(super) fn moved(&self) -> (u64, u64) {
        self.socket.get_ref().moved()
    }

    /// Moves messages until the session has something to handle. Cancel-safe.
    pub(super) async fn next(&mut self) -> Arrived {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Sends the remaining messages of the session itself, without reading.
    pub(super) async fn finish(&mut self) -> Result<(), tokio_websockets::Error> {
        for message in std::mem::take(&mut self.own) {
            self.socket.feed(message).await?;
        }
        self.socket.flush().await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arrived> {
        if self.poll_send(cx).is_err() {
            return Poll::Ready(Arrived::End("socket failed"));
        }
        let arrived = self.poll_receive(cx);
        self.delivered.drain(..).for_each(|stream| stream.wake());
        arrived
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Arrived> {
        for _ in 0..TURN {
            if self.is_paused {
                return Poll::Pending;
            }
            if self.mux.is_full() {
                self.is_paused = true;
                return Poll::Ready(Arrived::Full);
            }
            if self.own.len() > MAX_OWN || self.unanswered.len() > MAX_UNANSWERED {
                return Poll::Ready(Arrived::End("answers are not read"));
            }
            // Flushes what was queued before.
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(message))) => message,
                Poll::Ready(Some(Err(error))) => {
                    debug!(%error, "websocket failed");
                    return Poll::Ready(Arrived::End("socket failed"));
                }
                Poll::Ready(None) => return Poll::Ready(Arrived::End("socket closed")),
            };
            if message.is_binary() {
                if let Some(arrived) = self.take(Bytes::from(message.into_payload())) {
                    return Poll::Ready(arrived);
                }
            } else if message.is_text() || message.is_close() {
                return Poll::Ready(Arrived::End("closed by the client"));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Queues as much as the socket takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), tokio_websockets::Error> {
        let mut socket = Pin::new(&mut self.socket);
        while let Poll::Ready(ready) = socket.as_mut().poll_ready(cx) {
            ready?;
            if let Some(message) = self.own.pop_front() {
                socket.as_mut().start_send(message)?;
                continue;
            }
            match self.outgoing.poll_recv(cx) {
                Poll::Ready(Some(Outgoing::Message(message, room))) => {
                    socket.as_mut().start_send(Message::binary(message))?;
                    self.mux.sent(room);
                }
                Poll::Ready(Some(Outgoing::Heartbeat(stream, frames, bytes))) => {
                    let heartbeat = FromServer::Heartbeat.encode(self.mux.version);
                    socket.as_mut().start_send(Message::binary(Bytes::from(heartbeat)))?;
                    self.unanswered.push_back((stream, frames, bytes));
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        match socket.poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    /// Hands a message to its stream, or returns it for the session.
    fn take(&mut self, message: Bytes) -> Option<Arrived> {
        match FromClient::decode(&message) {
            Ok(FromClient::Stream(frame)) => {
                let stream = self.mux.deliver(frame);
                let is_last =
                    |stream: &Arc<Shared>| self.delivered.last().is_some_and(|last| Arc::ptr_eq(last, stream));
                self.delivered.extend(stream.filter(|stream| !is_last(stream)));
            }
            Ok(FromClient::HeartbeatAck) => {
                if let Some((stream, frames, bytes)) = self.unanswered.pop_front() {
                    stream.acknowledge(frames, bytes);
                }
            }
            Ok(FromClient::TunnelCreate(request)) => return Some(Arrived::TunnelCreate(request)),
            Ok(FromClient::StreamOpen { stream_id }) => {
                let event = StreamEvent::Reset { reason: "streams are opened by the server".into() };
                self.queue(&FromServer::Stream(StreamFrame { stream_id, event }));
            }
            Ok(FromClient::Auth { .. }) => debug!("message not expected in this state"),
            Err(error @ DecodeError::Field("protocol" | "subdomain" | "path" | "remote_port" | "hostname")) => {
                return Some(Arrived::BadTunnelCreate(error));
            }
            // Nothing in this dialect can carry the error; clients ignore unknown types as well.
            Err(error) => debug!(%error, "message ignored"),
        }
        None
    }
}
