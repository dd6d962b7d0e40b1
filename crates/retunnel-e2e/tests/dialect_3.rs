//! Dialect 3 message by message: what tests with the published clients cannot show, because they never do it or only log it.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    process::Server,
    visitor::{get, post},
};
use retunnel_proto::{
    dialect::v3::{
        FromClient, FromServer, HttpMeta, StreamEvent, StreamFrame, StreamMode, StreamOpen, TunnelCreate, WireVersion,
    },
    message::{Token, TunnelProtocol},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_websockets::{ClientBuilder, MaybeTlsStream, Message, WebSocketStream};

struct Session(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Session {
    async fn connect(server: SocketAddr) -> Self {
        // Users may write a slash at the end of an address; the clients append their path to it.
        let uri = format!("ws://{server}//api/v1/ws/tunnel");
        Self(ClientBuilder::new().uri(&uri).unwrap().connect().await.unwrap().0)
    }

    async fn open(server: SocketAddr, token: &str) -> Self {
        let mut session = Self::connect(server).await;
        session.say(&FromClient::Auth { token: Some(Token::new(token)), version: WireVersion::Two }).await;
        assert_eq!(session.next().await, FromServer::HeartbeatAck { version: WireVersion::Two });
        session
    }

    async fn say(&mut self, message: &FromClient) {
        self.raw(message.encode()).await;
    }

    async fn raw(&mut self, message: Vec<u8>) {
        self.0.send(Message::binary(Bytes::from(message))).await.unwrap();
    }

    async fn next(&mut self) -> FromServer {
        loop {
            let message =
                timeout(TIMEOUT, self.0.next()).await.expect("a message in time").expect("a message").unwrap();
            if message.is_binary() {
                return FromServer::decode(&Bytes::from(message.into_payload())).unwrap();
            }
        }
    }

    /// The code of the next `Error`.
    async fn refusal(&mut self) -> String {
        match self.next().await {
            FromServer::Error { code, .. } => code,
            other => panic!("not an Error: {other:?}"),
        }
    }

    async fn is_closed(&mut self) {
        let end = async { while matches!(self.0.next().await, Some(Ok(_))) {} };
        timeout(TIMEOUT, end).await.expect("the connection is closed behind an Error");
    }

    async fn create(&mut self, create: TunnelCreate) {
        self.say(&FromClient::TunnelCreate(create)).await;
    }

    /// The next stream; earlier ones may still be ended by the server.
    async fn stream(&mut self) -> StreamOpen {
        loop {
            match self.next().await {
                FromServer::StreamOpen(open) => return open,
                FromServer::Stream(StreamFrame { event: CLOSE, .. }) => {}
                other => panic!("not a StreamOpen: {other:?}"),
            }
        }
    }

    async fn event(&mut self, stream_id: u64, event: StreamEvent) {
        self.say(&FromClient::Stream(StreamFrame { stream_id, event })).await;
    }
}

fn named(name: &str) -> TunnelCreate {
    let subdomain = Some(name.to_owned());
    TunnelCreate { protocol: TunnelProtocol::Http, subdomain, path: None, remote_port: None, hostname: None }
}

fn data(data: impl Into<Bytes>, fin: Option<bool>) -> StreamEvent {
    StreamEvent::Data { data: data.into(), kind: None, fin }
}

const CLOSE: StreamEvent = StreamEvent::Close { code: None, reason: None };

async fn register(server: SocketAddr, email: &str) -> String {
    let body = json!({ "email": email }).to_string();
    let answer = post(server, &server.to_string(), "/api/v1/auth/register", body.as_bytes()).await;
    serde_json::from_slice::<Value>(&answer.body).unwrap()["auth_token"].as_str().unwrap().to_owned()
}

/// The published 3.0.0 sends no token and 3.0.1 an empty one; neither can register.
#[tokio::test]
async fn clients_that_cannot_register_are_taken_where_anybody_may() {
    let server = Server::start(&[]).await;
    for token in [None, Some(Token::new(""))] {
        let mut session = Session::connect(server.address).await;
        session.say(&FromClient::Auth { token, version: WireVersion::One }).await;
        assert_eq!(session.next().await, FromServer::HeartbeatAck { version: WireVersion::One });
    }
}

#[tokio::test]
async fn refusals_close_the_connection() {
    let server = Server::start(&["--tcp-ports", "off"]).await;
    let token = register(server.address, "a@example.test").await;
    let invited = Server::start(&["--registration", "invite"]).await;
    for (server, token, code) in [(&invited, "", "AUTH_REQUIRED"), (&server, "wrong", "UNAUTHORIZED")] {
        let mut session = Session::connect(server.address).await;
        session.say(&FromClient::Auth { token: Some(Token::new(token)), version: WireVersion::One }).await;
        assert_eq!(session.refusal().await, code);
        session.is_closed().await;
    }
    let tcp = TunnelCreate { protocol: TunnelProtocol::Tcp, subdomain: None, ..named("") };
    let by_path = |path: &str| TunnelCreate { subdomain: None, path: Some(path.to_owned()), ..named("") };
    let hostname = |name: &str| TunnelCreate { subdomain: None, hostname: Some(name.to_owned()), ..named("") };
    for (create, code) in [
        (named("-not-a-name-"), "SUBDOMAIN_UNAVAILABLE"),
        (by_path("-not-a-name-"), "INVALID_PATH"),
        (by_path("www"), "PATH_TAKEN"),
        (tcp, "TCP_DISABLED"),
        (hostname("shop.example.org"), "HOSTNAME_NOT_REGISTERED"),
        (hostname("nothing"), "INVALID_HOSTNAME"),
        (TunnelCreate { hostname: Some("shop.example.org".into()), ..named("both") }, "UNSUPPORTED_PROTOCOL"),
    ] {
        let mut session = Session::open(server.address, &token).await;
        session.create(create.clone()).await;
        assert_eq!(session.refusal().await, code, "{create:?}");
        session.is_closed().await;
    }
    // An unknown protocol.
    let mut session = Session::open(server.address, &token).await;
    let mut bytes = FromClient::TunnelCreate(named("a")).encode();
    let at = bytes.windows(4).position(|part| part == b"http").unwrap();
    bytes[at..at + 4].copy_from_slice(b"quic");
    session.raw(bytes).await;
    assert_eq!(session.refusal().await, "UNSUPPORTED_PROTOCOL");
    session.is_closed().await;
}

#[tokio::test]
async fn nothing_comes_between_a_request_and_its_answer() {
    let server = Server::start(&[]).await;
    let token = register(server.address, "a@example.test").await;
    let mut session = Session::open(server.address, &token).await;
    session.create(named("one")).await;
    assert!(matches!(session.next().await, FromServer::TunnelCreated(created) if created.subdomain == "one"));
    let address = server.address;
    let host = server.host("one");
    let visitor = async { get(address, &host, "/").await };
    let client = async {
        // The visitor arrives in the meantime; the second tunnel is requested as quickly as clients do.
        tokio::time::sleep(Duration::from_millis(50)).await;
        session.create(named("two")).await;
        let answer = session.next().await;
        assert!(matches!(&answer, FromServer::TunnelCreated(created) if created.subdomain == "two"), "{answer:?}");
        let open = session.stream().await;
        assert_eq!((open.tunnel_id.as_str(), open.mode), ("one", StreamMode::Http));
        // A client that opens a stream itself gets an error, and the session continues. Unknown streams are ignored.
        session.say(&FromClient::StreamOpen { stream_id: 77 }).await;
        let refused = session.next().await;
        assert!(
            matches!(refused, FromServer::Stream(StreamFrame { stream_id: 77, event: StreamEvent::Reset { .. } })),
            "{refused:?}"
        );
        session.raw(vec![0x81, 0xa4, b'T', b'y', b'p', b'e', 0xa4, b'W', b'a', b'r', b'p']).await;
        session.event(4711, data("for nobody", None)).await;
        let meta = HttpMeta { status: 200, headers: Vec::new() }.encode();
        session.event(open.stream_id, data(meta.slice(..3), Some(false))).await;
        session.event(open.stream_id, data(meta.slice(3..), Some(true))).await;
        session.event(open.stream_id, data("hello", None)).await;
        session.event(open.stream_id, CLOSE).await;
    };
    let (answer, ()) = tokio::join!(visitor, client);
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

#[tokio::test]
async fn answers_that_are_none_reach_no_visitor() {
    let server = Server::start(&[]).await;
    let token = register(server.address, "a@example.test").await;
    let mut session = Session::open(server.address, &token).await;
    session.create(named("app")).await;
    session.next().await;
    let host = server.host("app");
    let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for (status, headers) in [
        (200, pair("X-Split", "a\r\nSet-Cookie: stolen=1")),
        (200, pair("Bad Name", "x")),
        (200, pair("", "x")),
        (99, Vec::new()),
        (101, Vec::new()),
    ] {
        let client = async {
            let open = session.stream().await;
            let meta = HttpMeta { status, headers: headers.clone() }.encode();
            session.event(open.stream_id, data(meta, Some(true))).await;
            session.event(open.stream_id, CLOSE).await;
        };
        let (answer, ()) = tokio::join!(get(server.address, &host, "/"), client);
        assert_eq!((answer.status, answer.header("x-retunnel-error")), (502, Some("local_invalid_response")));
        assert_eq!(answer.header("set-cookie"), None);
    }
    // A failure after the head is visible: the answer has no end.
    let client = async {
        let open = session.stream().await;
        let meta = HttpMeta { status: 200, headers: Vec::new() }.encode();
        session.event(open.stream_id, data(meta, Some(true))).await;
        session.event(open.stream_id, data("only the beginning", None)).await;
        session.event(open.stream_id, StreamEvent::Reset { reason: "gone".into() }).await;
    };
    let (answer, ()) = tokio::join!(get(server.address, &host, "/"), client);
    assert!(!answer.is_complete, "{answer:?}");
}

#[tokio::test]
async fn the_newest_session_has_the_name_and_the_older_one_stays_quiet() {
    let server = Server::start(&[]).await;
    let token = register(server.address, "a@example.test").await;
    let mut older = Session::open(server.address, &token).await;
    older.create(named("app")).await;
    older.next().await;
    let mut newer = Session::open(server.address, &token).await;
    newer.create(named("app")).await;
    assert!(matches!(newer.next().await, FromServer::TunnelCreated(_)));
    assert_eq!(older.refusal().await, "SUBDOMAIN_TAKEN");
    let host = server.host("app");
    let client = async {
        let open = newer.stream().await;
        newer.event(open.stream_id, StreamEvent::Reset { reason: "ConnectionRefusedError: refused".into() }).await;
    };
    let (answer, ()) = tokio::join!(get(server.address, &host, "/"), client);
    assert_eq!((answer.status, answer.header("x-retunnel-error")), (502, Some("local_unreachable")));
    let other = register(server.address, "b@example.test").await;
    let mut stranger = Session::open(server.address, &other).await;
    stranger.create(named("app")).await;
    assert_eq!(stranger.refusal().await, "SUBDOMAIN_UNAVAILABLE");
}
