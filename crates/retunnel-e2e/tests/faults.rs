//! Faults from outside: floods, full tables, silent connections, processes that die. The reliability list and the design
//! say what must happen; measured times are in `docs/reliability.md`.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT, eventually,
    process::{Running, Server, User, port_range},
    proxy::Proxy,
    service::{self, pattern},
    visitor::{Visitor, get},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_websockets::{ClientBuilder, Message};

async fn served(address: SocketAddr, host: &str) -> Option<()> {
    (get(address, host, "/status/204").await.status == 204).then_some(())
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const SESSION: &str =
    "GET /api/v1/link HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: retunnel\r\n\r\n";
const SOCKET: &str = "GET /api/v1/ws/tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn rows_32_and_51_silent_connections_end_and_keep_no_one_out() {
    let config = "limits: {max_unauthenticated_per_address: 40, unauthenticated_deadline: 3, header_timeout: 3}";
    let server = Server::start_with(4096, config).await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let before = server.process.descriptors();
    let mut silent = Vec::new();
    for (count, said) in [(100, ""), (100, "GET / HT"), (100, SESSION), (100, SOCKET), (50, "\r\n\r\n")] {
        for _ in 0..count {
            let mut visitor = Visitor::connect(server.address).await;
            visitor.send(said).await;
            silent.push(visitor);
        }
    }
    // Sessions and visitors are accepted nevertheless.
    let other = user.tunnel(server.address, &["http", &service.port()]).await;
    for name in [tunnel.name(), other.name()] {
        assert_eq!(get(server.address, &server.host(name), "/status/204").await.status, 204);
    }
    let started = Instant::now();
    for visitor in &mut silent {
        let mut rest = Vec::new();
        let _ = timeout(TIMEOUT, visitor.socket.read_to_end(&mut rest)).await.expect("an end in time");
    }
    println!("{} silent connections were closed within {:?}", silent.len(), started.elapsed());
    drop(other);
    eventually("the descriptors are back", || async { (server.process.descriptors() <= before + 2).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_client_out_of_descriptors_says_so_and_does_not_blame_the_local_service() {
    const DESCRIPTORS: usize = 48;
    for dialect in ["native", "3"] {
        let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
        let port = service.port();
        let args = ["http", &port, "--dialect", dialect];
        let mut tunnel = user.tunnel_with(DESCRIPTORS, server.address, &args).await;
        let host = server.host(tunnel.name());
        // The local service never answers these.
        let mut waiting = Vec::new();
        for _ in 0..2 * DESCRIPTORS {
            let mut visitor = Visitor::connect(server.address).await;
            visitor.send(format!("GET /hang HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            waiting.push(visitor);
        }
        let refused = eventually("a visitor is refused", || async {
            let answer = get(server.address, &host, "/status/204").await;
            (answer.status != 204).then_some(answer)
        })
        .await;
        let code = refused.header("x-retunnel-error");
        assert_eq!((refused.status, code), (503, Some("too_many_connections")), "{dialect}: {}", refused.text());
        // Nothing before the last request blames the local service. Of many requests at once only some are reported.
        let (mut reports, mut seen) = (0, String::new());
        while !seen.contains("/last") {
            get(server.address, &host, "/last").await;
            while let Ok(line) = timeout(Duration::from_millis(300), tunnel.process.line()).await {
                reports += usize::from(line.contains(r#""event":"out_of_descriptors""#));
                seen.push_str(&line);
            }
        }
        assert!(reports == 1 && !seen.contains("local_unreachable"), "{dialect}: {seen}");
    }
}

#[tokio::test]
async fn row_53_out_of_descriptors_the_server_waits_and_goes_on() {
    let server = Server::start_with(48, "limits: {header_timeout: 60}").await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    let mut idle = Vec::new();
    for _ in 0..80 {
        idle.push(Visitor::connect(server.address).await);
    }
    eventually("the descriptors are used up", || async { (server.process.descriptors() >= 48).then_some(()) }).await;
    let before = server.process.processor_time();
    // One that waits in the queue in the meantime.
    let mut visitor = Visitor::connect(server.address).await;
    visitor.send(format!("GET /status/204 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert!(timeout(Duration::from_secs(1), visitor.answer(false)).await.is_err(), "no descriptor is left for it");
    let used = server.process.processor_time() - before;
    assert!(used < 30, "{used} hundredths of a second for waiting one second");
    drop(idle);
    let started = Instant::now();
    assert_eq!(visitor.answer(false).await.status, 204);
    println!("served {:?} after descriptors were free", started.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_bound_are_told_so_and_places_are_given_back() {
    let server = Server::start_with(4096, "limits: {max_connections: 10}").await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    let mut busy = Vec::new();
    // Half of all are the share of one address.
    for _ in 0..5 {
        let mut visitor = Visitor::connect(server.address).await;
        visitor.send(format!("GET /hang HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        busy.push(visitor);
    }
    let refused = async || {
        let refused = get(server.address, &host, "/").await;
        (refused.header("x-retunnel-error") == Some("too_many_connections")).then_some(refused)
    };
    let refused = eventually("the places are taken", refused).await;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    drop(busy);
    eventually("there is room again", || served(server.address, &host)).await;
}

#[tokio::test]
async fn row_54_at_the_deadline_a_stopping_server_resets_what_is_left() {
    let range = port_range();
    let (mut server, user) = (Server::start(&["--grace-period", "1.5", "--tcp-ports", &range]).await, User::default());
    let (service, echo) = (service::http().await, service::tcp_echo().await);
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let tcp = user.tunnel(server.address, &["tcp", &echo.port()]).await;
    let host = server.host(tunnel.name());
    let mut events = Visitor::connect(server.address).await;
    events.send(format!("GET /events/1000000 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    events.head().await.unwrap();
    let mut short = Visitor::connect(server.address).await;
    short.send(format!("GET /events/8 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    short.head().await.unwrap();
    let socket = TcpStream::connect(server.address).await.unwrap();
    let uri = format!("ws://{host}/ws");
    let (mut websocket, _) = ClientBuilder::new().uri(&uri).unwrap().connect_on(socket).await.unwrap();
    let mut bytes = Visitor::connect(at(tcp.port())).await;
    bytes.send("hi").await;
    assert_eq!(bytes.take(2).await, b"hi");

    let started = Instant::now();
    server.process.signal("TERM").await;
    eventually("both doors are closed", || async {
        let closed =
            TcpStream::connect(server.address).await.is_err() && TcpStream::connect(at(tcp.port())).await.is_err();
        closed.then_some(())
    })
    .await;
    // Transfers in progress continue in the grace period.
    websocket.send(Message::text("still here")).await.unwrap();
    assert_eq!(timeout(TIMEOUT, websocket.next()).await.unwrap().unwrap().unwrap().as_text(), Some("still here"));
    bytes.send("ho").await;
    assert_eq!(bytes.take(2).await, b"ho");
    assert!(short.to_end().await.ends_with(b"0\r\n\r\n"), "what fits in is complete");
    // The rest is a reset, never a clean end.
    let mut rest = Vec::new();
    let end = events.socket.read_to_end(&mut rest).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(bytes.socket.read_to_end(&mut rest).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(!matches!(timeout(TIMEOUT, websocket.next()).await.unwrap(), Some(Ok(_))));
    assert_eq!(server.process.exit().await, Some(0));
    println!("ended {:?} after the signal, with a grace period of 1.5 s", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn row_55_all_clients_are_back_after_a_restart() {
    const CLIENTS: usize = 15;
    let (server, service) = (Server::start(&[]).await, service::http().await);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let user = User::default();
        let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
        clients.push((user, tunnel));
    }
    let server = server.stop().await.start().await;
    let started = Instant::now();
    for (_, tunnel) in &clients {
        let host = server.host(tunnel.name());
        eventually("the tunnel is back", || served(server.address, &host)).await;
    }
    println!("{CLIENTS} clients were back {:?} after the server listened", started.elapsed());
}

#[tokio::test]
async fn row_56_a_service_that_restarts_or_listens_on_ipv6_only() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let mut service = service::http().await;
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    let address = service.address;
    for _ in 0..25 {
        assert_eq!(get(server.address, &host, "/status/204").await.status, 204);
        drop(service);
        eventually("the service is gone", || async { TcpStream::connect(address).await.is_err().then_some(()) }).await;
        let down = get(server.address, &host, "/status/204").await;
        assert_eq!(down.status, 502, "{}", down.text());
        service = service::http_on(address).await;
    }
    let other = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()));
    if TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).await.is_err() {
        return println!("this machine has no IPv6; what was checked is IPv4 alone");
    }
    // `localhost` is both addresses, and the one that answers is found whenever it changes.
    for address in [other, address, other] {
        drop(service);
        service = service::http_on(address).await;
        eventually("the service is found again", || served(server.address, &host)).await;
    }
}

#[tokio::test]
async fn row_57_aborted_downloads_leave_nothing_behind() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    // The inspector's memory has its own limit (tests/inspector.rs).
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--no-inspect"]).await;
    let host = server.host(tunnel.name());
    let abort = |count: usize| {
        let host = host.clone();
        let address = server.address;
        async move {
            for _ in 0..count {
                let mut visitor = Visitor::connect(address).await;
                visitor.send(format!("GET /bytes/50000000 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
                visitor.head().await.unwrap();
            }
        }
    };
    let settled = |what| {
        let (server, client) = (&server.process, &tunnel.process);
        eventually(what, move || async move {
            (server.descriptors() < 30 && client.descriptors() < 30).then(|| (server.memory(), client.memory()))
        })
    };
    abort(100).await;
    let before = settled("the connections of the first end").await;
    abort(400).await;
    let after = settled("the connections of the others end").await;
    println!("memory {before:?} then {after:?}");
    assert!(after.0 < before.0 + (12 << 20) && after.1 < before.1 + (12 << 20), "{before:?} then {after:?}");
}

#[tokio::test]
async fn a_wire_that_passes_one_direction_is_noticed() {
    for to_client in [true, false] {
        let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
        let proxy = Proxy::start(server.address).await;
        let tunnel = user.tunnel(proxy.address, &["http", &service.port()]).await;
        let host = server.host(tunnel.name());
        assert_eq!(get(server.address, &host, "/status/204").await.status, 204);
        proxy.one_way(to_client);
        let started = Instant::now();
        let answer = get(server.address, &host, "/status/204").await;
        assert_eq!(answer.status, 204, "{}", answer.text());
        println!("served {:?} after only one direction passed (to the client: {to_client})", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn row_31_a_newer_session_takes_over_from_one_that_looks_alive() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let proxy = Proxy::start(server.address).await;
    // The same account through another address: its token is saved for each server address.
    let home = std::fs::read_to_string(user.home().join(".retunnel.conf")).unwrap_or_default();
    assert_eq!(home, "");
    let _old = user.tunnel(proxy.address, &["http", "1", "--subdomain", "shop"]).await;
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(user.home().join(".retunnel.conf")).unwrap()).unwrap();
    let token = saved["tokens"][proxy.address.to_string()].as_str().unwrap().to_owned();
    proxy.black_hole();
    let started = Instant::now();
    let _new = user.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop", "--token", &token]).await;
    assert_eq!(get(server.address, &server.host("shop"), "/status/204").await.status, 204, "never the old one");
    println!("the newer session served {:?} after it was started", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(6), "before any heartbeat could notice");
}

#[tokio::test]
async fn row_30_a_lost_name_is_kept_for_its_owner_and_then_free() {
    let server = Server::start_with(4096, "limits: {hold_lease: 4, hold_visitors: 1}").await;
    let (service, owner, other) = (service::http().await, User::default(), User::default());
    let tunnel = owner.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    tunnel.process.kill().await;
    let address = server.address.to_string();
    let (code, _, said) = other.run(&["http", "1", "--server", &address, "--subdomain", "shop"]).await;
    assert!(code == 69 && said.contains("name_unavailable"), "{said}");
    assert_eq!(get(server.address, &server.host("shop"), "/").await.status, 503, "held, and nobody there");
    eventually("the name is free", || async {
        (get(server.address, &server.host("shop"), "/").await.status == 404).then_some(())
    })
    .await;
    let _theirs = other.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    let (code, _, said) = owner.run(&["http", "1", "--server", &address, "--subdomain", "shop"]).await;
    assert!(code == 69 && said.contains("name_unavailable"), "{said}");
}

#[tokio::test]
async fn row_38_ports_in_use_are_refused_and_given_back() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let range = format!("{port}-{port}");
    let (server, user) = (Server::start(&["--tcp-ports", &range]).await, User::default());
    let echo = service::tcp_echo().await;
    let (address, wanted) = (server.address.to_string(), port.to_string());
    let ask = ["tcp", "1", "--server", &address, "--remote-port", &wanted];
    let (code, _, said) = user.run(&ask).await;
    assert!(code == 69 && said.contains("port_unavailable"), "{said}");
    // The account's quota and the port are free again although opening failed, and each time right after a goodbye.
    drop(taken);
    for _ in 0..20 {
        let mut tunnel = user.tunnel(server.address, &["tcp", &echo.port(), "--remote-port", &wanted]).await;
        let (code, _, said) = User::default().run(&["tcp", "1", "--server", &address]).await;
        assert!(code == 75 && said.contains("ports_exhausted"), "{code}: {said}");
        tunnel.process.signal("INT").await;
        assert_eq!(tunnel.process.exit().await, Some(0));
    }
}

#[tokio::test]
async fn row_38_an_account_has_a_limit_of_tunnels() {
    let server = Server::start_with(4096, "limits: {max_tunnels_per_account: 3}").await;
    let user = User::default();
    let entries: String =
        (0..5).map(|n| format!("  - {{name: t{n}, protocol: http, local_port: 1, subdomain: t{n}}}\n")).collect();
    std::fs::write(user.home().join("retunnel.yml"), format!("tunnels:\n{entries}")).unwrap();
    let mut command = user.command(&["start", "--server", &server.address.to_string()]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    while said.matches("tunnel_limit").count() < 2 {
        let mut piece = [0; 1024];
        let count = timeout(TIMEOUT, stderr.read(&mut piece)).await.expect("lines in time").unwrap();
        assert!(count > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    // The first three are open; nothing listens at port 1.
    for (name, status) in [("t0", 502), ("t2", 502), ("t3", 404)] {
        assert_eq!(get(server.address, &server.host(name), "/").await.status, status, "{name}");
    }
}

#[tokio::test]
async fn a_killed_server_is_a_reset_for_the_service() {
    let (server, user) = (Server::start(&["--tcp-ports", &port_range()]).await, User::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let tunnel = user.tunnel(server.address, &["tcp", &port]).await;
    let mut visitor = Visitor::connect(at(tunnel.port())).await;
    visitor.send("half of a message").await;
    let (mut local, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 17];
    local.read_exact(&mut bytes).await.unwrap();
    local.write_all(b"half of an answer").await.unwrap();
    assert_eq!(visitor.take(17).await, b"half of an answer");
    server.process.kill().await;
    // The system closes the visitor's connection; whatever it does, the service must not see a clean end.
    let end = timeout(TIMEOUT, local.read(&mut bytes)).await.expect("an end in time");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn row_37_an_upload_to_a_service_that_does_not_read_is_bounded() {
    let (server, user) = (Server::start(&["--tcp-ports", &port_range()]).await, User::default());
    let (listener, echo) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), service::tcp_echo().await);
    let port = listener.local_addr().unwrap().port().to_string();
    let stuck = user.tunnel(server.address, &["tcp", &port]).await;
    let mut visitors = JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut visitor = Visitor::connect(at(stuck.port())).await;
        held.push(listener.accept().await.unwrap());
        visitors.spawn(async move {
            let piece = pattern(1 << 20);
            let mut sent = 0_usize;
            while let Ok(Ok(())) = timeout(Duration::from_secs(1), visitor.socket.write_all(&piece)).await {
                sent += piece.len();
            }
            sent
        });
    }
    let other = user.tunnel(server.address, &["tcp", &echo.port()]).await;
    let mut visitor = Visitor::connect(at(other.port())).await;
    let started = Instant::now();
    visitor.send("hi").await;
    assert_eq!(visitor.take(2).await, b"hi");
    assert!(started.elapsed() < Duration::from_secs(5), "others are not held up");
    for sent in visitors.join_all().await {
        assert!(sent < 64 << 20, "somebody buffered {sent} bytes");
    }
    let (server, client) = (server.process.memory(), stuck.process.memory());
    assert!(server < 64 << 20 && client < 64 << 20, "server {server}, client {client}");
}

#[tokio::test]
async fn visitors_of_a_lost_client_get_their_answer_when_the_server_stops() {
    let mut server = Server::start_with(4096, "limits: {hold_visitors: 20, grace_period: 5}").await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    tunnel.process.kill().await;
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut visitor = Visitor::connect(server.address).await;
        visitor.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        held.push(visitor);
    }
    let waited = timeout(Duration::from_millis(300), held[0].answer(false)).await;
    assert!(waited.is_err(), "visitors wait for the client");
    let started = Instant::now();
    server.process.signal("TERM").await;
    for visitor in &mut held {
        let answer = visitor.answer(false).await;
        assert_eq!((answer.status, answer.header("x-retunnel-error")), (503, Some("shutting_down")));
    }
    drop(held);
    assert_eq!(server.process.exit().await, Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_data_directory_belongs_to_one_server_and_readiness_needs_a_database_that_can_be_written() {
    let user = User::default();
    let data = user.home().join("data");
    let path = data.to_str().unwrap();
    let args = ["--log-level", "warn", "server", "--listen", "127.0.0.1:0", "--quiet", "--data-dir", path];
    let mut first = Running::start(user.command(&args)).await;
    let line = first.line().await;
    let address: SocketAddr = line.split_once("://").expect(&line).1.parse().unwrap();
    let (code, _, stderr) = user.run(&args).await;
    assert_ne!(code, 0);
    assert!(stderr.contains(&format!("process number {}", first.id())), "{stderr}");

    assert_eq!(get(address, "localhost", "/readyz").await.status, 200);
    let script = "import sqlite3, sys, time\n\
                  database = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                  database.execute('BEGIN IMMEDIATE')\n\
                  print('locked', flush=True)\n\
                  time.sleep(600)";
    let mut python = tokio::process::Command::new("python3");
    python.args(["-c", script]).arg(data.join("retunnel.db")).kill_on_drop(true);
    let mut locker = Running::start(python).await;
    assert_eq!(locker.line().await, "locked");
    let not_ready = || async {
        let answer = get(address, "localhost", "/readyz").await;
        (answer.status == 503).then_some(answer)
    };
    let answer = eventually("the server is not ready", not_ready).await;
    assert!(answer.text().contains("store_unavailable") && answer.text().contains("locked"), "{}", answer.text());
    assert_eq!(get(address, "localhost", "/healthz").await.status, 200);
    locker.kill().await;
    let ready = || async { (get(address, "localhost", "/readyz").await.status == 200).then_some(()) };
    eventually("the server is ready again", ready).await;
}
