//! A TLS connection that behaves like a socket: a read returns all that has arrived, and what was written is on its way.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{ClientConfig, HandshakeKind, pki_types::ServerName},
};

use crate::read_ahead::ReadAhead;

/// A TLS connection, client or server side.
pub struct TlsSocket<S = TcpStream> {
    stream: TlsStream<ReadAhead<S>>,
    /// Bytes that the session has encrypted and the inner socket has not taken yet. They count as written once it has: the
    /// writer needs no flush, and backpressure comes from the kernel's buffer alone.
    taken: usize,
    /// A failure that was found after bytes. The bytes are returned first.
    failure: Option<io::Error>,
}

impl<S> fmt::Debug for TlsSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSocket")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsSocket<S> {
    /// Performs the handshake as the client.
    ///
    /// # Errors
    /// Errors of the connection. [`io::ErrorKind::InvalidData`] with a [`tokio_rustls::rustls::Error`] inside when the peer is
    /// not trusted or does not speak TLS.
    pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, socket: S) -> io::Result<Self> {
        let stream = TlsConnector::from(config).connect(name, ReadAhead::new(socket)).await?;
        Ok(Self { stream: stream.into(), taken: 0, failure: None })
    }

    /// Performs the handshake as the server. The first bytes may have been read ahead ([`ReadAhead::peek`]).
    ///
    /// # Errors
    /// Errors of the connection, and [`io::ErrorKind::InvalidData`] when the peer does not speak TLS.
    pub async fn accept(acceptor: &TlsAcceptor, socket: ReadAhead<S>) -> io::Result<Self> {
        let stream = acceptor.accept(socket).await?;
        Ok(Self { stream: stream.into(), taken: 0, failure: None })
    }

    /// The inner connection.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        self.stream.get_ref().0.get_ref()
    }

    /// Whether the handshake was a full one or resumed an earlier session; `None` before it is complete.
    #[must_use]
    pub fn handshake_kind(&self) -> Option<HandshakeKind> {
        self.stream.get_ref().1.handshake_kind()
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let count = self.taken.min(most);
        self.taken -= count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Err(error));
        }
        let start = buf.filled().len();
        loop {
            // The session returns one record at a time. The next one has usually arrived with it.
            let before = buf.filled().len();
            match Pin::new(&mut self.stream).poll_read(cx, buf) {
                Poll::Ready(Err(error)) if before > start => {
                    self.failure = Some(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if before > start => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let is_end = buf.filled().len() == before;
                    if is_end || buf.remaining() == 0 || self.stream.get_ref().0.ahead().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
                polled => return polled,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsSocket<S> {
    /// After [`Poll::Pending`] the caller must write the same bytes again, as all users of [`AsyncWrite`] here do.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            self.taken = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        }
        self.poll_taken(cx, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            self.taken = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        }
        self.poll_taken(cx, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
