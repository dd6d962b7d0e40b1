//! Our client with servers that support only a published dialect: strict scripts that exit at the first protocol violation.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    apps::{self, App},
    eventually,
    foreign::Foreign,
    process::{Running, Server, Tunnel, User, port_range},
    service::{self, pattern},
    sha256,
    visitor::{Answer, Visitor, get, post, request},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};
use tokio_websockets::{ClientBuilder, Message};

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
    assert_eq!(tunnel.info["dialect"], dialect);
    tunnel
}

/// What a user relies on, on a server that speaks only `dialect`.
async fn works(dialect: &'static str, options: &[&str]) {
    let (server, service, user) = (Foreign::start(dialect, options).await, service::http().await, User::default());
    let mut tunnel = open(&server, &user, dialect, &["http", &service.port(), "--subdomain", "shop"]).await;
    assert_eq!(tunnel.info["url"], format!("http://shop.tunnel.test:{}", server.address.port()));
    let host = server.host("shop");
    http_works(server.address, &host).await;

    // A restarted server gives it the same name.
    let server = server.restart().await;
    let served = || async { (get(server.address, &host, "/status/204").await.status == 204).then_some(()) };
    eventually("the client is back", served).await;

    // A goodbye releases the name.
    tunnel.process.signal("TERM").await;
    assert_eq!(tunnel.process.exit().await, Some(0));
    server.finish().await;
}

/// The local service stops and starts again.
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

/// Visitors need a password, whichever side checks it.
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

const VERSIONS: [&[&str]; 2] = [&["--version", "1"], &["--version", "2"]];

#[tokio::test]
async fn dialect_3_works() {
    works("3", VERSIONS[1]).await;
}

#[tokio::test]
async fn dialect_3_version_1_works() {
    works("3", VERSIONS[0]).await;
}

#[tokio::test]
async fn dialect_3_survives_the_local_service() {
    survives_the_local_service("3").await;
}

#[tokio::test]
async fn dialect_3_asks_for_a_password() {
    asks_for_a_password("3").await;
}

#[tokio::test]
async fn dialect_3_carries_events_one_by_one() {
    let (server, service, user) = (Foreign::start("3", &[]).await, service::http().await, User::default());
    let tunnel = open(&server, &user, "3", &["http", &service.port()]).await;
    // Not at the end.
    let mut visitor = Visitor::connect(server.address).await;
    visitor.send(format!("GET /events/20 HTTP/1.1\r\nHost: {}\r\n\r\n", server.host(tunnel.name()))).await;
    visitor.head().await.unwrap();
    let first = visitor.take(15).await;
    assert!(String::from_utf8_lossy(&first).contains("data: 0"), "{first:?}");
    assert!(!String::from_utf8_lossy(&visitor.received).contains("data: 19"));
    server.finish().await;
}

async fn websocket(address: SocketAddr, host: &str) -> tokio_websockets::WebSocketStream<tokio::net::TcpStream> {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let builder = ClientBuilder::new().uri(&format!("ws://{host}/ws")).unwrap();
    builder.connect_on(socket).await.unwrap().0
}

/// Messages of every kind and size, a burst, and a code at the end.
async fn carries_websockets(address: SocketAddr, host: &str) {
    let mut socket = websocket(address, host).await;
    let large = pattern(1_000_000);
    for message in [Message::text("grüße"), Message::binary(large), Message::text(""), Message::binary(vec![])] {
        let sent = (message.is_text(), message.as_payload().to_vec());
        socket.send(message).await.unwrap();
        let back = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((back.is_text(), back.as_payload().to_vec()), sent);
    }
    for n in 0..600 {
        socket.feed(Message::text(n.to_string())).await.unwrap();
    }
    socket.flush().await.unwrap();
    for n in 0..600 {
        let back = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back.as_text(), Some(n.to_string().as_str()));
    }
    socket.send(Message::text("close 4001")).await.unwrap();
    let close = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
    let said = close.as_close().map(|(code, reason)| (u16::from(code), reason.to_owned()));
    assert_eq!(said, Some((4001, "as you wish".into())));
}

#[tokio::test]
async fn dialect_3_carries_websockets() {
    for version in VERSIONS {
        let (server, service, user) = (Foreign::start("3", version).await, service::http().await, User::default());
        let tunnel = open(&server, &user, "3", &["http", &service.port()]).await;
        carries_websockets(server.address, &server.host(tunnel.name())).await;
        server.finish().await;
    }
}

#[tokio::test]
async fn dialect_3_tells_how_the_service_refuses_a_websocket() {
    let (server, service, user) = (Foreign::start("3", &[]).await, service::http().await, User::default());
    let tunnel = open(&server, &user, "3", &["http", &service.port()]).await;
    let upgrade = format!(
        "GET /status/403 HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        server.host(tunnel.name())
    );
    assert_eq!(request(server.address, &upgrade, b"").await.status, 403);
    // And which subprotocol it takes.
    let mut visitor = Visitor::connect(server.address).await;
    let offer = upgrade.replace("/status/403", "/ws") + "\r\nSec-WebSocket-Protocol: one, two\r\n\r\n";
    visitor.send(offer).await;
    let head = visitor.head().await.unwrap().to_ascii_lowercase();
    assert!(head.contains(" 101 ") && head.contains("sec-websocket-protocol: two\r\n"), "{head}");
    drop(visitor);
    server.finish().await;
}

#[tokio::test]
async fn dialect_3_carries_tcp_and_two_tunnels_in_one_session() {
    let (server, service, user) = (Foreign::start("3", &[]).await, service::http().await, User::default());
    let echo = service::tcp_echo().await;
    let file = user.home().join("retunnel.yml");
    let (http, tcp) = (service.port(), echo.port());
    std::fs::write(
        &file,
        format!(
            "dialect: '3'\ntunnels:\n  - {{name: web, protocol: http, local_port: {http}, subdomain: app}}\n  \
             - {{name: api, protocol: http, local_port: {http}, subdomain: app2}}\n  \
             - {{name: raw, protocol: tcp, local_port: {tcp}}}\n"
        ),
    )
    .unwrap();
    let tunnels = user.tunnel(server.address, &["start", file.to_str().unwrap()]).await;
    let all = tunnels.info["tunnels"].as_array().unwrap();
    assert_eq!(all.iter().map(|tunnel| tunnel["dialect"].as_str().unwrap()).collect::<Vec<_>>(), ["3", "3", "3"]);
    for name in ["app", "app2"] {
        assert_eq!(get(server.address, &server.host(name), "/status/204").await.status, 204);
    }
    carries_tcp(all[2]["remote_port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap()).await;
    server.finish().await;
}

async fn carries_tcp(port: u16) {
    let mut visitor = Visitor::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let body = pattern(2_000_000);
    let (mut reader, mut writer) = visitor.socket.split();
    let mut back = vec![0; body.len()];
    let (sent, received) = tokio::join!(writer.write_all(&body), reader.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert_eq!(sha256(&back), sha256(&body));
}

/// `--host-header` is applied by the client if the server does not know it.
async fn shows_the_service_its_own_address(dialect: &'static str) {
    let (server, service, user) = (Foreign::start(dialect, &[]).await, service::http().await, User::default());
    let rewrite = ["http", &service.port(), "--subdomain", "dev", "--host-header", "rewrite"];
    let tunnel = open(&server, &user, dialect, &rewrite).await;
    let (host, own) = (server.host("dev"), format!("localhost:{}", service.port()));
    let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: close");
    let echo = json(&request(server.address, &head, b"").await);
    assert_eq!(header(&echo, "host"), Some(&*own));
    assert_eq!(header(&echo, "origin"), Some(&*format!("http://{own}")));
    assert_eq!(header(&echo, "x-forwarded-host"), Some(&*own));
    assert_eq!(header(&echo, "x-original-host"), Some(&*host));
    drop(tunnel);

    // A real service that refuses other hosts, and forms of other pages.
    let django = apps::django().await;
    let mut tunnel = open(&server, &user, dialect, &["http", &django.port(), "--host-header", "rewrite"]).await;
    let host = server.host(tunnel.name());
    let page = get(server.address, &host, "/").await;
    assert_eq!(page.status, 200, "{}", page.text());
    let cookie = page.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let token = page.text().split("value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let form = format!("csrfmiddlewaretoken={token}");
    let head = format!(
        "POST /form HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nCookie: {cookie}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}",
        form.len()
    );
    let answer = request(server.address, &head, form.as_bytes()).await;
    assert_eq!((answer.status, answer.header("location")), (302, Some(&*format!("http://{host}/done"))));
    tunnel.process.signal("TERM").await;
    assert_eq!(tunnel.process.exit().await, Some(0));

    // Without the option, the refusal is noticed and the program suggests it.
    let mut command = user.command(&["--json-events", "http", &django.port(), "--dialect", dialect]);
    command.args(["--server", &server.address.to_string()]);
    let mut plain = Running::start(command).await;
    let info: Value = serde_json::from_str(&plain.line().await).unwrap();
    let host = server.host(info["subdomain"].as_str().unwrap());
    assert_eq!(get(server.address, &host, "/").await.status, 400);
    let hint = loop {
        let event: Value = serde_json::from_str(&plain.line().await).unwrap();
        if event["event"] == "hint" {
            break event;
        }
    };
    assert_eq!(hint["code"], "host_not_allowed");
    assert!(hint["text"].as_str().unwrap().contains("--host-header rewrite"), "{hint}");
    plain.kill().await;
    server.finish().await;
}

#[tokio::test]
async fn dialect_2_shows_the_service_its_own_address() {
    shows_the_service_its_own_address("2").await;
}

#[tokio::test]
async fn dialect_3_shows_the_service_its_own_address() {
    shows_the_service_its_own_address("3").await;
}

#[tokio::test]
async fn a_host_name_that_the_server_ignores_is_said_and_ends_the_client() {
    let (server, user) = (Foreign::start("3", &["--ignore-hostnames"]).await, User::default());
    let service = service::http().await;
    let address = server.address.to_string();
    let args = ["http", &service.port(), "--hostname", "shop.example.org", "--dialect", "3", "--server", &address];
    let (code, stdout, stderr) = user.run(&args).await;
    assert_eq!((code, &*stdout), (69, ""), "{stderr}");
    assert!(stderr.contains("[hostname_ignored]") && stderr.contains("instead of shop.example.org"), "{stderr}");
    server.finish().await;
}

/// The dialect has no credit: a stream that is not read is cut, and the server is notified.
#[tokio::test]
async fn dialect_3_resets_streams_whose_service_does_not_read() {
    let (mut server, user) = (Foreign::start("3", &[]).await, User::default());
    let stalled = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = stalled.local_addr().unwrap().port().to_string();
    let tunnel = open(&server, &user, "3", &["tcp", &port]).await;
    let mut visitor = Visitor::connect(SocketAddr::from(([127, 0, 0, 1], tunnel.port()))).await;
    let (_never_read, _) = timeout(TIMEOUT, stalled.accept()).await.unwrap().unwrap();
    let flood = async {
        let piece = pattern(1_000_000);
        while visitor.socket.write_all(&piece).await.is_ok() {}
    };
    timeout(TIMEOUT, flood).await.expect("the visitor is cut off");
    let reason = server.reset().await;
    assert!(reason.starts_with("buffer overflow"), "{reason}");
    // The session and its other streams continue.
    let mut other = Visitor::connect(SocketAddr::from(([127, 0, 0, 1], tunnel.port()))).await;
    let (mut socket, _) = timeout(TIMEOUT, stalled.accept()).await.unwrap().unwrap();
    other.send(b"hello".to_vec()).await;
    let mut read = [0; 5];
    timeout(TIMEOUT, socket.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, b"hello");
    drop(tunnel);
    server.finish().await;
}

#[tokio::test]
async fn the_inspector_shows_requests_that_no_service_took() {
    for dialect in ["2", "3"] {
        let (server, user) = (Foreign::start(dialect, &[]).await, User::default());
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let tunnel = open(&server, &user, dialect, &["http", &nobody.to_string(), "--subdomain", "down"]).await;
        let path = format!("/lost?dialect={dialect}");
        assert_eq!(get(server.address, &server.host("down"), &path).await.status, 502);
        let inspector = tunnel.inspector();
        let shown = eventually("the exchange", || async {
            let list = json(&get(inspector, &inspector.to_string(), "/api/requests").await);
            list["requests"].as_array().and_then(|all| all.first()).filter(|one| one["state"] == "failed").cloned()
        })
        .await;
        assert_eq!((&shown["method"], &shown["path"]), (&"GET".into(), &path.into()), "{shown}");
        assert!(shown["error"].as_str().unwrap().contains("connection refused"), "{shown}");
        drop(tunnel);
        server.finish().await;
    }
}

#[tokio::test]
async fn dialect_3_refusals_end_the_client_with_their_code() {
    let (server, service) = (Foreign::start("3", &[]).await, service::http().await);
    let (owner, other) = (User::default(), User::default());
    let _tunnel = open(&server, &owner, "3", &["http", &service.port(), "--subdomain", "shop"]).await;
    let address = server.address.to_string();
    for (options, code) in
        [(["--subdomain", "shop"], "name_unavailable"), (["--token", "nobody-knows-it"], "unauthorized")]
    {
        let args = [&["http", "1", "--server", &address, "--dialect", "3"][..], &options].concat();
        let (exit, _, stderr) = other.run(&args).await;
        assert_eq!(exit, 69, "{stderr}");
        assert!(stderr.contains(code), "{stderr}");
    }
    assert_eq!(get(server.address, &server.host("shop"), "/status/204").await.status, 204);
    server.finish().await;
}

#[tokio::test]
async fn dialect_3_tells_a_client_that_another_one_took_its_name() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let args = ["http", &*service.port(), "--subdomain", "shop", "--dialect", "3"].map(str::to_owned);
    let args = args.each_ref().map(String::as_str);
    let mut old = user.tunnel(server.address, &args).await;
    let _new = user.tunnel(server.address, &args).await;
    assert_eq!(old.process.exit().await, Some(79));
    assert_eq!(get(server.address, &server.host("shop"), "/status/204").await.status, 204);
}

#[tokio::test]
async fn dialect_2_works_on_our_server() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--dialect", "2"]).await;
    assert_eq!(tunnel.info["dialect"], "2");
    http_works(server.address, &server.host(tunnel.name())).await;
}

#[tokio::test]
async fn dialect_3_works_on_our_server() {
    let server = Server::start(&["--tcp-ports", &port_range()]).await;
    let (service, echo, user) = (service::http().await, service::tcp_echo().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--dialect", "3"]).await;
    assert_eq!(tunnel.info["dialect"], "3");
    http_works(server.address, &server.host(tunnel.name())).await;
    carries_websockets(server.address, &server.host(tunnel.name())).await;
    let tunnel = user.tunnel(server.address, &["tcp", &echo.port(), "--dialect", "3"]).await;
    carries_tcp(tunnel.port()).await;
}

#[tokio::test]
async fn dialect_2_finds_tunnels_by_their_whole_name_and_refuses_what_it_cannot_carry() {
    let (server, user) = (Foreign::start("2", &[]).await, User::default());
    let (one, two) = (service::http().await, App::python(0).await);
    let file = user.home().join("retunnel.yml");
    let text = format!(
        "dialect: '2'\ntunnels:\n  - {{name: a, protocol: http, local_port: {}, subdomain: app}}\n  \
         - {{name: b, protocol: http, local_port: {}, subdomain: app2}}\n",
        one.port(),
        two.port()
    );
    std::fs::write(&file, text).unwrap();
    let _tunnels = user.tunnel(server.address, &["start", file.to_str().unwrap()]).await;
    assert_eq!(get(server.address, &server.host("app"), "/status/404").await.text(), "");
    assert_eq!(get(server.address, &server.host("app2"), "/status/404").await.text(), "status 404");
    let upgrade =
        format!("GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: upgrade, close\r\nUpgrade: websocket", server.host("app"));
    let refused = request(server.address, &upgrade, b"").await;
    assert_eq!((refused.status, refused.header("x-retunnel-error")), (501, Some("upgrade_unsupported")));
    let address = server.address.to_string();
    for (args, code) in [
        (&["tcp", "22"][..], "dialect_unsupported"),
        (&["http", "1", "--token", "tok_999", "--subdomain", "app"], "name_unavailable"),
        (&["http", "1", "--token", "nobody-knows-it"], "unauthorized"),
    ] {
        let (exit, _, stderr) = user.run(&[args, &["--server", &address, "--dialect", "2"]].concat()).await;
        assert_eq!(exit, 69, "{stderr}");
        assert!(stderr.contains(code), "{stderr}");
    }
    server.finish().await;
}
