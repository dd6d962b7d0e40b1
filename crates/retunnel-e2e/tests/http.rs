//! HTTP through a real tunnel: the built server, the built client, a hyper service, visitors on sockets.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT, eventually,
    process::{Server, Tunnel, User},
    service::{self, Service, pattern},
    sha256,
    visitor::{self, Visitor, get, post, request},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_websockets::{ClientBuilder, Message};

struct World {
    server: Server,
    tunnel: Tunnel,
    service: Service,
    host: String,
    _user: User,
}

async fn world() -> World {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    World { server, tunnel, service, host, _user: user }
}

fn json(answer: &visitor::Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("not JSON: {} {}", answer.status, answer.text()))
}

fn header<'a>(echo: &'a Value, name: &str) -> Option<&'a str> {
    let headers = echo["headers"].as_array().unwrap();
    headers.iter().find(|header| header[0] == name).and_then(|header| header[1].as_str())
}

#[tokio::test]
async fn requests_arrive_as_they_were_sent() {
    let world = world().await;
    let head = format!(
        "PUT /echo/a%2Fb//c?x=1&y=%20 HTTP/1.1\r\nHost: {}\r\nX-One: 1\r\nX-Two: 2\r\nContent-Length: 5\r\n\
         X-Forwarded-For: 6.6.6.6\r\nConnection: close, X-Two",
        world.host
    );
    let echo = json(&request(world.server.address, &head, b"hello").await);
    assert_eq!(echo["method"], "PUT");
    assert_eq!(echo["target"], "/echo/a%2Fb//c?x=1&y=%20");
    assert_eq!(echo["sha256"], sha256(b"hello"));
    assert_eq!(header(&echo, "host"), Some(world.host.as_str()));
    assert_eq!((header(&echo, "x-one"), header(&echo, "x-two")), (Some("1"), None));
    assert_eq!(header(&echo, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(&echo, "x-forwarded-host"), Some(world.host.as_str()));
}

#[tokio::test]
async fn answers_come_back_in_every_framing() {
    let world = world().await;
    let (address, host) = (world.server.address, world.host.as_str());
    let sized = get(address, host, "/bytes/100000").await;
    assert!(sized.is_complete && sized.header("content-length") == Some("100000"));
    assert_eq!(sized.body, pattern(64 * 1024).into_iter().cycle().take(100_000).collect::<Vec<_>>());
    let head = format!("GET /chunks/5 HTTP/1.1\r\nHost: {host}\r\nTE: trailers\r\nConnection: close, TE");
    let chunked = request(address, &head, b"").await;
    assert!(chunked.is_complete);
    assert_eq!(chunked.text().lines().count(), 5);
    assert_eq!(chunked.trailers, [("x-count".to_owned(), "5".to_owned())]);
    for (path, status) in [("/status/204", 204), ("/status/304", 304), ("/status/404", 404), ("/status/500", 500)] {
        let answer = get(address, host, path).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}");
    }
    let head = request(address, &format!("HEAD /bytes/77 HTTP/1.1\r\nHost: {host}\r\nConnection: close"), b"").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("77"), 0));
    let cookies = get(address, host, "/cookies").await;
    let set: Vec<_> =
        cookies.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| value.as_str()).collect();
    assert_eq!(set, ["a=1", "b=2; Path=/", "c=3"]);
    assert_eq!(get(address, host, "/redirect").await.header("location"), Some("/echo?from=redirect"));
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let world = world().await;
    let mut visitor = Visitor::connect(world.server.address).await;
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", world.host);
    // Row 8: a body on GET, and a pipelined request right after it.
    visitor
        .send(format!(
            "GET /echo/1 HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\n\r\nhello{}{}",
            world.host,
            one("/chunks/2"),
            one("/echo/3")
        ))
        .await;
    let first = json(&visitor.answer(false).await);
    assert_eq!((&first["target"], &first["length"]), (&Value::from("/echo/1"), &Value::from(5)));
    assert_eq!(visitor.answer(false).await.text(), "chunk 0\nchunk 1\n");
    assert_eq!(json(&visitor.answer(false).await)["target"], "/echo/3");
    for n in 0..50 {
        visitor.send(one(&format!("/echo/{n}"))).await;
        assert_eq!(json(&visitor.answer(false).await)["target"], format!("/echo/{n}"));
    }
    // HTTP/1.0 closes, and gets no chunks.
    let old = request(world.server.address, &format!("GET /chunks/3 HTTP/1.0\r\nHost: {}", world.host), b"").await;
    assert_eq!((old.header("transfer-encoding"), old.text().lines().count()), (None, 3));
}

#[tokio::test]
async fn bodies_pass_in_both_directions() {
    let world = world().await;
    let (address, host) = (world.server.address, world.host.as_str());
    for size in [0, 1, 16_383, 65_536, 3_000_000] {
        let body = pattern(size);
        let echo = json(&post(address, host, "/echo", &body).await);
        assert_eq!(
            (echo["length"].as_u64(), echo["sha256"].as_str()),
            (Some(size as u64), Some(sha256(&body).as_str()))
        );
    }
    // Chunked, in pieces, with a trailer.
    let mut visitor = Visitor::connect(address).await;
    visitor.send(format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    for piece in ["5\r\nhel", "lo\r\n1;x=y\r\n", "!\r\n0\r\nX-Sum: 6\r\nContent-Length: 9\r\n\r\n"] {
        visitor.send(piece).await;
        tokio::task::yield_now().await;
    }
    let echo = json(&visitor.answer(false).await);
    assert_eq!((&echo["length"], &echo["sha256"]), (&Value::from(6), &Value::from(sha256(b"hello!"))));
    assert_eq!(echo["trailers"], serde_json::json!([["x-sum", "6"]]));
    // The local service's 100 lets the visitor send its body.
    let mut visitor = Visitor::connect(address).await;
    visitor
        .send(format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"))
        .await;
    assert!(visitor.head().await.unwrap().starts_with("HTTP/1.1 100"));
    visitor.send("ok").await;
    assert_eq!(json(&visitor.answer(false).await)["length"], 2);
}

#[tokio::test]
async fn a_gigabyte_passes_each_way_in_little_memory() {
    const SIZE: usize = 1 << 30;
    const LIMIT: u64 = 64 * 1024 * 1024;
    let world = world().await;
    let mut visitor = Visitor::connect(world.server.address).await;
    visitor.send(format!("GET /bytes/{SIZE} HTTP/1.1\r\nHost: {}\r\n\r\n", world.host)).await;
    assert!(visitor.head().await.unwrap().starts_with("HTTP/1.1 200"));
    let mut left = SIZE;
    while left > 0 {
        let piece = visitor.take(left.min(1 << 20)).await;
        assert!(!piece.is_empty(), "{left} bytes are missing");
        left -= piece.len();
    }
    println!("after the download: server {} MiB", world.server.process.peak_memory() >> 20);
    visitor.send(format!("POST /sink HTTP/1.1\r\nHost: {}\r\nContent-Length: {SIZE}\r\n\r\n", world.host)).await;
    let piece = pattern(1 << 20);
    for _ in 0..SIZE >> 20 {
        visitor.send(&piece).await;
    }
    assert_eq!(visitor.answer(false).await.text(), SIZE.to_string());
    let (server, client) = (world.server.process.peak_memory(), world.tunnel.process.peak_memory());
    println!("peak memory: server {} MiB, client {} MiB", server >> 20, client >> 20);
    assert!(server < LIMIT && client < LIMIT, "server {server}, client {client}");
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_little_memory_and_stalls_no_one() {
    let world = world().await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut visitor = Visitor::connect(world.server.address).await;
        visitor.send(format!("GET /bytes/{} HTTP/1.1\r\nHost: {}\r\n\r\n", 1 << 30, world.host)).await;
        visitor.head().await.unwrap();
        stalled.push(visitor);
    }
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(get(world.server.address, &world.host, "/status/204").await.status, 204);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert!(world.server.process.memory() < 96 << 20);
    assert!(world.tunnel.process.memory() < 96 << 20);
}

#[tokio::test]
async fn two_hundred_visitors_at_once() {
    let world = world().await;
    let mut visitors = JoinSet::new();
    for n in 0..200 {
        let (address, host) = (world.server.address, world.host.clone());
        visitors.spawn(async move {
            let body = pattern(n * 97);
            let echo = json(&post(address, &host, &format!("/echo/{n}"), &body).await);
            (echo["target"] == format!("/echo/{n}")) && echo["sha256"] == sha256(&body)
        });
    }
    let right = visitors.join_all().await.into_iter().filter(|right| *right).count();
    assert_eq!(right, 200);
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let world = world().await;
    let mut visitor = Visitor::connect(world.server.address).await;
    visitor.send(format!("GET /events/5 HTTP/1.1\r\nHost: {}\r\n\r\n", world.host)).await;
    visitor.head().await.unwrap();
    let started = Instant::now();
    let mut times = Vec::new();
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        let mut seen = Vec::new();
        while !seen.ends_with(event.as_bytes()) {
            seen.extend(visitor.take(1).await);
        }
        times.push(started.elapsed());
    }
    // The service pauses between events; if they were gathered, all would arrive at once.
    assert!(times[4] - times[0] > Duration::from_millis(100), "{times:?}");
}

#[tokio::test]
async fn websockets_echo_and_bytes_behind_the_handshake_wait_for_it() {
    let world = world().await;
    let uri = format!("ws://{}/ws", world.host);
    let socket = tokio::net::TcpStream::connect(world.server.address).await.unwrap();
    let (mut client, response) = ClientBuilder::new().uri(&uri).unwrap().connect_on(socket).await.expect("an upgrade");
    assert_eq!(response.status(), 101);
    for size in [0, 5, 200_000] {
        let message = pattern(size);
        client.send(Message::binary(message.clone())).await.unwrap();
        let echo = timeout(TIMEOUT, client.next()).await.unwrap().unwrap().unwrap();
        assert!(*echo.into_payload() == message[..]);
    }
    client.close().await.unwrap();
    // Row 9: the service does not agree to upgrade; what follows is a request of its own.
    let mut visitor = Visitor::connect(world.server.address).await;
    visitor
        .send(format!(
            "GET /echo/1 HTTP/1.1\r\nHost: {0}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
             GET /echo/2 HTTP/1.1\r\nHost: {0}\r\n\r\n",
            world.host
        ))
        .await;
    assert_eq!(json(&visitor.answer(false).await)["target"], "/echo/1");
    let second = visitor.answer(false).await;
    assert!(second.status == 0 || json(&second)["target"] == "/echo/2");
}

#[tokio::test]
async fn a_cut_answer_never_looks_complete() {
    let world = world().await;
    for path in ["/cut", "/cut/1000"] {
        let answer = get(world.server.address, &world.host, path).await;
        // The service may fail before it has sent anything; then there is an error page.
        assert!(!answer.is_complete || answer.status == 502, "{path}: {}", answer.text());
    }
    assert_eq!(get(world.server.address, &world.host, "/status/204").await.status, 204);
}

#[tokio::test]
async fn a_visitor_that_leaves_ends_its_connection_to_the_service() {
    let world = world().await;
    let mut visitors = Vec::new();
    for _ in 0..10 {
        let mut visitor = Visitor::connect(world.server.address).await;
        visitor.send(format!("GET /events/1000000 HTTP/1.1\r\nHost: {}\r\n\r\n", world.host)).await;
        visitor.head().await.unwrap();
        visitors.push(visitor);
    }
    let before = world.tunnel.process.descriptors();
    drop(visitors);
    eventually("the connections end", || async { (world.tunnel.process.descriptors() + 10 <= before).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_service_that_comes_and_goes() {
    let World { server, tunnel, service, host, .. } = &mut world().await;
    let address = service.address;
    assert_eq!(get(server.address, host, "/status/204").await.status, 204);
    *service = service::tcp_echo().await;
    let down = eventually("the service is gone", || async {
        let answer = get(server.address, host, "/echo").await;
        (answer.header("x-retunnel-error") == Some("local_unreachable")).then_some(answer)
    })
    .await;
    assert_eq!(down.status, 502);
    assert!(down.text().contains("connection refused"), "{}", down.text());
    *service = service::http_on(address).await;
    assert_eq!(get(server.address, host, "/status/204").await.status, 204);
    tunnel.process.signal("TERM").await;
    assert_eq!(tunnel.process.exit().await, Some(0));
}

#[tokio::test]
async fn error_pages_have_the_form_that_was_asked_for() {
    let server = Server::start(&[]).await;
    for (accept, kind) in [("text/html", "text/html"), ("application/json", "application/json"), ("*/*", "text/plain")]
    {
        let head = format!("GET / HTTP/1.1\r\nHost: nobody.tunnel.test\r\nAccept: {accept}\r\nConnection: close");
        let answer = request(server.address, &head, b"").await;
        assert_eq!((answer.status, answer.header("x-retunnel-error")), (404, Some("tunnel_not_found")));
        assert!(answer.header("content-type").unwrap().starts_with(kind));
        assert!(answer.text().contains("tunnel_not_found"));
    }
}

#[tokio::test]
async fn bad_requests_are_refused_and_reach_nobody() {
    let world = world().await;
    let host = &world.host;
    for (head, status) in [
        (format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"), 400),
        (format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 6"), 400),
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}"), 400),
        ("GET / HTTP/1.1".to_owned(), 400),
        (format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}"), 405),
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}", "a".repeat(70_000)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: {host}", "a".repeat(70_000)), 414),
    ] {
        let answer = request(world.server.address, &head, b"").await;
        assert_eq!(answer.status, status, "{}", &head[..head.len().min(80)]);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    for spelling in [host.to_uppercase(), format!("{host}."), format!("{host}:80")] {
        assert_eq!(get(world.server.address, &spelling, "/status/204").await.status, 204, "{spelling}");
    }
}

#[tokio::test]
async fn a_password_is_asked_for_every_time() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--auth", "me:secret"]).await;
    let host = server.host(tunnel.name());
    for (value, status) in [("", 401), ("Basic bWU6d3Jvbmc=", 401), ("Basic bWU6c2VjcmV0", 200)] {
        let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: {value}");
        let answer = request(server.address, &head, b"").await;
        assert_eq!(answer.status, status, "{value}");
        if status == 401 {
            assert!(answer.header("www-authenticate").unwrap().starts_with("Basic"));
        } else {
            assert_eq!(header(&json(&answer), "authorization"), None, "the password is not the service's business");
        }
    }
}

#[tokio::test]
async fn an_aborted_upload_is_seen_by_the_service_and_harms_nobody() {
    let world = world().await;
    for _ in 0..5 {
        let mut visitor = Visitor::connect(world.server.address).await;
        visitor
            .send(format!("POST /sink HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000000\r\n\r\nabc", world.host))
            .await;
        visitor.socket.shutdown().await.unwrap();
        drop(visitor);
    }
    assert_eq!(get(world.server.address, &world.host, "/status/204").await.status, 204);
    let open = || async {
        let descriptors = world.tunnel.process.descriptors();
        (descriptors < 25).then_some(())
    };
    eventually("the connections end", open).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_repeated_rides_on_a_connection_used_a_moment_ago() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let app = service::http().await;
    let tunnel = user.tunnel(server.address, &["http", &app.port()]).await;
    let host = server.host(tunnel.name());
    // Of one visitor: with a body a connection is not shared.
    let mut visitor = Visitor::connect(server.address).await;
    let request = format!("POST /peer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody");
    let mut peer = async || {
        visitor.send(&request).await;
        visitor.answer(false).await.text()
    };
    // On a busy machine, more than a second may pass between two requests.
    let mut last = peer().await;
    let mut same = false;
    for _ in 0..20 {
        let next = peer().await;
        same |= next == last;
        last = next;
    }
    assert!(same, "each took a connection of its own");
    // Longer than the moment, shorter than what others may use.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_ne!(peer().await, last, "it may be about to be closed");
}

#[tokio::test]
async fn a_post_on_a_kept_connection_that_ends_is_lost_and_never_sent_twice() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let seen = Arc::new(AtomicUsize::new(0));
    let mut app = JoinSet::new();
    let counter = Arc::clone(&seen);
    app.spawn(async move {
        // Each connection answers one request and ends with the next.
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let mut answered = false;
            while socket.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
                if !request.ends_with(b"\r\n\r\nbody") {
                    continue;
                }
                request.clear();
                counter.fetch_add(1, Relaxed);
                if std::mem::replace(&mut answered, true) {
                    break;
                }
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    let tunnel = user.tunnel(server.address, &["http", &port]).await;
    let host = server.host(tunnel.name());
    let mut sent = 0;
    let mut visitor = Visitor::connect(server.address).await;
    let lost = loop {
        sent += 1;
        visitor.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody")).await;
        let answer = visitor.answer(false).await;
        // After a pause the next one has a connection of its own.
        if answer.status != 200 {
            break answer;
        }
        assert!(sent < 20, "no request took a kept connection");
    };
    assert_eq!(lost.status, 502, "{}", lost.text());
    assert_eq!(seen.load(Relaxed), sent, "a request arrived twice");
}
