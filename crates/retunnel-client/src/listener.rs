//! Connections of visitors within this program, without a local port.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
};

/// Connections that wait to be accepted; further ones wait until there is room.
const BACKLOG: usize = 128;
/// Bytes in each direction of a connection that the other side has not read yet.
const BUFFER: usize = 16 * 1024;

/// Accepts the connections of a tunnel's visitors ([`LocalTarget::listener`](crate::LocalTarget::listener)).
///
/// Dropping it makes the local service unreachable.
#[derive(Debug)]
pub struct LocalListener(mpsc::Receiver<LocalStream>);

impl LocalListener {
    /// The next connection; `None` after the tunnel and all clones of its target are gone. Cancel-safe.
    pub async fn accept(&mut self) -> Option<LocalStream> {
        self.0.recv().await
    }
}

/// The other side of a [`LocalListener`].
#[derive(Clone)]
pub(crate) struct Connector {
    name: Arc<str>,
    listener: mpsc::Sender<LocalStream>,
}

impl Connector {
    pub(crate) fn new(name: &str) -> (Self, LocalListener) {
        let (listener, accepted) = mpsc::channel(BACKLOG);
        (Self { name: name.into(), listener }, LocalListener(accepted))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a connection.
    ///
    /// # Errors
    /// `ConnectionRefused` if the listener is gone.
    pub(crate) async fn connect(&self) -> io::Result<LocalStream> {
        let (ours, theirs) = duplex(BUFFER);
        let is_cut = Arc::<AtomicBool>::default();
        let accepted = LocalStream { bytes: theirs, is_cut: Arc::clone(&is_cut) };
        self.listener.send(accepted).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(LocalStream { bytes: ours, is_cut })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}

/// A visitor's connection.
///
/// Each direction ends on its own, as with TCP. If the visitor's connection breaks, reading fails with `ConnectionReset`, so
/// that a cut transfer does not look complete.
#[derive(Debug)]
pub struct LocalStream {
    bytes: DuplexStream,
    is_cut: Arc<AtomicBool>,
}

impl LocalStream {
    /// Makes the end of the bytes an error for the other side.
    pub(crate) fn abort(&self) {
        self.is_cut.store(true, Relaxed);
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.bytes).poll_read(cx, buf))?;
        let is_end = buf.filled().len() == before && buf.remaining() > 0;
        if is_end && self.is_cut.load(Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn each_direction_ends_on_its_own() {
        let (connector, mut listener) = Connector::new("test");
        let mut visitor = connector.connect().await.unwrap();
        let mut accepted = listener.accept().await.unwrap();
        visitor.write_all(b"question").await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        visitor.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "questionanswer");
    }

    #[tokio::test]
    async fn a_cut_transfer_does_not_look_complete() {
        let (connector, mut listener) = Connector::new("test");
        let mut visitor = connector.connect().await.unwrap();
        let mut accepted = listener.accept().await.unwrap();
        visitor.write_all(b"half").await.unwrap();
        visitor.abort();
        drop(visitor);
        let mut bytes = Vec::new();
        let error = accepted.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((bytes.as_slice(), error.kind()), (b"half".as_slice(), io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn both_sides_notice_that_the_other_is_gone() {
        let (connector, mut listener) = Connector::new("test");
        drop(connector);
        assert!(listener.accept().await.is_none());
        let (connector, listener) = Connector::new("test");
        drop(listener);
        assert_eq!(connector.connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
