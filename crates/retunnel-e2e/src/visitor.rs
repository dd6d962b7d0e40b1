//! Visitors: HTTP/1.1 written by hand, so that every byte is under control.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::TIMEOUT;

/// An answer as received.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status; 0 if nothing was received.
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Decoded.
    pub body: Vec<u8>,
    /// After a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The body was received completely.
    pub is_complete: bool,
}

impl Answer {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection of a visitor.
#[derive(Debug)]
pub struct Visitor<S = TcpStream> {
    /// The connection.
    pub socket: S,
    /// Read and not yet consumed.
    pub received: Vec<u8>,
}

impl Visitor {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Visitor<S> {
    /// A visitor on this connection.
    pub const fn over(socket: S) -> Self {
        Self { socket, received: Vec::new() }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> bool {
        matches!(timeout(TIMEOUT, self.socket.read_buf(&mut self.received)).await.expect("bytes in time"), Ok(count) if count > 0)
    }

    /// Reads up to and including `\r\n\r\n`; `None` at the end.
    pub async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(4).position(|part| part == b"\r\n\r\n") {
                let rest = self.received.split_off(end + 4);
                let head = std::mem::replace(&mut self.received, rest);
                return Some(head.iter().copied().map(char::from).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|part| part == b"\r\n") {
                let rest = self.received.split_off(end + 2);
                let line = std::mem::replace(&mut self.received, rest);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Reads up to `count` bytes, fewer only at the end.
    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count && self.more().await {}
        let rest = self.received.split_off(count.min(self.received.len()));
        std::mem::replace(&mut self.received, rest)
    }

    /// Reads until the connection ends.
    pub async fn to_end(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.received)
    }

    /// Reads an answer. `to_head`: the request's method was HEAD.
    pub async fn answer(&mut self, to_head: bool) -> Answer {
        let nothing =
            Answer { status: 0, headers: Vec::new(), body: Vec::new(), trailers: Vec::new(), is_complete: false };
        let Some(head) = self.head().await else { return nothing };
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status, headers, ..nothing };
        if to_head || status < 200 || status == 204 || status == 304 {
            answer.is_complete = true;
        } else if answer.header("transfer-encoding").is_some() {
            self.chunks(&mut answer).await;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            answer.body = self.take(length).await;
            answer.is_complete = answer.body.len() == length;
        } else {
            answer.body = self.to_end().await;
            answer.is_complete = true;
        }
        answer
    }

    async fn chunks(&mut self, answer: &mut Answer) {
        loop {
            let Some(size) = self.line().await else { return };
            let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                loop {
                    let Some(line) = self.line().await else { return };
                    match line.split_once(':') {
                        Some((name, value)) => {
                            answer.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                        }
                        None => {
                            answer.is_complete = true;
                            return;
                        }
                    }
                }
            }
            let chunk = self.take(size).await;
            let is_short = chunk.len() < size;
            answer.body.extend(chunk);
            if is_short || self.line().await.is_none() {
                return;
            }
        }
    }
}

/// One request on a connection of its own.
pub async fn request(address: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let mut visitor = Visitor::connect(address).await;
    visitor.send([format!("{head}\r\n\r\n").as_bytes(), body].concat()).await;
    visitor.answer(head.starts_with("HEAD ")).await
}

/// A plain GET.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close"), b"").await
}

/// A POST with a sized body.
pub async fn post(address: SocketAddr, host: &str, path: &str, body: &[u8]) -> Answer {
    let length = body.len();
    request(
        address,
        &format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}"),
        body,
    )
    .await
}
