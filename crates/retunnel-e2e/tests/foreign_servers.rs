//! Our client on servers that know only a published dialect: strict scripts that end at the first thing the protocol forbids.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::net::SocketAddr;

use retunnel_e2e::{
    apps::App,
    eventually,
    foreign::Foreign,
    process::{Tunnel, User},
    service::{self, pattern},
    sha256,
    visitor::{Answer, get, post, request},
};
use serde_json::Value;
use tokio::task::JoinSet;

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("not JSON: {} {}", answer.status, answer.text()))
}

fn header<'a>(echo: &'a Value, name: &str) -> Option<&'a str> {
    let headers = echo["headers"].as_array().unwrap();
    headers.iter().find(|header| header[0] == name).and_then(|header| header[1].as_str())
}

async fn echoed(address: SocketAddr, host: &str, body: &[u8]) {
    let echo = json(&post(address, host, "/echo", body).await);
    let expected = (Some(body.len() as u64), Some(sha256(body)));
    assert_eq!((echo["length"].as_u64(), echo["sha256"].as_str().map(str::to_owned)), expected);
}

/// Everything that every dialect can do over HTTP, for a tunnel to [`service::http`].
async fn http_works(address: SocketAddr, host: &str) {
    let echo = json(&get(address, host, "/echo/a%20b//c?x=1&y=%2F").await);
    assert_eq!((&echo["method"], &echo["target"]), (&"GET".into(), &"/echo/a%20b//c?x=1&y=%2F".into()));
    assert_eq!(header(&echo, "host"), Some(host));
    assert_eq!((header(&echo, "connection"), header(&echo, "transfer-encoding")), (None, None));
    for size in [0, 1000, 65_537, 3_000_000] {
        echoed(address, host, &pattern(size)).await;
    }
    let chunked = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close");
    let echo = json(&request(address, &chunked, b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n").await);
    assert_eq!(echo["sha256"], sha256(b"hello!"));

    let large = get(address, host, "/bytes/5000000").await;
    let expected: Vec<u8> = pattern(64 * 1024).into_iter().cycle().take(5_000_000).collect();
    assert_eq!((large.status, large.is_complete, sha256(&large.body)), (200, true, sha256(&expected)));
    // The framing of chunks is the local connection's.
    let chunks = get(address, host, "/chunks/500").await;
    assert_eq!((chunks.status, chunks.text().lines().count()), (200, 500));
    assert!(chunks.text().ends_with("chunk 499\n"));
    let redirect = get(address, host, "/redirect").await;
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("/echo?from=redirect")));
    for status in [204, 304, 404, 500, 503] {
        assert_eq!(get(address, host, &format!("/status/{status}")).await.status, status);
    }
    let head = request(address, &format!("HEAD /bytes/77 HTTP/1.1\r\nHost: {host}\r\nConnection: close"), b"").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("77"), 0));
    let cookies = get(address, host, "/cookies").await;
    let mut set: Vec<_> =
        cookies.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| value.as_str()).collect();
    set.sort_unstable();
    assert_eq!((set.as_slice(), cookies.text().as_str()), (&["a=1", "b=2; Path=/", "c=3"][..], "crumbs"));

    let mut visitors = JoinSet::new();
    for n in 0..50 {
        let host = host.to_owned();
        visitors.spawn(async move {
            json(&get(address, &host, &format!("/echo/{n}")).await)["target"] == format!("/echo/{n}")
        });
    }
    assert_eq!(visitors.join_all().await.into_iter().filter(|right| *right).count(), 50);
    // An answer that was cut never looks complete.
    for path in ["/cut/1000", "/cut"] {
        let cut = get(address, host, path).await;
        assert!(cut.status == 502 || !cut.is_complete, "{path}: {cut:?}");
    }
}

async fn open(server: &Foreign, user: &User, dialect: &str, more: &[&str]) -> Tunnel {
    let tunnel = user.tunnel(server.address, &[more, &["--dialect", dialect]].concat()).await;
    if dialect != "auto" {
        assert_eq!(tunnel.info["dialect"], dialect);
    }
    tunnel
}

/// What a user relies on, on a server that speaks only `dialect`.
async fn works(dialect: &'static str, options: &[&str]) {
    let (server, service, user) = (Foreign::start(dialect, options).await, service::http().await, User::default());
    let mut tunnel = open(&server, &user, dialect, &["http", &service.port(), "--subdomain", "shop"]).await;
    assert_eq!(tunnel.info["url"], format!("http://shop.tunnel.test:{}", server.address.port()));
    let host = server.host("shop");
    http_works(server.address, &host).await;

    // A restarted server has the name for it again.
    let server = server.restart().await;
    let served = || async { (get(server.address, &host, "/status/204").await.status == 204).then_some(()) };
    eventually("the client is back", served).await;

    // A goodbye is a goodbye.
    tunnel.process.signal("TERM").await;
    assert_eq!(tunnel.process.exit().await, Some(0));
    server.finish().await;
}

/// The local service goes and comes.
async fn survives_the_local_service(dialect: &'static str) {
    let (server, user) = (Foreign::start(dialect, &[]).await, User::default());
    let app = App::python(0).await;
    let tunnel = open(&server, &user, dialect, &["http", &app.port()]).await;
    let host = server.host(tunnel.name());
    assert_eq!(get(server.address, &host, "/chunks/20").await.text().lines().count(), 20);
    assert_eq!(get(server.address, &host, "/close").await.text(), "until the end");
    let port = app.address.port();
    app.process.kill().await;
    assert_eq!(get(server.address, &host, "/echo").await.status, 502);
    let _again = App::python(port).await;
    assert_eq!(get(server.address, &host, "/echo").await.status, 200);
    server.finish().await;
}

/// A password asked from visitors, whoever checks it.
async fn asks_for_a_password(dialect: &'static str) {
    let (server, service, user) = (Foreign::start(dialect, &[]).await, service::http().await, User::default());
    let tunnel = open(&server, &user, dialect, &["http", &service.port(), "--auth", "me:secret"]).await;
    let host = server.host(tunnel.name());
    for (value, status) in [("", 401), ("Basic bWU6d3Jvbmc=", 401), ("Bearer x", 401), ("Basic bWU6c2VjcmV0", 200)] {
        let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: {value}");
        let answer = request(server.address, &head, b"").await;
        assert_eq!(answer.status, status, "{value}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    server.finish().await;
}

#[tokio::test]
async fn dialect_2_works() {
    works("2", &[]).await;
}

#[tokio::test]
async fn dialect_2_survives_the_local_service() {
    survives_the_local_service("2").await;
}

#[tokio::test]
async fn dialect_2_asks_for_a_password() {
    asks_for_a_password("2").await;
}

#[tokio::test]
async fn auto_finds_dialect_2() {
    let (server, service, user) = (Foreign::start("2", &[]).await, service::http().await, User::default());
    let tunnel = open(&server, &user, "auto", &["http", &service.port()]).await;
    assert_eq!(tunnel.info["dialect"], "2");
    assert_eq!(get(server.address, &server.host(tunnel.name()), "/status/204").await.status, 204);
    server.finish().await;
}
