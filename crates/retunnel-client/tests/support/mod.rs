//! What the tests through the public API share: a real server, a local service, and a visitor.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]
#![allow(dead_code, reason = "each test uses a part")]

use std::{net::SocketAddr, time::Duration};

use retunnel_client::ServerEndpoint;
use retunnel_server::{Server, ServerHandle, config::ServerConfig};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// Longest wait for anything, also on a loaded machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A server on a free port, with its own data.
pub(crate) struct TestServer {
    handle: ServerHandle,
    #[expect(dead_code, reason = "removes the data at the end")]
    data: TempDir,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(data.path().into());
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.tcp_ports = Some(20_000..=29_999);
        config.limits.grace_period = Duration::from_secs(1);
        let handle = Server::start(config).await.unwrap();
        Self { handle, data }
    }

    pub(crate) fn endpoint(&self) -> ServerEndpoint {
        self.handle.address().to_string().parse().unwrap()
    }

    /// The answer to a visitor's `GET` of a path below a public address.
    pub(crate) async fn get(&self, url: &str, path: &str) -> String {
        let host = url.strip_prefix("http://").unwrap();
        let mut visitor = TcpStream::connect(self.handle.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(TIMEOUT, visitor.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
        answer
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown().await;
    }
}

/// A local service that answers every connection with the same bytes. HTTP services read the head first.
pub(crate) struct Local {
    pub(crate) port: u16,
    #[expect(dead_code, reason = "the service ends with its owner")]
    task: JoinSet<()>,
}

impl Local {
    /// Answers requests with a text.
    pub(crate) async fn http(text: &'static str) -> Self {
        Self::serve(move |mut connection| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await?);
            }
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
            connection.write_all(answer.as_bytes()).await
        })
        .await
    }

    /// Sends every byte back.
    pub(crate) async fn echo() -> Self {
        Self::serve(|mut connection| async move {
            let (mut read, mut write) = connection.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
        .await
    }

    async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(answer(connection));
            }
        });
        Self { port, task }
    }
}
