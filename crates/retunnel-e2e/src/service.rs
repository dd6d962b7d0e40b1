//! Local services: what users publish with a tunnel.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
    time::sleep,
};

type Body = BoxBody<Bytes, std::io::Error>;

/// A service that ends with its handle.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl Service {
    /// Its port as text, for command lines.
    #[must_use]
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }
}

/// An HTTP service on any port:
/// `/echo` reports the request; `/bytes/N` sends N bytes; `/chunks/N` sends N chunks and a trailer; `/events/N` sends
/// N server-sent events, one each 50 ms; `/status/N`; `/redirect`; `/cut` ends in mid-body; `/sink` counts the body;
/// `/cookies` sets three cookies; `/ws` echoes WebSocket messages and closes with N on `close N`, and takes the last
/// subprotocol that is offered; `/hang` never answers.
pub async fn http() -> Service {
    http_on("127.0.0.1:0".parse().unwrap()).await
}

/// The same on a given address.
pub async fn http_on(address: SocketAddr) -> Service {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    let socket = socket.unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((socket, peer)) = listener.accept().await else { return };
            let _ = socket.set_nodelay(true);
            connections.spawn(async move {
                let service = service_fn(|mut request: Request<Incoming>| {
                    request.extensions_mut().insert(peer);
                    async { Ok::<_, Infallible>(answer(request).await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    Service { address, _task: task }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn stream(
    frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Sync + 'static,
) -> Body {
    BodyExt::boxed(StreamBody::new(frames))
}

/// `count` bytes of a pattern that reveals misplaced parts.
#[must_use]
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| u8::try_from((n ^ (n >> 8)) % 251).unwrap()).collect()
}

async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let number = path.rsplit('/').next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    match path.split('/').nth(1).unwrap_or_default() {
        "bytes" => {
            const PIECE: usize = 64 * 1024;
            let piece = Bytes::from(pattern(PIECE));
            let pieces = futures_util::stream::unfold(number, move |left| {
                let piece = piece.clone();
                async move {
                    let size = left.min(PIECE);
                    (size > 0).then(|| (Ok(Frame::data(piece.slice(..size))), left - size))
                }
            });
            Response::builder().header(header::CONTENT_LENGTH, number).body(stream(pieces)).unwrap()
        }
        "chunks" => {
            let chunks = futures_util::stream::iter((0..=number).map(move |n| {
                if n < number {
                    return Ok(Frame::data(Bytes::from(format!("chunk {n}\n"))));
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("x-count", number.into());
                Ok(Frame::trailers(trailers))
            }));
            Response::builder().header("Trailer", "x-count").body(stream(chunks)).unwrap()
        }
        "events" => {
            let events = futures_util::stream::unfold(0, move |n| async move {
                if n == number {
                    return None;
                }
                sleep(Duration::from_millis(50)).await;
                Some((Ok(Frame::data(Bytes::from(format!("data: {n}\n\n")))), n + 1))
            });
            Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(stream(events)).unwrap()
        }
        "cut" => {
            let pieces = futures_util::stream::iter([
                Ok(Frame::data(Bytes::from_static(b"only the beginning"))),
                Err(std::io::Error::other("cut")),
            ]);
            let mut response = Response::new(stream(pieces));
            if number > 0 {
                response.headers_mut().insert(header::CONTENT_LENGTH, number.into());
            }
            response
        }
        "status" => {
            let status = StatusCode::from_u16(u16::try_from(number).unwrap()).unwrap();
            Response::builder().status(status).body(full("")).unwrap()
        }
        "redirect" => {
            Response::builder().status(302).header(header::LOCATION, "/echo?from=redirect").body(full("")).unwrap()
        }
        "cookies" => Response::builder()
            .header(header::SET_COOKIE, "a=1")
            .header(header::SET_COOKIE, "b=2; Path=/")
            .header(header::SET_COOKIE, "c=3")
            .body(full("crumbs"))
            .unwrap(),
        "peer" => {
            let peer = request.extensions().get::<SocketAddr>().unwrap().to_string();
            let _ = request.into_body().collect().await;
            Response::new(full(peer))
        }
        "hang" => std::future::pending().await,
        "ws" => websocket(request),
        "sink" => {
            let mut count = 0;
            let body = request.body_mut();
            while let Some(Ok(frame)) = body.frame().await {
                count += frame.data_ref().map_or(0, Bytes::len);
            }
            Response::new(full(count.to_string()))
        }
        _ => echo(request).await,
    }
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let method = request.method().to_string();
    let target = request.uri().to_string();
    let headers: Vec<[String; 2]> = request
        .headers()
        .iter()
        .map(|(name, value)| [name.to_string(), value.as_bytes().iter().copied().map(char::from).collect()])
        .collect();
    let (body, trailers) = match request.into_body().collect().await {
        Ok(body) => {
            let trailers: Vec<[String; 2]> = body
                .trailers()
                .iter()
                .flat_map(|map| map.iter())
                .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
                .collect();
            (body.to_bytes(), trailers)
        }
        Err(_) => (Bytes::new(), Vec::new()),
    };
    let text = serde_json::json!({
        "method": method, "target": target, "headers": headers, "length": body.len(), "sha256": crate::sha256(&body),
        "trailers": trailers,
    });
    let mut response = Response::new(full(text.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").cloned().expect("a WebSocket handshake");
    let accept = accept_key(key.as_bytes());
    let offered = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    let chosen = offered.and_then(|offered| offered.split(',').next_back()).map(|name| name.trim().to_owned());
    let upgrade = hyper::upgrade::on(&mut request);
    #[expect(clippy::disallowed_methods, reason = "hyper hands the connection over after this answer")]
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = tokio_websockets::ServerBuilder::new().serve(TokioIo::new(upgraded));
        while let Some(Ok(message)) = socket.next().await {
            if let Some(code) = message.as_text().and_then(|text| text.strip_prefix("close ")?.parse::<u16>().ok()) {
                let _ = socket.send(tokio_websockets::Message::close(code.try_into().ok(), "as you wish")).await;
                while let Some(Ok(_)) = socket.next().await {}
                return;
            }
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut builder = Response::builder();
    if let Some(chosen) = chosen {
        builder = builder.header(header::SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    builder
        .status(101)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("Sec-WebSocket-Accept", accept)
        .body(full(""))
        .unwrap()
}

/// RFC 6455, 1.3.
fn accept_key(key: &[u8]) -> String {
    use sha1_smol::Sha1;
    let mut sha = Sha1::new();
    sha.update(key);
    sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    data_encoding::BASE64.encode(&sha.digest().bytes())
}

/// A service that answers the targets of a script with the given bytes and then closes the connection, whatever they announce. It
/// reads heads only. Every other target gets a proper `fine`.
pub async fn scripted(script: Vec<(String, String)>) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = std::sync::Arc::new(script);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let script = script.clone();
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|part| part == b"\r\n\r\n") {
                    if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let target = head.split(' ').nth(1).unwrap_or_default();
                let fine = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfine";
                let answer = script.iter().find(|(known, _)| known == target).map_or(fine, |(_, answer)| answer);
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
                // Read what the visitor still sends, so that closing is not a reset.
                let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
            });
        }
    });
    Service { address, _task: task }
}

/// What a service of [`watched`] has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen(std::sync::Arc<std::sync::Mutex<(usize, Vec<String>)>>);

impl Seen {
    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.lock().unwrap().0
    }

    /// Heads of requests so far, as they arrived.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

/// A service that answers each request with its target and keeps the connection; `/slow` takes 400 ms. Unless it `reads_bodies`, a body is left on
/// the connection, where it becomes the start of the next request: so do small servers that answer a POST without reading it.
pub async fn watched(reads_bodies: bool) -> (Service, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let shared = seen.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            shared.0.lock().unwrap().0 += 1;
            let shared = shared.clone();
            connections.spawn(async move {
                let mut received = Vec::new();
                loop {
                    let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n") else {
                        if socket.read_buf(&mut received).await.unwrap_or(0) == 0 {
                            return;
                        }
                        continue;
                    };
                    let rest = received.split_off(end + 4);
                    let head = String::from_utf8_lossy(&std::mem::replace(&mut received, rest)).into_owned();
                    if reads_bodies {
                        let lower = head.to_ascii_lowercase();
                        let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                        let length: usize = length.map_or(0, |text| text.parse().unwrap());
                        while received.len() < length && socket.read_buf(&mut received).await.unwrap_or(0) > 0 {}
                        received.drain(..length.min(received.len()));
                    }
                    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    shared.0.lock().unwrap().1.push(head);
                    if target == "/slow" {
                        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (Service { address, _task: task }, seen)
}

/// A service that serves one connection until it ends, then the next, as on small devices.
pub async fn one_at_a_time() -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut received = Vec::new();
            while socket.read_buf(&mut received).await.unwrap_or(0) > 0 {
                if received.ends_with(b"\r\n\r\n") {
                    received.clear();
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
                }
            }
        }
    });
    Service { address, _task: task }
}

/// A TCP service that echoes, and passes half-close on.
pub async fn tcp_echo() -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    Service { address, _task: task }
}

/// A TCP service that reads everything up to the end and then sends the number of bytes.
pub async fn tcp_count() -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut all = Vec::new();
                let _ = socket.read_to_end(&mut all).await;
                let _ = socket.write_all(format!("{} {}", all.len(), crate::sha256(&all)).as_bytes()).await;
            });
        }
    });
    Service { address, _task: task }
}
