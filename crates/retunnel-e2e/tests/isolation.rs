//! Visitors do not reach each other, whatever the local service or one of them does.

use std::{net::SocketAddr, time::Duration};

use retunnel_e2e::{
    eventually,
    process::{Server, User, port_range},
    service,
    visitor::{Visitor, get, post, request},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

const SMUGGLED: &str = "GET /stolen HTTP/1.1\r\nX-Rest: ";

#[tokio::test]
async fn bytes_that_a_service_leaves_unread_never_start_another_visitors_request() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let (service, seen) = service::watched(false).await;
    let tunnel = user.tunnel(server.address, &["http", service.port().as_str()]).await;
    let host = server.host(tunnel.name());
    let length = SMUGGLED.len();
    let sized = format!("POST /first HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}");
    let chunked = format!(
        "POST /first HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"
    );
    let whole = "GET /stolen HTTP/1.1\r\nHost: x\r\n\r\n";
    let queued = format!("PUT /first HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{whole}", whole.len());
    let expecting = format!(
        "GET /first HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"
    );
    let upgrade = format!("GET /first HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n{SMUGGLED}");
    for (name, first) in [
        ("sized", &sized),
        ("chunked", &chunked),
        ("queued", &queued),
        ("expecting", &expecting),
        ("upgrade", &upgrade),
    ] {
        for round in 0..10 {
            let mut visitor = Visitor::connect(server.address).await;
            visitor.send(first).await;
            assert_eq!(visitor.answer(false).await.text(), "/first", "{name}");
            if round % 2 == 0 {
                drop(visitor);
            }
            let head = format!("GET /second HTTP/1.1\r\nHost: {host}\r\nCookie: owner=second\r\nConnection: close");
            assert_eq!(request(server.address, &head, b"").await.text(), "/second", "{name}");
        }
    }
    for head in seen.heads() {
        let is_second = head.starts_with("GET /second HTTP/1.1\r\n");
        assert_eq!(head.contains("owner=second"), is_second, "a visitor's cookie in another request:\n{head}");
    }
}

#[tokio::test]
async fn requests_without_a_body_share_connections_and_others_keep_their_own() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let (service, seen) = service::watched(true).await;
    let tunnel = user.tunnel(server.address, &["http", service.port().as_str()]).await;
    let host = server.host(tunnel.name());
    let (get, post) = (
        format!("GET /get HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("POST /post HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody"),
    );
    let mut visitors = Vec::new();
    for _ in 0..5 {
        let mut visitor = Visitor::connect(server.address).await;
        visitor.send(&get).await;
        assert_eq!(visitor.answer(false).await.text(), "/get");
        visitors.push(visitor);
    }
    assert_eq!(seen.connections(), 1, "requests without a body use one connection after the other");
    for _ in 0..3 {
        for visitor in &mut visitors {
            visitor.send(&post).await;
            assert_eq!(visitor.answer(false).await.text(), "/post");
            visitor.send(&get).await;
            assert_eq!(visitor.answer(false).await.text(), "/get");
        }
    }
    assert_eq!(seen.connections(), 5, "each visitor's connection keeps one: the first takes the shared one");
}

#[tokio::test]
async fn a_proxys_visitors_do_not_share_a_connection_that_carried_a_body() {
    let (server, user) = (Server::start(&["--trusted-proxies", "127.0.0.1"]).await, User::default());
    let (service, _seen) = service::watched(false).await;
    let tunnel = user.tunnel(server.address, &["http", service.port().as_str()]).await;
    let host = server.host(tunnel.name());
    let mut proxy = Visitor::connect(server.address).await;
    for round in 0..10 {
        let first = format!(
            "POST /first HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 203.0.113.1\r\nContent-Length: {}",
            SMUGGLED.len()
        );
        proxy.send(format!("{first}\r\n\r\n{SMUGGLED}")).await;
        assert_eq!(proxy.answer(false).await.text(), "/first");
        proxy.send(format!("GET /second HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 203.0.113.2\r\n\r\n")).await;
        assert_eq!(proxy.answer(false).await.text(), "/second", "{round}");
    }
}

/// A visitor with another address.
async fn from(last: u8, server: SocketAddr) -> Visitor<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("a loopback address");
    Visitor::over(socket.connect(server).await.expect("a connection"))
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let server = Server::start_with(4096, "limits: {max_connections: 20, max_connections_per_address: 8}").await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    let hang = format!("GET /hang HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut busy = Vec::new();
    for _ in 0..8 {
        let mut visitor = from(2, server.address).await;
        visitor.send(&hang).await;
        busy.push(visitor);
    }
    let get_from = async |last, path: &str, host: &str| {
        let mut visitor = from(last, server.address).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        visitor.answer(false).await.status
    };
    let is_full = async || (get_from(2, "/status/204", &host).await == 503).then_some(());
    eventually("the address has its share", is_full).await;
    assert_eq!(get_from(3, "/status/204", &host).await, 204, "others are served");
    // Silent connections of many addresses take the rest. They give way.
    let mut silent = Vec::new();
    for last in 10..40 {
        silent.push(from(last, server.address).await);
    }
    let gives_way = async || (get_from(4, "/status/204", &host).await == 204).then_some(());
    eventually("an idle one gives way", gives_way).await;
    for last in 40..52 {
        let mut visitor = from(last, server.address).await;
        visitor.send(&hang).await;
        busy.push(visitor);
    }
    let is_full = async || (get_from(5, "/status/204", &host).await == 503).then_some(());
    eventually("all places are busy", is_full).await;
    assert_eq!(get_from(5, "/healthz", "127.0.0.1").await, 200, "health checks get in");
    let other = User::default().tunnel(server.address, &["http", &service.port()]).await;
    assert!(!other.name().is_empty(), "an owner gets in");
}

#[tokio::test]
async fn a_slow_body_of_the_rest_api_is_given_up() {
    let server = Server::start(&[]).await;
    let mut visitor = Visitor::connect(server.address).await;
    let head = "POST /api/v1/auth/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n";
    visitor.send(head).await;
    let started = Instant::now();
    // A byte now and then does not help.
    let answer = loop {
        let sent = tokio::io::AsyncWriteExt::write_all(&mut visitor.socket, b"{").await;
        if sent.is_err() || started.elapsed() > Duration::from_secs(25) {
            break None;
        }
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(500), visitor.answer(false)).await {
            break Some(answer.status);
        }
    };
    assert!(matches!(answer, Some(408 | 0)), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_service_of_one_connection_at_a_time_serves_two_visitors() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let service = service::one_at_a_time().await;
    let tunnel = user.tunnel(server.address, &["http", service.port().as_str()]).await;
    let host = server.host(tunnel.name());
    for _ in 0..3 {
        let started = Instant::now();
        let (one, two) = tokio::join!(get(server.address, &host, "/"), get(server.address, &host, "/"));
        assert_eq!((one.text(), two.text()), ("hi".to_owned(), "hi".to_owned()));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_account_gets_only_its_share_of_ports() {
    let config = format!("tcp-ports: {}\nlimits: {{max_ports_per_account: 2, max_ports_per_address: 3}}", port_range());
    let server = Server::start_with(4096, &config).await;
    let echo = service::tcp_echo().await;
    let (greedy, other, third) = (User::default(), User::default(), User::default());
    let _first = greedy.tunnel(server.address, &["tcp", &echo.port()]).await;
    let _second = greedy.tunnel(server.address, &["tcp", &echo.port()]).await;
    let address = server.address.to_string();
    let (port, own) = (echo.port(), ["tcp", "--server", address.as_str()]);
    let (code, _, stderr) = greedy.run(&[&own[..], &[port.as_str()]].concat()).await;
    assert!(code == 69 && stderr.contains("limit of 2 TCP ports"), "{code} {stderr}");
    let _other = other.tunnel(server.address, &["tcp", &echo.port()]).await;
    let (code, _, stderr) = third.run(&[&own[..], &[port.as_str()]].concat()).await;
    assert!(code == 69 && stderr.contains("clients of your address"), "{code} {stderr}");
}

#[tokio::test]
async fn the_owner_sets_how_long_a_service_may_be_silent() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let service = service::http().await;
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--response-timeout", "500ms"]).await;
    let host = server.host(tunnel.name());
    let answer = get(server.address, &host, "/hang").await;
    assert_eq!((answer.status, answer.header("x-retunnel-error")), (504, Some("local_timeout")));
    // Only the beginning counts: 40 events take two seconds.
    let events = get(server.address, &host, "/events/40").await;
    assert!(events.status == 200 && events.is_complete, "{events:?}");
}

#[tokio::test]
async fn connections_to_the_local_service_are_not_kept_where_the_owner_says_so() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let (service, seen) = service::watched(true).await;
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--local-keep-alive", "off"]).await;
    let host = server.host(tunnel.name());
    for _ in 0..3 {
        assert_eq!(get(server.address, &host, "/").await.text(), "/");
    }
    assert_eq!(seen.connections(), 3);
}

#[tokio::test]
async fn a_slow_service_is_not_taken_for_one_of_one_connection_at_a_time() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let (service, seen) = service::watched(true).await;
    let tunnel = user.tunnel(server.address, &["http", service.port().as_str()]).await;
    let host = server.host(tunnel.name());
    // New connections with slow answers, beside one that was answered at once and is idle.
    for _ in 0..4 {
        let slow = || post(server.address, &host, "/slow", b"body");
        let (one, two, _) = tokio::join!(slow(), slow(), get(server.address, &host, "/fast"));
        assert_eq!((one.text(), two.text()), ("/slow".to_owned(), "/slow".to_owned()));
    }
    let before = seen.connections();
    for _ in 0..10 {
        assert_eq!(get(server.address, &host, "/fast").await.text(), "/fast");
    }
    assert!(seen.connections() <= before + 1, "{} new connections", seen.connections() - before);
}
