//! The published Python clients 3.x, unchanged, against the built server: library and command line of each wire version.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed test says where")]

use std::time::Duration;

use retunnel_e2e::{
    TIMEOUT,
    apps::Use,
    eventually,
    process::{Server, port_range},
    published_3::{PythonUser, service, visit},
    service::{self, pattern},
    sha256,
    visitor::{Visitor, get, request},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

/// Terminal refusals end the client, and quickly.
const QUICKLY: Duration = Duration::from_secs(20);

/// Everything that a user of such a client relies on.
async fn works(version: &'static str, wire: u8, how: Use) {
    println!("published client {version}, {how:?}");
    let app = service(0).await;
    let server = Server::start(&[]).await;
    let user = PythonUser::new(version, server.address);
    let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "subdomain": "shop" });
    let client = user.open(how, &[tunnel]).await;
    assert_eq!(client.host(0), format!("shop.tunnel.test:{}", server.address.port()));
    let host = client.host(0).to_owned();
    visit(server.address, &host, wire).await;

    // A restarted server gives it the same name.
    let server = server.restart().await;
    eventually("the client is back", || async {
        (get(server.address, &host, "/status/404").await.text() == "status 404").then_some(())
    })
    .await;

    // The local service stops: the visitor gets an error, the tunnel stays.
    let port = app.address.port();
    app.process.kill().await;
    let down = get(server.address, &host, "/echo").await;
    assert_eq!((down.status, down.header("x-retunnel-error")), (502, Some("local_unreachable")));
    let _app = service(port).await;
    assert_eq!(get(server.address, &host, "/echo").await.status, 200);
}

#[tokio::test]
async fn client_3_0_3_library() {
    works("3.0.3", 1, Use::Library).await;
}

#[tokio::test]
async fn client_3_0_3_command() {
    works("3.0.3", 1, Use::Command).await;
}

#[tokio::test]
async fn client_3_3_2_library() {
    works("3.3.2", 2, Use::Library).await;
}

#[tokio::test]
async fn client_3_3_2_command() {
    works("3.3.2", 2, Use::Command).await;
}

async fn echo(port: u16, size: usize) {
    let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let sent = pattern(size);
    let (mut reader, mut writer) = visitor.split();
    let (_, received) = tokio::join!(async { writer.write_all(&sent).await.unwrap() }, async {
        let mut received = vec![0; size];
        timeout(QUICKLY, reader.read_exact(&mut received)).await.expect("in time").unwrap();
        received
    });
    assert!(received == sent);
}

#[tokio::test]
async fn tcp_tunnels() {
    for version in ["3.0.3", "3.3.2"] {
        for how in [Use::Library, Use::Command] {
            println!("published client {version}, {how:?}");
            let (app, server) = (service::tcp_echo().await, Server::start(&["--tcp-ports", &port_range()]).await);
            let user = PythonUser::new(version, server.address);
            let tunnel = json!({ "protocol": "tcp", "local_port": app.address.port() });
            let client = user.open(how, &[tunnel]).await;
            for size in [1, 1000, 3_000_000] {
                echo(client.port(), size).await;
            }
            // The visitor's end must not cut the answer short, although the wire has no half-close.
            let mut visitor = TcpStream::connect(("127.0.0.1", client.port())).await.unwrap();
            let sent = pattern(300_000);
            visitor.write_all(&sent).await.unwrap();
            visitor.shutdown().await.unwrap();
            let mut received = Vec::new();
            timeout(QUICKLY, visitor.read_to_end(&mut received)).await.expect("an end").unwrap();
            assert!(received == sent, "{} bytes came back", received.len());

            // The same port after a restart, although the client does not request it by number.
            let port = client.port();
            let _server = server.restart().await;
            eventually("the port is back", || async {
                let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                visitor.write_all(b"hello").await.ok()?;
                let mut received = [0; 5];
                timeout(QUICKLY, visitor.read_exact(&mut received)).await.ok()?.ok()?;
                (&received == b"hello").then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn two_tunnels_in_one_session() {
    let (first, second, server) = (service(0).await, service::http().await, Server::start(&[]).await);
    let user = PythonUser::new("3.3.2", server.address);
    let tunnels = [
        json!({ "protocol": "http", "local_port": first.address.port(), "subdomain": "a" }),
        json!({ "protocol": "http", "local_port": second.address.port(), "subdomain": "ab" }),
    ];
    let client = user.open(Use::Library, &tunnels).await;
    let both = |server: &Server| {
        let (address, a, ab) = (server.address, client.host(0).to_owned(), client.host(1).to_owned());
        async move {
            let (first, second) = tokio::join!(get(address, &a, "/cookies"), get(address, &ab, "/cookies"));
            let count = |answer: &retunnel_e2e::visitor::Answer| {
                answer.headers.iter().filter(|(name, _)| name == "set-cookie").count()
            };
            (count(&first), count(&second))
        }
    };
    assert_eq!(both(&server).await, (2, 3));
    // Visitors that wait while the client reconnects do not reach its tunnels too early.
    let server = server.restart().await;
    eventually("both are back", || async { (both(&server).await == (2, 3)).then_some(()) }).await;
}

#[tokio::test]
async fn path_mode_gives_an_origin_of_its_own() {
    let (app, server) = (service(0).await, Server::start(&[]).await);
    let user = PythonUser::new("3.3.2", server.address);
    let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "spa": true });
    let client = user.open(Use::Command, &[tunnel]).await;
    let host = client.host(0).to_owned();
    assert_eq!(client.opened[0]["path"].as_str(), host.split('.').next());
    let server = server.restart().await;
    eventually("the client is back", || async {
        (get(server.address, &host, "/status/404").await.text() == "status 404").then_some(())
    })
    .await;
}

#[tokio::test]
async fn passwords_are_asked_for_by_the_client() {
    let (app, server) = (service(0).await, Server::start(&[]).await);
    for how in [Use::Library, Use::Command] {
        let user = PythonUser::new("3.3.2", server.address);
        let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "auth": "me:secret" });
        let client = user.open(how, &[tunnel]).await;
        let host = client.host(0);
        let refused = get(server.address, host, "/echo").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Basic realm=\"retunnel\"")));
        let head =
            format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic bWU6c2VjcmV0\r\nConnection: close");
        assert_eq!(request(server.address, &head, b"").await.status, 200);
    }
}

#[tokio::test]
async fn refusals_end_the_client_quickly() {
    let (app, server) = (service(0).await, Server::start(&["--tcp-ports", "off"]).await);
    let port = app.address.port().to_string();
    let owner = PythonUser::new("3.3.2", server.address);
    let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "subdomain": "mine" });
    let _client = owner.open(Use::Command, &[tunnel]).await;
    let other = PythonUser::new("3.3.2", server.address);
    let [option, address] = other.to_server();
    for (args, code, text) in [
        (&["http", &port, "--token", "wrong"][..], 69, "UNAUTHORIZED"),
        (&["http", &port, "--subdomain", "mine"], 69, "SUBDOMAIN_UNAVAILABLE"),
        (&["http", &port, "--subdomain", "www"], 69, "SUBDOMAIN_UNAVAILABLE"),
        (&["http", &port, "--hostname", "shop.example.org"], 69, "HOSTNAME_NOT_REGISTERED"),
        (&["tcp", &port], 69, "TCP_DISABLED"),
    ] {
        let started = Instant::now();
        let args = [args, &[&option, &address]].concat();
        let output = other.run(&args).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
        assert!(started.elapsed() < QUICKLY, "{args:?}");
    }
}

/// Answers one request with far more than any part buffers; reports when its connection is closed.
async fn endless(listener: TcpListener) {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut head = [0; 4096];
    let _ = connection.read(&mut head).await.unwrap();
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await.unwrap();
    let piece = pattern(64 * 1024);
    while connection.write_all(&piece).await.is_ok() {}
}

/// A visitor that reads nothing uses bounded memory and does not delay the others.
#[tokio::test]
async fn a_reader_that_never_reads_stalls_nobody() {
    let (app, server) = (service::http().await, Server::start(&[]).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tunnel = |port: u16| json!({ "protocol": "http", "local_port": port });
    let tunnels = [tunnel(app.address.port()), tunnel(listener.local_addr().unwrap().port())];
    let client = PythonUser::new("3.3.2", server.address).open(Use::Library, &tunnels).await;
    let mut given_up = JoinSet::new();
    given_up.spawn(endless(listener));
    let mut stalled = Visitor::connect(server.address).await;
    stalled.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", client.host(1))).await;
    assert!(stalled.head().await.unwrap().starts_with("HTTP/1.1 200"));
    for _ in 0..20 {
        let body = pattern(100_000);
        let head =
            format!("POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: 100000\r\nConnection: close", client.host(0));
        let answer = timeout(QUICKLY, request(server.address, &head, &body)).await.expect("an answer");
        assert!(answer.text().contains(&sha256(&body)));
    }
    // A visitor that does not read loses its stream, visibly: the answer is incomplete.
    timeout(TIMEOUT, given_up.join_next()).await.expect("the stream is given up").unwrap().unwrap();
    let rest = timeout(TIMEOUT, async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(1..) = stalled.socket.read(&mut buffer).await {}
    });
    rest.await.expect("an end");
    assert!(server.process.peak_memory() < 300 * 1024 * 1024, "{} bytes", server.process.peak_memory());
}
