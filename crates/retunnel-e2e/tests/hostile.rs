//! Clients that violate the protocol: rows 28 to 36 and 40 of the reliability list, with frames written by hand.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    process::{Server, User},
    service,
    visitor::{Visitor, get},
};
use retunnel_proto::dialect::v2;
use retunnel_proto::message::ServerMessage;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

type Socket = WebSocketStream<TcpStream>;

/// A token for a new account.
async fn registered(server: SocketAddr, email: &str) -> String {
    let body = json!({ "email": email }).to_string();
    let head = format!(
        "POST /api/v1/auth/register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}",
        body.len()
    );
    let answer = retunnel_e2e::visitor::request(server, &head, body.as_bytes()).await;
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    answer["auth_token"].as_str().unwrap().to_owned()
}

async fn open(server: SocketAddr, path: &str, token: &str) -> Socket {
    let stream = TcpStream::connect(server).await.unwrap();
    let mut builder = ClientBuilder::new().uri(&format!("ws://localhost/api/v1/ws/{path}")).unwrap();
    if !token.is_empty() {
        let name = http::HeaderName::from_static("authorization");
        builder = builder.add_header(name, format!("Bearer {token}").parse().unwrap()).unwrap();
    }
    builder.connect_on(stream).await.unwrap().0
}

/// A message as clients write it, from JSON; binary fields as `{"bin": text}`.
fn packed(value: &Value) -> Vec<u8> {
    fn put(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Null => out.push(0xc0),
            Value::Bool(flag) => out.push(0xc2 + u8::from(*flag)),
            Value::Number(number) => {
                out.push(0xcf);
                out.extend(number.as_u64().unwrap().to_be_bytes());
            }
            Value::String(text) => {
                out.push(0xda);
                out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                out.extend(text.as_bytes());
            }
            Value::Array(items) => {
                out.push(0xdc);
                out.extend(u16::try_from(items.len()).unwrap().to_be_bytes());
                items.iter().for_each(|item| put(item, out));
            }
            Value::Object(fields) => {
                out.push(0xde);
                out.extend(u16::try_from(fields.len()).unwrap().to_be_bytes());
                for (name, value) in fields {
                    put(&Value::from(name.as_str()), out);
                    put(value, out);
                }
            }
        }
    }
    let mut bytes = vec![0; 8];
    put(value, &mut bytes);
    let length = (bytes.len() - 8) as u64;
    bytes[..8].copy_from_slice(&length.to_be_bytes());
    bytes
}

async fn say(socket: &mut Socket, value: &Value) {
    socket.send(Message::binary(packed(value))).await.unwrap();
}

/// The next message of the server; `None` once it has closed.
async fn heard(socket: &mut Socket) -> Option<ServerMessage> {
    loop {
        let message = timeout(TIMEOUT, socket.next()).await.expect("a message or the end in time")?.ok()?;
        if message.is_close() {
            return None;
        }
        if message.is_binary() {
            return Some(v2::decode_server(message.as_payload()).expect("a message of this dialect"));
        }
    }
}

/// A control session: its socket and the id it was given.
async fn session(server: SocketAddr, token: &str) -> (Socket, String) {
    let mut socket = open(server, "tunnel", token).await;
    say(
        &mut socket,
        &json!({ "Type": "Auth", "ClientId": "mine", "Version": "2.3.40", "User": token, "Password": "" }),
    )
    .await;
    match heard(&mut socket).await {
        Some(ServerMessage::AuthResp(answer)) => {
            let welcome = answer.result.expect("let in");
            assert_ne!(welcome.client_id.to_string(), "mine", "the server chooses the id");
            (socket, welcome.client_id.to_string())
        }
        other => panic!("expected AuthResp, got {other:?}"),
    }
}

async fn tunnel(socket: &mut Socket, name: &str) {
    let request = json!({
        "Type": "ReqTunnel", "ReqId": "req-1", "Protocol": "http", "Hostname": "", "Subdomain": name, "HttpAuth": "",
        "RemotePort": 0,
    });
    say(socket, &request).await;
    assert!(matches!(heard(socket).await, Some(ServerMessage::NewTunnel(_))));
}

/// Registers a data socket and says whether it got the waiting request.
async fn gets_the_request(server: SocketAddr, token: &str, client_id: &str) -> Option<Socket> {
    let mut socket = open(server, "proxy", token).await;
    say(&mut socket, &json!({ "Type": "RegProxy", "ClientId": client_id })).await;
    match heard(&mut socket).await {
        Some(ServerMessage::StartProxy(_)) => Some(socket),
        None => None,
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn rows_28_and_29_data_sockets_belong_to_their_session() {
    let server = Server::start(&[]).await;
    let (owner, thief) = (registered(server.address, "a@a.test").await, registered(server.address, "b@b.test").await);
    let (mut control, id) = session(server.address, &owner).await;
    tunnel(&mut control, "shop").await;
    // Unasked: no request is waiting.
    assert!(gets_the_request(server.address, &owner, &id).await.is_none());

    let mut visitor = Visitor::connect(server.address).await;
    visitor.send(format!("GET /a?b=c HTTP/1.1\r\nHost: {}\r\n\r\n", server.host("shop"))).await;
    assert!(matches!(heard(&mut control).await, Some(ServerMessage::ReqProxy)));
    for (token, id) in [
        (thief.as_str(), id.as_str()),
        ("rt_revoked", id.as_str()),
        (owner.as_str(), "mine"),
        (owner.as_str(), ""),
        ("", "client-guessed"),
        // The session has shown its token on a data socket before.
        ("", id.as_str()),
    ] {
        assert!(gets_the_request(server.address, token, id).await.is_none(), "{token} {id}");
    }
    let mut socket = gets_the_request(server.address, &owner, &id).await.expect("the owner's own socket");
    let request = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
    let request = v2::decode_request(&request.into_payload().into()).unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str(), request.query.as_str()), ("GET", "/a", "b=c"));
    let host = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    assert_eq!(host.map(|(_, value)| value.clone()), Some(server.host("shop")));
    assert!(request.headers.contains(&("Connection".into(), "close".into())));
    // An answer that would write headers of its own (row 26).
    let answer = retunnel_proto::message::ProxyResponse {
        status: 200,
        headers: vec![("X".into(), "a\r\nSet-Cookie: b".into())],
        body: bytes::Bytes::new(),
    };
    socket.send(Message::binary(v2::encode_response(&answer))).await.unwrap();
    let answer = visitor.answer(false).await;
    assert_eq!((answer.status, answer.header("set-cookie")), (502, None));
    assert!(heard(&mut socket).await.is_none(), "one request, then the socket is closed");
}

#[tokio::test]
async fn the_session_goes_on_whatever_it_is_told() {
    let server = Server::start(&[]).await;
    let token = registered(server.address, "a@a.test").await;
    let (mut control, _) = session(server.address, &token).await;
    // Rows 33 and 35: unknown, foreign, repeated and incomplete messages.
    for message in [
        json!({ "Type": "Unheard", "Field": [1, 2, null] }),
        json!({ "NoType": true }),
        json!({ "Type": "Auth", "User": "other" }),
        json!({ "Type": "StartProxy", "Url": "http://evil.test" }),
        json!({ "Type": "NewTunnel", "Url": "x" }),
        json!({ "Type": 7 }),
        json!({ "Type": "Heartbeat" }),
        json!({ "Type": "Heartbeat", "Subdomain": "x", "Timestamp": 5 }),
        json!({ "Type": "ReqTunnel", "ReqId": 5 }),
        json!([1, 2]),
    ] {
        say(&mut control, &message).await;
    }
    control.send(Message::binary(vec![0xc1; 100])).await.unwrap();
    say(&mut control, &json!({ "Type": "Ping", "Future": { "a": [true] } })).await;
    loop {
        match heard(&mut control).await.expect("the session goes on") {
            ServerMessage::Pong => break,
            ServerMessage::NewTunnel(_) | ServerMessage::AuthResp(_) => panic!("nothing of this was asked for"),
            _ => {}
        }
    }
    tunnel(&mut control, "shop").await;
    // A message without the length in front is the same message.
    control.send(Message::binary(packed(&json!({ "Type": "Ping" })).split_off(8))).await.unwrap();
    assert!(matches!(heard(&mut control).await, Some(ServerMessage::Pong)));
}

#[tokio::test]
async fn rows_32_to_35_a_bad_first_message_ends_the_connection() {
    let server = Server::start(&[]).await;
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    let beginnings: Vec<Message> = vec![
        Message::text("hello"),
        Message::binary(vec![0xc1]),
        Message::binary(deep.clone()),
        Message::binary(vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        Message::binary(vec![0xdb, 0xff, 0xff, 0xff, 0xff, b'a']),
        Message::binary([vec![0xff; 8], vec![0x80]].concat()),
        Message::binary(packed(&json!({ "Type": "ReqTunnel", "ReqId": "1", "Protocol": "http" }))),
        Message::binary(packed(&json!({ "Type": "Ping" }))),
        Message::binary(packed(&json!({ "Type": "RegProxy", "ClientId": "x" }))),
        Message::binary(packed(&json!({ "Type": "Auth", "User": 5 }))),
        Message::binary(vec![0; 1 << 20]),
    ];
    for path in ["tunnel", "proxy"] {
        for (number, beginning) in beginnings.iter().enumerate() {
            let mut socket = open(server.address, path, "").await;
            // The server may have closed already.
            let _ = socket.send(beginning.clone()).await;
            while let Some(message) = heard(&mut socket).await {
                match message {
                    ServerMessage::AuthResp(answer) => assert!(answer.result.is_err(), "{path} {number}"),
                    other => panic!("{path} {number}: {other:?}"),
                }
            }
        }
    }
    assert!(server.process.memory() < 64 << 20);
}

#[tokio::test]
async fn row_34_invalid_websocket_frames_end_the_connection() {
    let server = Server::start(&[]).await;
    let head = "GET /api/v1/ws/tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let big = [&[0x82, 0xff][..], &(16_u64 << 20).to_be_bytes(), &[1, 2, 3, 4]].concat();
    let huge = [&[0x82, 0xff][..], &(1_u64 << 63).to_be_bytes(), &[1, 2, 3, 4]].concat();
    for (name, frame) in [
        ("unmasked", &[0x82, 0x01, 0x80][..]),
        ("reserved bits", &[0xf2, 0x81, 0, 0, 0, 0, 0x80]),
        ("reserved opcode", &[0x83, 0x81, 0, 0, 0, 0, 0x80]),
        ("16 MiB", &big),
        ("2^63", &huge),
        ("continuation of nothing", &[0x80, 0x81, 0, 0, 0, 0, 0x80]),
        ("long ping", &[0x89, 0xfe, 0x00, 0x7e, 0, 0, 0, 0]),
    ] {
        let mut visitor = Visitor::connect(server.address).await;
        visitor.send(head).await;
        let answer = visitor.head().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101") && !answer.to_lowercase().contains("extensions"), "{answer}");
        visitor.send(frame).await;
        let mut rest = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut visitor.socket, &mut rest);
        // Much earlier than the deadline for silent connections, which is 8 s.
        let _ = timeout(Duration::from_secs(6), end).await.unwrap_or_else(|_| panic!("{name}: still open"));
    }
}

#[tokio::test]
async fn row_40_an_untrusted_certificate_is_refused_before_the_token_is_sent() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let front = tls::front(server.address, &["127.0.0.1"]).await;
    let other = tls::front(server.address, &["other.test"]).await;
    let port = service.port();
    for address in [front.address, other.address] {
        let named = format!("https://{address}");
        let (code, _, said) = user.run(&["http", &port, "--server", &named, "--token", "rt_secret"]).await;
        assert!(code == 69 && said.contains("--insecure"), "{code} {said}");
    }
    assert_eq!(front.seen().await + other.seen().await, 0, "nothing was said to a stranger");
    let named = format!("https://{}", front.address);
    let mut command = user.command(&["--json", "--insecure", "http", &port, "--server", &named]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().expect("a line");
    let info: Value = serde_json::from_str(&line).unwrap();
    let host = server.host(info["subdomain"].as_str().unwrap());
    assert_eq!(get(server.address, &host, "/status/204").await.status, 204);
    assert!(front.seen().await > 0);
}

mod tls {
    //! A TLS endpoint in front of a server.

    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::SocketAddr;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        task::JoinSet,
    };
    use tokio_rustls::TlsAcceptor;

    pub(super) struct Front {
        pub(super) address: SocketAddr,
        seen: Arc<AtomicUsize>,
        _task: JoinSet<()>,
    }

    impl Front {
        /// Connections on which the client sent anything after the handshake.
        pub(super) async fn seen(&self) -> usize {
            tokio::task::yield_now().await;
            self.seen.load(Ordering::Relaxed)
        }
    }

    pub(super) async fn front(server: SocketAddr, names: &[&str]) -> Front {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let mut task = JoinSet::new();
        let count = Arc::clone(&seen);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
                connections.spawn(async move {
                    let Ok(mut socket) = acceptor.accept(socket).await else { return };
                    let mut first = [0; 1];
                    if !matches!(socket.read(&mut first).await, Ok(1)) {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    let mut upstream = TcpStream::connect(server).await.unwrap();
                    tokio::io::AsyncWriteExt::write_all(&mut upstream, &first).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut socket, &mut upstream).await;
                });
            }
        });
        Front { address, seen, _task: task }
    }
}

#[tokio::test]
async fn a_lane_without_a_nonce_that_was_given_out_is_refused() {
    let server = Server::start(&[]).await;
    for nonce in ["x", &"0".repeat(64)] {
        let head = format!(
            "GET /api/v1/link HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\nAuthorization: Lane {nonce}"
        );
        let answer = retunnel_e2e::visitor::request(server.address, &head, b"").await;
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.text().contains("lane_unavailable"), "{}", answer.text());
    }
}
