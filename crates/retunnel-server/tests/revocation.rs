//! A session ends when its token stops being valid (reliability row 44).

use std::net::SocketAddr;

use retunnel_link::{Events, LinkConfig, LinkError, LinkEvent, Role, link};
use retunnel_proto::{
    message::{Auth as AuthMessage, RefusalCode, ServerMessage, Token},
    native::{
        ReasonCode, VERSION,
        control::{FromClient, FromServer, Hello},
    },
};
use retunnel_server::{Server, auth::Auth, config::ServerConfig, store::Store};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Opens a native session; returns the server's first message and the events after it.
async fn session(server: SocketAddr, token: &Token, tasks: &mut JoinSet<LinkError>) -> (FromServer, Events) {
    let mut socket = TcpStream::connect(server).await.expect("connected");
    let head =
        format!("GET /api/v1/link HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await.expect("a byte of the head"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let config = LinkConfig::default();
    let window = config.initial_window;
    let (link, mut events, driver) = link(socket, Role::Client, config);
    tasks.spawn(driver);
    let auth = AuthMessage { token: Some(token.clone()), ..AuthMessage::default() };
    let hello = FromClient::Hello(Hello { link_version: VERSION, window, lanes: false, auth });
    link.send_control(hello.encode().expect("encodes")).await.expect("sent");
    loop {
        match events.next().await {
            Some(LinkEvent::Control(payload)) => return (FromServer::decode(&payload).expect("a message"), events),
            // Urgent frames overtake messages.
            Some(LinkEvent::GoAway { .. }) => {}
            other => panic!("expected the server's first message, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn row_44_a_session_ends_when_its_token_is_rotated_and_others_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = ServerConfig::new(dir.path().into());
    config.listen = "127.0.0.1:0".parse().expect("an address");
    let server = Server::start(config).await.expect("started");
    let auth = Auth::new(Store::open(dir.path()).await.expect("a store"));
    let (_, token) = auth.register("a@example.test", None).await.expect("registered");
    let (_, other) = auth.register("b@example.test", None).await.expect("registered");

    let mut tasks = JoinSet::new();
    let (answer, mut events) = session(server.address(), &token, &mut tasks).await;
    assert!(matches!(answer, FromServer::Hello(_)), "{answer:?}");
    let mut other_tasks = JoinSet::new();
    let (answer, _other_events) = session(server.address(), &other, &mut other_tasks).await;
    assert!(matches!(answer, FromServer::Hello(_)), "{answer:?}");

    let mut socket = TcpStream::connect(server.address()).await.expect("connected");
    let rotate = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
        token.expose()
    );
    socket.write_all(rotate.as_bytes()).await.expect("sent");
    let mut rotated = String::new();
    socket.read_to_string(&mut rotated).await.expect("an answer");
    assert!(rotated.starts_with("HTTP/1.1 200 "), "{rotated}");

    let mut reported = None;
    while let Some(event) = events.next().await {
        if let LinkEvent::GoAway { code, .. } = event {
            reported = Some(code);
        }
    }
    assert_eq!(reported, Some(ReasonCode::REVOKED), "the client learns why");
    tasks.join_next().await.expect("the link").expect("no panic");
    assert!(other_tasks.try_join_next().is_none(), "another account's session stays");

    let (answer, _events) = session(server.address(), &token, &mut tasks).await;
    match answer {
        FromServer::Message(ServerMessage::AuthResp(answer)) => {
            assert_eq!(answer.result.expect_err("refused").code, RefusalCode::Unauthorized);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    server.shutdown().await;
}
