//! Rows 9 to 27 of the reliability list that need sockets or a misbehaving service.

use retunnel_e2e::{
    eventually,
    process::{Server, Tunnel, User},
    service::{self, Service},
    visitor::{Visitor, get, request},
};
use serde_json::Value;

struct World {
    server: Server,
    tunnel: Tunnel,
    host: String,
    _service: Service,
    _user: User,
}

async fn world(options: &[&str], service: Service, arguments: &[&str]) -> World {
    let (server, user) = (Server::start(options).await, User::default());
    let port = service.port();
    let tunnel = user.tunnel(server.address, &[&["http", port.as_str()], arguments].concat()).await;
    let host = server.host(tunnel.name());
    World { server, tunnel, host, _service: service, _user: user }
}

#[tokio::test]
async fn row_11_a_misbehaving_service_gives_a_502_or_a_reframed_answer() {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(10 << 20));
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(100);
    let cases: &[(&str, &str, u16, &str)] = &[
        (
            "both",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
            "ok",
        ),
        ("coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, ""),
        ("twice", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 502, ""),
        ("no-content", "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", 204, ""),
        ("unasked", "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw", 502, ""),
        ("huge", &huge, 502, ""),
        ("other", "SSH-2.0-OpenSSH\r\n", 502, ""),
        ("bad-chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 502, ""),
        ("interim", &interim, 502, ""),
        ("old", "HTTP/1.0 200 OK\r\n\r\nto the end", 200, "to the end"),
        (
            "surplus",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            200,
            "ok",
        ),
        ("nothing", "", 502, ""),
    ];
    let script = cases.iter().map(|(path, answer, ..)| (format!("/{path}"), answer.to_string())).collect();
    let world = world(&[], service::scripted(script).await, &[]).await;
    for (path, _, status, body) in cases {
        let path = format!("/{path}");
        let mut visitor = Visitor::connect(world.server.address).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.host)).await;
        let answer = loop {
            let answer = visitor.answer(false).await;
            if answer.status >= 200 || answer.status == 0 {
                break answer;
            }
        };
        assert_eq!((answer.status, answer.is_complete), (*status, true), "{path}");
        if *status == 200 {
            assert_eq!(answer.text(), *body, "{path}");
        }
        assert_eq!(
            get(world.server.address, &world.host, "/any").await.text(),
            "fine",
            "the next visitor, after {path}"
        );
    }
    let head = format!("HEAD /surplus HTTP/1.1\r\nHost: {}\r\nConnection: close", world.host);
    assert_eq!(request(world.server.address, &head, b"").await.header("content-length"), Some("2"));
}

#[tokio::test]
async fn row_12_a_cut_answer_ends_with_a_reset() {
    let script = vec![
        ("/sized".to_owned(), "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_owned()),
        ("/chunked".to_owned(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_owned()),
    ];
    let world = world(&[], service::scripted(script).await, &[]).await;
    for path in ["/sized", "/chunked"] {
        let mut visitor = Visitor::connect(world.server.address).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", world.host)).await;
        assert!(visitor.head().await.unwrap().starts_with("HTTP/1.1 200"));
        let mut rest = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut visitor.socket, &mut rest).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{path}");
    }
}

#[tokio::test]
async fn row_13_an_early_answer_passes_and_ends_the_connection() {
    let script = vec![("/big".to_owned(), "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig".to_owned())];
    let world = world(&[], service::scripted(script).await, &[]).await;
    for expect in ["Expect: 100-continue\r\n", ""] {
        let mut visitor = Visitor::connect(world.server.address).await;
        let host = &world.host;
        visitor.send(format!("POST /big HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n{expect}\r\n")).await;
        let answer = visitor.answer(false).await;
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{expect}");
        assert_eq!(visitor.to_end().await, b"");
    }
}

#[tokio::test]
async fn a_visitor_that_leaves_before_an_upgrade_is_agreed_is_noticed() {
    let world = world(&[], service::http().await, &[]).await;
    let mut visitors = Vec::new();
    for _ in 0..10 {
        let mut visitor = Visitor::connect(world.server.address).await;
        let head = format!("GET /hang HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket", world.host);
        visitor.send(format!("{head}\r\n\r\n")).await;
        visitors.push(visitor);
    }
    let open = || world.tunnel.process.descriptors();
    let before = eventually("the service is asked", || async { Some(open()).filter(|open| *open >= 18) }).await;
    drop(visitors);
    eventually("the connections end", || async { (open() + 10 <= before).then_some(()) }).await;
}

#[tokio::test]
async fn rows_16_and_19_unknown_names_look_alike() {
    let server = Server::start(&[]).await;
    let pages = ["nobody", "www", "x.y", "UPPER"].map(|name| server.host(name));
    let mut seen = Vec::new();
    for host in pages.iter().map(String::as_str).chain(["2130706433", "other.test"]) {
        let answer = get(server.address, host, "/<script>").await;
        assert_eq!(answer.status, 404, "{host}");
        seen.push(answer.text());
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(!seen[0].contains("script"));
}

#[tokio::test]
async fn row_21_a_name_within_another_one_stays_apart() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let mut tunnels = Vec::new();
    for name in ["a", "ab", "b"] {
        let script =
            vec![("/who".to_owned(), format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))];
        let service = service::scripted(script).await;
        let tunnel = user.tunnel(server.address, &["http", &service.port(), "--subdomain", name]).await;
        tunnels.push((name, service, tunnel));
    }
    for (name, ..) in &tunnels {
        assert_eq!(get(server.address, &server.host(name), "/who").await.text(), *name);
    }
}

#[tokio::test]
async fn row_23_only_a_trusted_proxy_is_believed() {
    for (trusted, expected) in [("127.0.0.0/8", "6.6.6.6, 127.0.0.1"), ("10.0.0.0/8", "127.0.0.1")] {
        let world = world(&["--trusted-proxies", trusted], service::http().await, &[]).await;
        let head = format!(
            "GET /echo HTTP/1.1\r\nHost: {}\r\nConnection: close, X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n\
             X-Forwarded-Proto: https\r\nx_forwarded_for: 7.7.7.7\r\nForwarded: for=8.8.8.8\r\nX-Real-IP: 9.9.9.9",
            world.host
        );
        let echo: Value = serde_json::from_slice(&request(world.server.address, &head, b"").await.body).unwrap();
        let all = echo["headers"].to_string();
        let one = |name: &str| {
            let headers = echo["headers"].as_array().unwrap();
            let values: Vec<_> = headers.iter().filter(|header| header[0] == name).map(|header| &header[1]).collect();
            assert_eq!(values.len(), 1, "{name}: {all}");
            values[0].as_str().unwrap().to_owned()
        };
        assert_eq!(one("x-forwarded-for"), expected);
        assert_eq!(one("x-forwarded-proto"), if expected.contains('6') { "https" } else { "http" });
        assert!(!all.contains("7.7.7.7"), "{all}");
        for odd in ["8.8.8.8", "9.9.9.9"] {
            assert_eq!(all.contains(odd), expected.contains('6'), "{all}");
        }
    }
}

#[tokio::test]
async fn row_27_preflights_and_upgrades_need_the_password_too() {
    let world = world(&[], service::http().await, &["--auth", "me:secret"]).await;
    let right = "Authorization: Basic bWU6c2VjcmV0";
    for (line, headers) in [
        ("OPTIONS /echo", "Origin: http://a.test\r\nAccess-Control-Request-Method: PUT"),
        (
            "GET /ws",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==",
        ),
        ("GET /echo", "Authorization: Basic"),
        ("GET /echo", "Authorization: Basic bWU6c2VjcmV0 x"),
        ("GET /echo", &format!("{right}\r\n{right}")),
        ("GET http://other.tunnel.test/", right),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: {}\r\n{headers}", world.host);
        let answer = request(world.server.address, &head, b"").await;
        // The last one is routed by its target, a name that does not exist, whatever the password.
        assert_eq!(answer.status, if line.contains("other") { 404 } else { 401 }, "{line} {headers}");
    }
    // A kept connection does not bypass it: each request is checked.
    let mut visitor = Visitor::connect(world.server.address).await;
    for (headers, status) in [(right, 200), ("A: b", 401), (right, 200)] {
        visitor.send(format!("GET /echo HTTP/1.1\r\nHost: {}\r\n{headers}\r\n\r\n", world.host)).await;
        assert_eq!(visitor.answer(false).await.status, status);
    }
}
