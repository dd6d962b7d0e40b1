//! Scenarios: a server with a certificate. Visitors, clients and their lanes are encrypted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    apps::Use,
    authority::Authority,
    eventually,
    gateway::TlsFront,
    process::{Server, Tunnel, User, port_range},
    published_3::PythonUser,
    service::{self, pattern},
    sha256,
    visitor::{self, Visitor},
};
use rustls::HandshakeKind;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_websockets::{ClientBuilder, Message};

/// The address of test servers.
const NAMES: [&str; 4] = ["localhost", "127.0.0.1", "tunnel.test", "*.tunnel.test"];

/// A server with a certificate of its own authority.
struct Secure {
    authority: Authority,
    server: Server,
    user: User,
}

impl Secure {
    async fn start(options: &[&str]) -> Self {
        Self::start_for(&NAMES, options).await
    }

    async fn start_for(names: &[&str], options: &[&str]) -> Self {
        let authority = Authority::default();
        let (cert, key) = authority.issue_files(names);
        let server = Server::start(&[&["--tls-cert", &cert, "--tls-key", &key], options].concat()).await;
        Self { authority, server, user: User::default() }
    }

    fn address(&self) -> SocketAddr {
        self.server.address
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address().port())
    }

    async fn tunnel(&self, args: &[&str]) -> Tunnel {
        let authority = self.authority.file();
        self.user.tunnel_at(&self.url(), &[args, &["--ca-file", &authority]].concat()).await
    }

    async fn get(&self, name: &str, path: &str) -> visitor::Answer {
        let host = self.server.host(name);
        let mut visitor = self.authority.visitor(self.address(), &host).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        visitor.answer(false).await
    }
}

/// What `/bytes/N` sends.
fn bytes(count: usize) -> Vec<u8> {
    pattern(64 * 1024).into_iter().cycle().take(count).collect()
}

#[tokio::test]
async fn requests_pass_and_the_service_learns_that_they_came_by_https() {
    let (secure, app) = (Secure::start(&[]).await, service::http().await);
    let tunnel = secure.tunnel(&["http", &app.port(), "--subdomain", "safe"]).await;
    assert_eq!(tunnel.info["url"], format!("https://safe.tunnel.test:{}", secure.address().port()));
    let echo: Value = serde_json::from_str(&secure.get("safe", "/echo").await.text()).unwrap();
    let headers = echo["headers"].as_array().unwrap();
    let proto = headers.iter().find(|header| header[0].as_str().unwrap().eq_ignore_ascii_case("x-forwarded-proto"));
    assert_eq!(proto.unwrap()[1], "https");

    // Answers with and without a length, of every size, on one connection.
    let host = secure.server.host("safe");
    let mut visitor = secure.authority.visitor(secure.address(), &host).await;
    for size in [0, 1, 16_383, 16_384, 16_385, 300_000, 3_000_000] {
        visitor.send(format!("GET /bytes/{size} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = visitor.answer(false).await;
        assert!(answer.is_complete && sha256(&answer.body) == sha256(&bytes(size)), "{size}");
    }
    visitor.send(format!("GET /chunks/500 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let answer = visitor.answer(false).await;
    assert!(answer.is_complete && answer.text().ends_with("chunk 499\n"));
    let body = pattern(700_000);
    visitor.send(format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    visitor.send(&body).await;
    assert_eq!(visitor.answer(false).await.text(), "700000");
    // Events leave one by one.
    visitor.send(format!("GET /events/20 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    visitor.head().await.unwrap();
    let first = visitor.take(15).await;
    assert!(String::from_utf8_lossy(&first).contains("data: 0") && visitor.received.len() < 200, "{first:?}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_as_its_own_file_for_its_names_and_time() {
    let (authority, app, user) = (Authority::default(), service::http().await, User::default());
    for (year, names, outcome) in [
        (4096, &["localhost", "127.0.0.1"][..], Ok(())),
        (4096, &["tunnel.test"], Err("not valid for name")),
        (2020, &["localhost"], Err("expired")),
    ] {
        let (cert, key) = authority.self_signed_files(year, names);
        let server = Server::start(&["--tls-cert", &cert, "--tls-key", &key]).await;
        let (port, url) = (app.port(), format!("https://localhost:{}", server.address.port()));
        let args = ["http", &port, "--server", &url];
        match outcome {
            Ok(()) => {
                let tunnel = user.tunnel_at(&url, &["http", &app.port(), "--ca-file", &cert]).await;
                assert!(tunnel.info["url"].as_str().unwrap().starts_with("https://"), "{}", tunnel.info);
                // Nothing is trusted without the file, and the reason is in words.
                let (code, _, stderr) = User::default().run(&args).await;
                assert!(code == 69 && stderr.contains("self-signed") && stderr.contains("--ca-file"), "{stderr}");
                assert!(!stderr.contains("Other("), "{stderr}");
                // The file of another certificate makes no difference.
                let other = authority.file();
                let others = [&args[..], &["--ca-file", &other]].concat();
                let (code, _, stderr) = User::default().run(&others).await;
                assert!(code == 69 && stderr.contains("self-signed"), "{stderr}");
            }
            Err(reason) => {
                let (code, _, stderr) = user.run(&[&args[..], &["--ca-file", &cert]].concat()).await;
                assert!(code == 69 && stderr.contains(reason) && !stderr.contains("trust its"), "{stderr}");
            }
        }
    }
}

#[tokio::test]
async fn a_server_makes_its_own_certificate_for_tests_and_keeps_it() {
    let (app, user) = (service::http().await, User::default());
    let mut server = Server::start(&["--tls-self-signed"]).await;
    for _ in 0..2 {
        let url = format!("https://localhost:{}", server.address.port());
        let file = server.data_dir().join("self-signed-tunnel.test.cert.pem");
        let tunnel = user.tunnel_at(&url, &["http", &app.port(), "--ca-file", file.to_str().unwrap()]).await;
        assert!(tunnel.info["url"].as_str().unwrap().starts_with("https://"), "{}", tunnel.info);
        drop(tunnel);
        server = server.restart().await;
    }
}

#[tokio::test]
async fn websockets_pass() {
    let (secure, app) = (Secure::start(&[]).await, service::http().await);
    let _tunnel = secure.tunnel(&["http", &app.port(), "--subdomain", "ws"]).await;
    let host = secure.server.host("ws");
    let visitor = secure.authority.visitor(secure.address(), &host).await;
    let builder = ClientBuilder::new().uri(&format!("ws://{host}/ws")).unwrap();
    let mut socket = builder.connect_on(visitor.socket).await.unwrap().0;
    for message in [Message::text("grüße"), Message::binary(pattern(900_000)), Message::binary(vec![])] {
        let sent = message.as_payload().to_vec();
        socket.send(message).await.unwrap();
        let back = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back.as_payload().to_vec(), sent);
    }
}

#[tokio::test]
async fn bulk_goes_over_encrypted_lanes_and_arrives_whole() {
    let range = port_range();
    let (secure, echo) = (Secure::start(&["--tcp-ports", &range]).await, service::tcp_echo().await);
    let tunnel = secure.tunnel(&["tcp", &echo.port()]).await;
    let port = tunnel.port();
    let alone = tunnel.process.descriptors();
    let mut visitors = JoinSet::new();
    for n in 0..3 {
        visitors.spawn(async move {
            let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut reader, mut writer) = socket.into_split();
            let sent = pattern(30_000_000 + n);
            let expected = sha256(&sent);
            let mut back = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut back), async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            read.unwrap();
            assert_eq!(sha256(&back), expected);
        });
    }
    // Three connections to the service and three lanes.
    eventually("lanes are open", || async { (tunnel.process.descriptors() >= alone + 6).then_some(()) }).await;
    while let Some(result) = visitors.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn an_http_body_over_a_lane_arrives_whole() {
    let (secure, app) = (Secure::start(&[]).await, service::http().await);
    let _tunnel = secure.tunnel(&["http", &app.port(), "--subdomain", "bulk"]).await;
    let answer = secure.get("bulk", "/bytes/40000000").await;
    assert!(answer.is_complete && sha256(&answer.body) == sha256(&bytes(40_000_000)));
}

#[tokio::test]
async fn sessions_are_resumed() {
    let (secure, app, user) = (Secure::start(&[]).await, service::http().await, User::default());
    let host = secure.server.host("any");
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut visitor = secure.authority.visitor(secure.address(), &host).await;
        visitor.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(visitor.answer(false).await.status, 404);
        kinds.push(visitor.socket.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed], "what the server remembers");

    // The client registers, opens its link, and reconnects when the link is lost.
    let plain = Server::start(&[]).await;
    let front = TlsFront::start(&["localhost"], plain.address).await;
    let authority = secure.authority.path("front.pem");
    std::fs::write(&authority, &front.authority).unwrap();
    let url = format!("https://localhost:{}", front.address.port());
    let args = ["http", &app.port(), "--ca-file", authority.to_str().unwrap(), "--subdomain", "again"];
    let _tunnel = user.tunnel_at(&url, &args).await;
    let plain = plain.restart().await;
    let host = plain.host("again");
    eventually("the client is back", || async {
        (visitor::get(plain.address, &host, "/status/204").await.status == 204).then_some(())
    })
    .await;
    let kinds = front.handshakes();
    assert!(kinds.len() >= 3 && kinds[0] == HandshakeKind::Full, "{kinds:?}");
    assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
}

#[tokio::test]
async fn whoever_does_not_encrypt_is_told_to() {
    let (secure, app) = (Secure::start(&[]).await, service::http().await);
    let host = secure.server.host("any");
    for head in ["GET / HTTP/1.1", "post /a HTTP/1.1", "PRI * HTTP/2.0"] {
        let answer = visitor::request(secure.address(), &format!("{head}\r\nHost: {host}"), b"").await;
        assert_eq!((answer.status, answer.header("x-retunnel-error")), (400, Some("https_required")), "{head}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert!(answer.text().contains("https://"), "{}", answer.text());
    }
    let mut garbage = Visitor::connect(secure.address()).await;
    garbage.send([0, 1, 2, 3]).await;
    let mut rest = Vec::new();
    let _ = timeout(TIMEOUT, garbage.socket.read_to_end(&mut rest)).await.expect("an end in time");
    assert!(rest.is_empty(), "{rest:?}");

    let unencrypted = format!("http://localhost:{}", secure.address().port());
    let (code, _, stderr) = secure.user.run(&["http", &app.port(), "--server", &unencrypted]).await;
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains(&format!("https://localhost:{}", secure.address().port())), "{stderr}");
}

#[tokio::test]
async fn row_40_an_untrusted_certificate_is_refused() {
    let (secure, app) = (Secure::start(&[]).await, service::http().await);
    let (code, _, stderr) = secure.user.run(&["http", &app.port(), "--server", &secure.url()]).await;
    assert!(code == 69 && stderr.contains("no secure connection") && stderr.contains("--ca-file"), "{code} {stderr}");
    let insecure = secure.user.tunnel_at(&secure.url(), &["http", &app.port(), "--insecure"]).await;
    assert_eq!(secure.get(insecure.name(), "/status/204").await.status, 204);

    let other = Secure::start_for(&["other.test"], &[]).await;
    let (url, authority) = (other.url(), other.authority.file());
    let (code, _, stderr) = other.user.run(&["http", &app.port(), "--server", &url, "--ca-file", &authority]).await;
    assert!(code == 69 && stderr.contains("no secure connection"), "for another name: {code} {stderr}");
}

#[tokio::test]
async fn row_51_stalled_handshakes_end_and_keep_no_one_out() {
    let authority = Authority::default();
    let (cert, key) = authority.issue_files(&NAMES);
    let config =
        format!("tls-cert: {cert}\ntls-key: {key}\nlimits: {{max_unauthenticated_per_address: 40, header_timeout: 6}}");
    let secure = Secure { server: Server::start_with(4096, &config).await, authority, user: User::default() };
    let app = service::http().await;
    let tunnel = secure.tunnel(&["http", &app.port()]).await;
    let before = secure.server.process.descriptors();
    let began = Instant::now();
    let mut silent = Vec::new();
    for (count, said) in [(100, &b""[..]), (100, b"\x16"), (100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")] {
        for _ in 0..count {
            let mut visitor = Visitor::connect(secure.address()).await;
            visitor.send(said).await;
            silent.push(visitor);
        }
    }
    assert_eq!(secure.get(tunnel.name(), "/status/204").await.status, 204, "served meanwhile");
    eventually("those beyond the bound of one address are closed at once", || async {
        (secure.server.process.descriptors() <= before + 45).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    for visitor in &mut silent {
        let mut rest = Vec::new();
        let _ = timeout(TIMEOUT, visitor.socket.read_to_end(&mut rest)).await.expect("an end in time");
    }
    eventually("the descriptors are back", || async {
        (secure.server.process.descriptors() <= before + 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn files_that_are_no_certificate_stop_the_server_with_a_word() {
    let (authority, user) = (Authority::default(), User::default());
    let (cert, key) = authority.issue_files(&NAMES);
    let (_, other) = authority.issue(&["localhost"]);
    let file = |name: &str, text: &str| {
        std::fs::write(authority.path(name), text).unwrap();
        authority.path(name).to_str().unwrap().to_owned()
    };
    let (missing, empty, other) = (format!("{cert}.no"), file("empty.pem", "nothing\n"), file("other.pem", &other));
    let broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (cert, key, code, named) in [
        (&missing, &key, "tls_file_unreadable", &missing),
        (&empty, &key, "tls_no_certificate", &empty),
        (&key, &cert, "tls_no_certificate", &key),
        (&cert, &empty, "tls_no_key", &empty),
        (&cert, &other, "tls_key_mismatch", &other),
        (&broken, &key, "tls_invalid", &broken),
    ] {
        let args = ["server", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key];
        let (exit, _, stderr) = user.run(&args).await;
        assert_eq!(exit, 78, "{stderr}");
        assert!(stderr.contains(&format!("[{code}]")) && stderr.contains(named.as_str()), "{code}: {stderr}");
    }
    for (given, lacking) in [("--tls-cert", "tls-key"), ("--tls-key", "tls-cert")] {
        let (exit, _, stderr) = user.run(&["server", "--listen", "127.0.0.1:0", given, &cert]).await;
        assert!(exit == 2 && stderr.contains(&format!("{lacking}:")), "{exit} {stderr}");
    }
}

#[tokio::test]
async fn sighup_reads_the_certificate_anew_and_keeps_it_when_it_cannot() {
    let secure = Secure::start(&[]).await;
    let shown = || async {
        let visitor = secure.authority.visitor(secure.address(), "localhost").await;
        visitor.socket.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let renew = || drop(secure.authority.issue_files(&NAMES));
    let first = shown().await;
    assert_eq!(shown().await, first);
    renew();
    secure.server.process.signal("HUP").await;
    let second =
        eventually("the new certificate is shown", || async { Some(shown().await).filter(|cert| *cert != first) })
            .await;
    std::fs::write(secure.authority.path("key.pem"), "gone").unwrap();
    secure.server.process.signal("HUP").await;
    // The next good certificate shows that the bad one was skipped.
    assert_eq!(shown().await, second);
    renew();
    secure.server.process.signal("HUP").await;
    eventually("the third is shown", || async { Some(shown().await).filter(|cert| *cert != second) }).await;
}

/// The published clients find the authority where Python looks for it.
#[tokio::test]
async fn published_clients_come_by_wss() {
    for (version, how) in [("3.0.3", Use::Library), ("3.3.2", Use::Library), ("3.3.2", Use::Command)] {
        let (secure, app) = (Secure::start(&[]).await, service::http().await);
        let python = PythonUser::at(version, format!("wss://localhost:{}", secure.address().port()))
            .with_variable("SSL_CERT_FILE", &secure.authority.file());
        let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "subdomain": "py" });
        let client = python.open(how, &[tunnel]).await;
        assert_eq!(client.opened[0]["url"], format!("https://py.tunnel.test:{}", secure.address().port()), "{version}");
        let answer = secure.get("py", "/bytes/300000").await;
        assert!(answer.is_complete && sha256(&answer.body) == sha256(&bytes(300_000)), "{version}");
    }
}

/// A local service, with or without a certificate, that ends its answer to `/cut` in the middle, once `go` allows it. Other
/// answers end as they should. None has a length.
async fn ending(acceptor: Option<TlsAcceptor>, go: Arc<Notify>) -> (u16, JoinSet<()>) {
    async fn serve(mut visitor: Visitor<impl AsyncRead + AsyncWrite + Unpin>, go: &Notify) -> bool {
        let head = visitor.head().await.unwrap();
        visitor.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n").await;
        let is_cut = head.starts_with("GET /cut");
        if is_cut {
            go.notified().await;
        } else {
            visitor.send("0\r\n\r\n").await;
        }
        is_cut
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut service = JoinSet::new();
    service.spawn(async move {
        loop {
            let socket = listener.accept().await.unwrap().0;
            match &acceptor {
                Some(acceptor) => {
                    let mut socket = acceptor.accept(socket).await.unwrap();
                    if !serve(Visitor::over(&mut socket), &go).await {
                        socket.shutdown().await.unwrap();
                    }
                }
                None => drop(serve(Visitor::over(socket), &go).await),
            }
        }
    });
    (port, service)
}

/// An answer without a length ends with the connection, so only TLS's closing message shows that it is complete.
#[tokio::test]
async fn a_cut_answer_never_looks_complete() {
    let secure = Secure::start(&[]).await;
    let host = secure.server.host("cut");
    let go = Arc::new(Notify::new());
    let (port, _service) = ending(None, Arc::clone(&go)).await;
    let _tunnel = secure.tunnel(&["http", &port.to_string(), "--subdomain", "cut"]).await;
    for (path, whole) in [("/whole", true), ("/cut", false)] {
        let mut visitor = secure.authority.visitor(secure.address(), &host).await;
        visitor.send(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")).await;
        let head = visitor.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && !head.to_ascii_lowercase().contains("content-length"), "{head}");
        assert_eq!(visitor.take(5).await, b"whole");
        go.notify_one();
        let end = timeout(TIMEOUT, visitor.socket.read_to_end(&mut Vec::new())).await.expect("an end in time");
        assert_eq!(end.is_ok(), whole, "{path}: {end:?}");
    }
}

/// The same the other way: a local service whose connection ends without a closing message.
#[tokio::test]
async fn a_local_service_that_is_cut_off_makes_no_complete_answer() {
    let secure = Secure::start(&[]).await;
    let acceptor = TlsAcceptor::from(Arc::new(secure.authority.server(&NAMES)));
    let go = Arc::new(Notify::new());
    let (port, _service) = ending(Some(acceptor), Arc::clone(&go)).await;
    let target = format!("https://localhost:{port}");
    let _tunnel = secure.tunnel(&["http", &target, "--subdomain", "own"]).await;
    let whole = secure.get("own", "/whole").await;
    assert!(whole.is_complete && whole.text() == "whole", "{whole:?}");
    go.notify_one();
    let cut = secure.get("own", "/cut").await;
    assert!(cut.status == 502 || !cut.is_complete, "{cut:?}");
}
