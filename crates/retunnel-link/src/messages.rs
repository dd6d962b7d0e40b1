//! A byte stream in the binary messages of a WebSocket, for proxies that pass nothing else. Message boundaries have no
//! meaning.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use retunnel_proto::limits::MAX_LINK_MESSAGE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{Config, Error, Limits, Message, WebSocketStream};

/// A WebSocket that is read and written like a socket. The WebSocket library answers pings and joins fragments.
pub struct MessageSocket<IO> {
    socket: WebSocketStream<IO>,
    /// The rest of the last message that arrived.
    unread: Bytes,
    /// Size of a message that the inner connection has not taken completely. Its bytes count as written once it has, so that
    /// at most one message waits here.
    taken: usize,
    close_sent: bool,
}

impl<IO> fmt::Debug for MessageSocket<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageSocket")
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> MessageSocket<IO> {
    /// Wraps a WebSocket after its handshake, which must have used [`message_form`].
    #[must_use]
    pub const fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, unread: Bytes::new(), taken: 0, close_sent: false }
    }

    /// The inner connection.
    pub fn get_ref(&self) -> &IO {
        self.socket.get_ref()
    }

    fn poll_message(&mut self, cx: &mut Context<'_>, message: impl FnOnce() -> BytesMut) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            let message = message();
            self.taken = message.len();
            Pin::new(&mut self.socket).start_send(Message::binary(message)).map_err(failed)?;
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(failed)?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken)))
    }
}

/// Settings for a WebSocket that carries a link: one frame for each message, and a peer that sends messages longer than
/// [`MAX_LINK_MESSAGE`] loses the connection.
#[must_use]
pub fn message_form() -> (Config, Limits) {
    let config = Config::default().flush_threshold(usize::MAX).frame_size(usize::MAX);
    (config, Limits::default().max_payload_len(Some(MAX_LINK_MESSAGE)))
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for MessageSocket<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)).transpose().map_err(failed)? {
                Some(message) if message.is_binary() => self.unread = message.into_payload().into(),
                Some(message) if message.is_text() => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "text message in the WebSocket of a link",
                    )));
                }
                Some(message) if message.is_close() => return Poll::Ready(Ok(())),
                // Pings and pongs.
                Some(_) => {}
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MessageSocket<IO> {
    /// After [`Poll::Pending`] the caller must write the same bytes again, as all users of [`AsyncWrite`] here do.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_message(cx, || BytesMut::from(&buf[..buf.len().min(MAX_LINK_MESSAGE)]))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_LINK_MESSAGE);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        self.poll_message(cx, || {
            let mut message = BytesMut::with_capacity(len);
            for buf in bufs {
                message.extend_from_slice(&buf[..buf.len().min(len - message.len())]);
            }
            message
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(failed)
    }

    /// Sends a close message and does not wait for the peer's.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_sent {
            self.close_sent = true;
            // Fails if the peer has closed first.
            let _ = Pin::new(&mut self.socket).start_send(Message::close(None, ""));
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(failed)?;
        Pin::new(self.socket.get_mut()).poll_shutdown(cx)
    }
}
