//! Connections of a caller to a local service, which an observer sees like a visitor's. The inspector replays requests
//! this way.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    connection::Connection,
    error::RelayError,
    tap::{Observer, Tap},
    target::LocalTarget,
};

/// A connection to a local service.
#[derive(Debug)]
pub struct LocalConnection(Connection);

impl LocalTarget {
    /// Connects to the service. `observer` sees the bytes as an exchange of the tunnel `name`.
    ///
    /// # Errors
    /// [`RelayError::LocalUnreachable`].
    pub async fn connect(&self, observer: Arc<dyn Observer>, name: &str) -> Result<LocalConnection, RelayError> {
        let tap = Box::new(Tap::new(observer, name.to_owned()));
        Ok(LocalConnection(Connection::open(self, Arc::default(), Some(tap)).await?))
    }
}

impl AsyncRead for LocalConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
