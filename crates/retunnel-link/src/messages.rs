//! A byte stream in the binary messages of a WebSocket, for ways that let nothing else through. Where a message begins and
//! ends has no meaning.

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

/// A WebSocket that is read and written like a socket. Pings are answered, fragments put together by the library.
pub struct MessageSocket<IO> {
    socket: WebSocketStream<IO>,
    /// Of the last message that arrived.
    unread: Bytes,
    /// Bytes of a message that the connection below has not taken whole. They count as written only then, so that not more
    /// than one message waits here.
    taken: usize,
    said_goodbye: bool,
}

impl<IO> fmt::Debug for MessageSocket<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageSocket")
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> MessageSocket<IO> {
    /// Goes on with a WebSocket behind its handshake, which was begun with [`message_form`].
    #[must_use]
    pub const fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, unread: Bytes::new(), taken: 0, said_goodbye: false }
    }

    /// The connection below.
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

/// One frame for each message, and the end of the connection for whoever sends longer ones than are agreed.
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
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "text in a link's WebSocket")));
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
    /// As everybody does it, who was told to wait writes the same bytes again.
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

    /// Says goodbye, and does not wait for the peer's.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_goodbye {
            self.said_goodbye = true;
            // Fails where the peer was first.
            let _ = Pin::new(&mut self.socket).start_send(Message::close(None, ""));
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(failed)?;
        Pin::new(self.socket.get_mut()).poll_shutdown(cx)
    }
}
