//! The inspector: its pages in a real browser, its API, what it refuses, and what it keeps.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    apps::browse,
    eventually,
    process::{Server, Tunnel, User},
    service::{self, Service},
    visitor::{Answer, Visitor, get, post, request},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tokio_websockets::{ClientBuilder, Message};

struct World {
    server: Server,
    tunnel: Tunnel,
    host: String,
    user: User,
    service: Service,
}

async fn world(options: &[&str]) -> World {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let port = service.port();
    let tunnel = user.tunnel(server.address, &[&["http", port.as_str()], options].concat()).await;
    let host = server.host(tunnel.name());
    World { server, tunnel, host, user, service }
}

impl World {
    async fn visit(&self, path: &str) -> Answer {
        get(self.server.address, &self.host, path).await
    }

    /// A call of a script.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        call(self.tunnel.inspector(), method, path, body).await
    }

    async fn read(&self, path: &str) -> Value {
        let answer = self.call("GET", path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The exchanges, once there are this many and the last one is complete.
    async fn exchanges(&self, count: usize) -> Vec<Value> {
        eventually("the exchanges are there", || async {
            let list = self.read("/api/requests").await["requests"].as_array().unwrap().clone();
            (list.len() == count && list.iter().all(|exchange| exchange["state"] != "open")).then_some(list)
        })
        .await
    }

    async fn detail(&self, exchange: &Value) -> Value {
        self.read(&format!("/api/requests/{}", exchange["id"])).await
    }
}

async fn call(address: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Answer {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close");
    match body.map(|body| body.to_string()) {
        Some(body) => {
            let length = body.len();
            let head = format!("{head}\r\nContent-Type: application/json\r\nContent-Length: {length}");
            request(address, &head, body.as_bytes()).await
        }
        None => request(address, &head, b"").await,
    }
}

#[tokio::test]
async fn the_pages_in_a_browser() {
    let world = world(&[]).await;
    let inspector = format!("http://{}", world.tunnel.inspector());
    let edge = world.server.address.to_string();
    let screenshots = std::env::var("RETUNNEL_TEST_SCREENSHOTS").unwrap_or_default();
    let variables = [
        ("INSPECTOR", inspector.as_str()),
        ("EDGE", edge.as_str()),
        ("HOST", world.host.as_str()),
        ("SCREENSHOTS", screenshots.as_str()),
    ];
    browse("inspector.mjs", &variables).await;
}

#[tokio::test]
async fn exchanges_of_a_kept_connection_are_told_apart_in_every_framing() {
    let world = world(&[]).await;
    let mut visitor = Visitor::connect(world.server.address).await;
    for (head, body) in [
        ("GET /bytes/10", ""),
        ("POST /echo", "hello"),
        ("GET /chunks/3", ""),
        ("GET /status/204", ""),
        ("GET /status/304", ""),
    ] {
        let length = body.len();
        visitor
            .send(format!("{head} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n{body}", world.host))
            .await;
        assert!(visitor.answer(false).await.is_complete, "{head}");
    }
    visitor.send(format!("HEAD /bytes/7 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.host)).await;
    visitor.answer(true).await;
    let list = world.exchanges(6).await;
    let seen: Vec<_> = list.iter().map(|e| (e["method"].as_str().unwrap(), e["status"].as_u64().unwrap())).collect();
    assert_eq!(seen, [("GET", 200), ("POST", 200), ("GET", 200), ("GET", 204), ("GET", 304), ("HEAD", 200)]);
    assert_eq!(world.detail(&list[1]).await["request"]["text"], "hello");
    assert_eq!(world.detail(&list[2]).await["response"]["text"], "chunk 0\nchunk 1\nchunk 2\n");
    assert_eq!(list[5]["response_size"], 0);
}

#[tokio::test]
async fn large_bodies_are_counted_and_only_their_beginning_is_kept() {
    const SIZE: usize = 100_000_000;
    let world = world(&["--inspect-body-limit", "64"]).await;
    assert_eq!(world.visit(&format!("/bytes/{SIZE}")).await.body.len(), SIZE);
    assert_eq!(post(world.server.address, &world.host, "/sink", &vec![0; 1_000_000]).await.text(), "1000000");
    let list = world.exchanges(2).await;
    assert_eq!((&list[0]["response_size"], &list[1]["request_size"]), (&json!(SIZE), &json!(1_000_000)));
    let detail = world.detail(&list[0]).await;
    assert_eq!((&detail["response"]["captured"], &detail["response"]["truncated"]), (&json!(65_536), &json!(true)));
    assert!(detail["response"]["base64"].is_string(), "bytes are not a text");
    let again = world.call("POST", &format!("/api/requests/{}/replay", list[1]["id"]), Some(json!({}))).await;
    assert_eq!((again.status, again.text().contains("body_not_captured")), (409, true));
    assert!(world.tunnel.process.peak_memory() < 64 << 20);
}

#[tokio::test]
async fn many_large_bodies_stay_within_the_budget_and_the_newest_are_kept() {
    // More than twice the budget of 32 MiB.
    const VISITS: usize = 300;
    let world = world(&[]).await;
    let mut visitor = Visitor::connect(world.server.address).await;
    for _ in 0..VISITS {
        visitor.send(format!("GET /bytes/262144 HTTP/1.1\r\nHost: {}\r\n\r\n", world.host)).await;
        assert!(visitor.answer(false).await.is_complete);
    }
    let kept = eventually("the last one is over", || async {
        let list = world.read("/api/requests").await["requests"].as_array().unwrap().clone();
        (list.last().unwrap()["id"] == VISITS && list.last().unwrap()["state"] == "done").then_some(list)
    })
    .await;
    assert!((100..=128).contains(&kept.len()), "{}", kept.len());
    let memory = world.tunnel.process.peak_memory();
    assert!(memory < 80 << 20, "{} MiB", memory >> 20);
    assert_eq!(world.call("DELETE", "/api/requests", None).await.status, 204);
    assert!(world.read("/api/requests").await["requests"].as_array().unwrap().is_empty());
}

/// A body of 134 bytes in `zstd` that expands to 4 MiB of zeros.
fn bomb() -> Vec<u8> {
    const BLOCKS: u32 = 32;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3];
    for block in 1..=BLOCKS {
        // A block's header: whether it is the last, its kind (a repeated byte), its length.
        let header = u32::from(block == BLOCKS) | 1 << 1 | (128 * 1024) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

#[tokio::test]
async fn exports_and_searches_of_bombs_have_one_budget_and_little_memory() {
    const VISITS: usize = 400;
    let world = world(&[]).await;
    let (mut visitor, bomb) = (Visitor::connect(world.server.address).await, bomb());
    for _ in 0..VISITS {
        let head = format!("POST /sink HTTP/1.1\r\nHost: {}\r\nContent-Encoding: zstd", world.host);
        visitor.send(format!("{head}\r\nContent-Length: {}\r\n\r\n", bomb.len())).await;
        visitor.send(&bomb).await;
        assert!(visitor.answer(false).await.is_complete);
    }
    world.exchanges(VISITS).await;
    let export = world.call("GET", "/api/har", None).await;
    assert!(export.body.len() < 100 << 20, "{} MiB", export.body.len() >> 20);
    let har: Value = serde_json::from_slice(&export.body).unwrap();
    let entries = har["log"]["entries"].as_array().unwrap();
    assert_eq!(entries.len(), VISITS);
    let comment = |at: usize| entries[at]["comment"].as_str().unwrap();
    assert!(comment(0).ends_with("request body decoded in part"), "{}", comment(0));
    assert!(comment(VISITS - 1).contains("left out"), "{}", comment(VISITS - 1));
    assert_eq!(entries[VISITS - 1]["request"]["postData"]["text"], "");
    let list = world.read("/api/requests?text=nothing+has+this").await;
    assert_eq!((list["requests"].as_array().unwrap().len(), &list["complete"]), (0, &json!(false)));
    let list = world.read("/api/requests?text=sink").await;
    assert_eq!((list["requests"].as_array().unwrap().len(), &list["complete"]), (VISITS, &json!(true)));
    let list = world.call("GET", "/api/requests/http?limit=400", None).await;
    assert!(list.body.len() < 100 << 20, "{} MiB", list.body.len() >> 20);
    let list: Value = serde_json::from_slice(&list.body).unwrap();
    assert_eq!(list["requests"].as_array().unwrap().len(), VISITS);
    let memory = world.tunnel.process.peak_memory();
    assert!(memory < 96 << 20, "{} MiB", memory >> 20);
    assert_eq!(world.visit("/status/204").await.status, 204);
}

#[tokio::test]
async fn an_export_that_nobody_reads_makes_nothing_wait() {
    let world = world(&[]).await;
    for _ in 0..20 {
        world.visit("/bytes/262144").await;
    }
    world.exchanges(20).await;
    let mut slow = Visitor::connect(world.tunnel.inspector()).await;
    slow.send("GET /api/har HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(slow.head().await.is_some());
    let list = world.exchanges(20).await;
    assert_eq!(world.detail(&list[19]).await["response"]["captured"], 262_144);
}

#[tokio::test]
async fn a_tunnel_of_a_file_may_be_left_alone() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let file = format!(
        "tunnels:\n  - {{name: seen, protocol: http, local_port: {0}, subdomain: seen}}\n  \
         - {{name: unseen, protocol: http, local_port: {0}, subdomain: unseen, inspect: false}}\n",
        service.port()
    );
    std::fs::write(user.home().join("retunnel.yml"), file).unwrap();
    let tunnels = user.tunnel(server.address, &["start"]).await;
    let inspector = tunnels.info["tunnels"][0]["inspector"].as_str().unwrap().strip_prefix("http://").unwrap();
    for name in ["unseen", "seen"] {
        assert_eq!(get(server.address, &server.host(name), "/status/204").await.status, 204);
    }
    let answer = call(inspector.parse().unwrap(), "GET", "/api/requests", None).await;
    let list: Value = serde_json::from_slice(&answer.body).unwrap();
    let seen: Vec<_> = list["requests"].as_array().unwrap().iter().map(|e| e["tunnel"].as_str().unwrap()).collect();
    assert_eq!(seen, ["seen"]);
}

#[tokio::test]
async fn every_dialect_is_seen() {
    let world = world(&["--dialect", "2"]).await;
    assert_eq!(world.tunnel.info["dialect"], "2");
    assert_eq!(post(world.server.address, &world.host, "/echo?x=1", b"hello").await.status, 200);
    let list = world.exchanges(1).await;
    let detail = world.detail(&list[0]).await;
    assert_eq!((&detail["path"], &detail["request"]["text"]), (&json!("/echo?x=1"), &json!("hello")));
    let again = world.call("POST", &format!("/api/requests/{}/replay", list[0]["id"]), Some(json!({"times": 2}))).await;
    assert_eq!((again.status, world.exchanges(3).await.len()), (200, 3));
}

#[tokio::test]
async fn a_cut_answer_is_shown_as_cut() {
    let world = world(&[]).await;
    world.visit("/cut/1000").await;
    assert_eq!(world.exchanges(1).await[0]["state"], "cut");
}

/// A service that answers the first request of each connection, keeps it, and closes it when the next one comes.
async fn forgetful() -> (JoinSet<()>, u16) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut visitor = Visitor::over(socket);
                if visitor.head().await.is_some() {
                    visitor.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    visitor.head().await;
                }
            });
        }
    });
    (task, port)
}

#[tokio::test]
async fn a_request_that_the_server_repeated_is_marked_and_its_answer_is_the_visitors() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let (_task, port) = forgetful().await;
    let tunnel = user.tunnel(server.address, &["http", &port.to_string()]).await;
    let host = server.host(tunnel.name());
    for _ in 0..2 {
        assert_eq!(get(server.address, &host, "/again").await.text(), "ok");
    }
    let list = eventually("both requests and the retry", || async {
        let answer = call(tunnel.inspector(), "GET", "/api/requests", None).await;
        let list: Value = serde_json::from_slice(&answer.body).unwrap();
        let list = list["requests"].as_array().unwrap().clone();
        (list.len() == 3 && list.iter().all(|exchange| exchange["state"] != "open")).then_some(list)
    })
    .await;
    let seen: Vec<_> = list.iter().map(|e| (e["state"].as_str().unwrap(), e["status"].as_u64().unwrap())).collect();
    assert_eq!(seen, [("done", 200), ("retried", 0), ("done", 200)]);
    assert_eq!((&list[1]["retried_as"], &list[2]["retry_of"]), (&list[2]["id"], &list[1]["id"]));
}

#[tokio::test]
async fn the_status_is_what_the_visitor_got() {
    let script = vec![
        ("/invalid".to_owned(), "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned()),
        ("/silent".to_owned(), String::new()),
        ("/teapot".to_owned(), "HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n".to_owned()),
    ];
    let (server, service, user) = (Server::start(&[]).await, service::scripted(script).await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    for (path, status, code) in [
        ("/invalid", 502, json!("local_invalid_response")),
        ("/silent", 502, json!("local_closed_early")),
        ("/teapot", 418, Value::Null),
    ] {
        assert_eq!(get(server.address, &host, path).await.status, status, "{path}");
        eventually(&format!("the status of {path}"), || async {
            let answer = call(tunnel.inspector(), "GET", "/api/requests", None).await;
            let list: Value = serde_json::from_slice(&answer.body).unwrap();
            let last = list["requests"].as_array().unwrap().last().unwrap().clone();
            (last["path"] == path && last["status"] == status && last["error_code"] == code).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_that_reached_nobody_is_shown_with_the_reason() {
    let World { server, tunnel, host, service, user } = world(&[]).await;
    drop(service);
    eventually("the service is gone", || async {
        (get(server.address, &host, "/lost?a=1").await.status == 502).then_some(())
    })
    .await;
    let last = eventually("the exchange", || async {
        let answer = call(tunnel.inspector(), "GET", "/api/requests", None).await;
        let list: Value = serde_json::from_slice(&answer.body).unwrap();
        let last = list["requests"].as_array().unwrap().last().unwrap().clone();
        (last["state"] == "failed").then_some(last)
    })
    .await;
    assert_eq!((&last["path"], &last["status"]), (&json!("/lost?a=1"), &json!(502)));
    assert!(last["error"].as_str().unwrap().starts_with("connection refused"), "{last}");
    drop(user);
}

#[tokio::test]
async fn websocket_messages_are_seen_on_both_sides() {
    let world = world(&[]).await;
    let socket = tokio::net::TcpStream::connect(world.server.address).await.unwrap();
    let uri = format!("ws://{}/ws", world.host);
    let (mut client, _) = ClientBuilder::new().uri(&uri).unwrap().connect_on(socket).await.unwrap();
    client.send(Message::text("hello")).await.unwrap();
    timeout(TIMEOUT, client.next()).await.unwrap().unwrap().unwrap();
    client.send(Message::binary(vec![0, 255])).await.unwrap();
    timeout(TIMEOUT, client.next()).await.unwrap().unwrap().unwrap();
    let list = eventually("the messages", || async {
        let list = world.read("/api/requests").await["requests"].clone();
        (list[0]["messages"] == 4).then_some(list)
    })
    .await;
    assert_eq!(
        (&list[0]["kind"], &list[0]["state"], &list[0]["status"]),
        (&json!("websocket"), &json!("open"), &json!(101))
    );
    let detail = world.detail(&list[0]).await;
    let messages = detail["message_list"].as_array().unwrap();
    let seen: Vec<_> = messages.iter().map(|m| (m["from"].as_str().unwrap(), m["kind"].as_str().unwrap())).collect();
    assert_eq!(seen, [("visitor", "text"), ("service", "text"), ("visitor", "binary"), ("service", "binary")]);
    assert_eq!((&messages[1]["text"], &messages[2]["base64"]), (&json!("hello"), &json!("AP8=")));
    client.close().await.unwrap();
    world.exchanges(1).await;
}

#[tokio::test]
async fn names_and_pages_of_others_are_refused_and_reading_changes_nothing() {
    let world = world(&[]).await;
    world.visit("/echo").await;
    world.exchanges(1).await;
    let address = world.tunnel.inspector();
    for (head, code) in [
        ("GET /api/requests HTTP/1.1\r\nHost: evil.test", "host_not_allowed"),
        ("GET / HTTP/1.1\r\nHost: evil.test", "host_not_allowed"),
        ("GET /api/requests HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.test", "origin_not_allowed"),
        ("GET /api/requests HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site", "origin_not_allowed"),
        ("DELETE /api/requests HTTP/1.1\r\nHost: localhost\r\nOrigin: null", "origin_not_allowed"),
        (
            "POST /api/requests/1/replay HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 0",
            "token_required",
        ),
        (
            "POST /api/pause HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/json\r\nContent-Length: 0",
            "token_required",
        ),
    ] {
        let answer = request(address, &format!("{head}\r\nConnection: close"), b"").await;
        assert_eq!((answer.status, answer.text().contains(code)), (403, true), "{head}: {}", answer.text());
    }
    let page = get(address, "localhost", "/").await;
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    for path in ["/api/requests/1/replay", "/api/pause"] {
        assert_eq!(world.call("GET", path, None).await.status, 405, "{path}");
    }
    for (method, path, body) in [
        ("POST", "/api/requests/1/replay", Some(json!({"time": 1}))),
        ("POST", "/api/pause", Some(json!([]))),
        ("GET", "/api/requests/x", None),
    ] {
        let answer = world.call(method, path, body).await;
        let failure: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!((400..423).contains(&answer.status) && failure["code"] == "invalid_request", "{failure}");
    }
    for path in ["/../Cargo.toml", "/vendor/../../Cargo.toml", "/nothing", "/api/requests/99"] {
        assert_eq!(world.call("GET", path, None).await.status, 404, "{path}");
    }
    assert_eq!(world.exchanges(1).await.len(), 1);
}

#[tokio::test]
async fn scripts_for_ngroks_agent_work() {
    let world = world(&[]).await;
    let list = world.read("/api/tunnels").await;
    assert_eq!(list["uri"], "/api/tunnels");
    let tunnel = &list["tunnels"][0];
    assert_eq!((&tunnel["public_url"], &tunnel["proto"]), (&world.tunnel.info["url"], &json!("http")));
    assert_eq!(tunnel["config"]["addr"], format!("http://localhost:{}", world.service.port()));
    let named = world.read(&format!("/api/tunnels/{}", world.tunnel.name())).await;
    assert_eq!(named["public_url"], tunnel["public_url"]);

    let second = json!({"name": "second", "proto": "http", "addr": world.service.port(), "subdomain": "second"});
    let opened = world.call("POST", "/api/tunnels", Some(second.clone())).await;
    assert_eq!(opened.status, 201, "{}", opened.text());
    assert_eq!(get(world.server.address, &world.server.host("second"), "/status/204").await.status, 204);
    assert_eq!(world.call("POST", "/api/tunnels", Some(second)).await.status, 400);
    let open = json!({"name": "x", "proto": "http", "addr": "1", "basic_auth": []});
    assert_eq!(world.call("POST", "/api/tunnels", Some(open)).await.status, 400);

    let request = world.read("/api/requests/http?limit=1").await["requests"][0].clone();
    assert_eq!((&request["tunnel_name"], &request["response"]["status_code"]), (&json!("second"), &json!(204)));
    assert_eq!(request["request"]["uri"], "/status/204");
    let again = json!({"id": request["id"], "tunnel_name": "second"});
    assert_eq!(world.call("POST", "/api/requests/http", Some(again)).await.status, 204);
    assert_eq!(world.exchanges(2).await[1]["replay_of"].to_string(), request["id"].as_str().unwrap());

    assert_eq!(world.call("DELETE", "/api/tunnels/second", None).await.status, 204);
    assert_eq!(world.call("DELETE", "/api/tunnels/second", None).await.status, 404);
    eventually("the address is gone", || async {
        (get(world.server.address, &world.server.host("second"), "/").await.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_takes_the_next_free_port_and_says_where_it_is() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    // Whoever has it, the port is taken.
    let _taken = tokio::net::TcpListener::bind("127.0.0.1:4040").await;
    let mut command = user.command(&["--json", "http", &service.port(), "--server", &server.address.to_string()]);
    command.env_remove("RETUNNEL_INSPECT_ADDR");
    let output = tokio_lines(command).await;
    let port = output["inspector"].as_str().unwrap().strip_prefix("http://127.0.0.1:").unwrap().parse::<u16>().unwrap();
    assert!((4041..4140).contains(&port), "{port}");
}

async fn tokio_lines(mut command: tokio::process::Command) -> Value {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn it_is_off_when_it_is_not_wanted_and_fails_where_it_was_asked_for() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--no-inspect"]).await;
    assert_eq!(tunnel.info["inspector"], Value::Null);
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = server.address.to_string();
    let (code, _, stderr) = user.run(&["http", &service.port(), "--server", &server, "--inspect-addr", &address]).await;
    assert!(code == 69 && stderr.contains(&address) && stderr.contains("--no-inspect"), "{code}: {stderr}");
    let open = ["http", "1", "--server", &server, "--token", "rt_unknown", "--inspect-addr", "0.0.0.0:0"];
    let (code, _, stderr) = user.run(&open).await;
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("other machines can reach the inspector"), "{stderr}");
    let (code, _, stderr) = user.run(&["http", &service.port(), "--server", &server, "--inspect-addr", "x"]).await;
    assert!(code == 2 && stderr.contains("127.0.0.1:4040"), "{code}: {stderr}");
}

#[tokio::test]
async fn secrets_of_any_name_with_a_secret_word_are_masked_everywhere() {
    let world = world(&[]).await;
    let body = r#"{"user":"ada","sessionId":"s3cret-a","clientSecret":"s3cret-b","auth":{"jwt":["s3cret-c"]}}"#;
    let head = format!(
        "POST /sink?X-Amz-Signature=s3cret-d&page=2&csrf_token=s3cret-e HTTP/1.1\r\nHost: {}\r\nX-CSRF-Token: s3cret-f\r\n\
         X-Auth-User: s3cret-g\r\nX-Hub-Signature-256: s3cret-h\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close",
        world.host,
        body.len()
    );
    assert_eq!(request(world.server.address, &head, body.as_bytes()).await.status, 200);
    let form = b"author=ada&api-key=s3cret-i&new_password=s3cret-j";
    let head = format!(
        "POST /sink HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\
         Connection: close",
        world.host,
        form.len()
    );
    assert_eq!(request(world.server.address, &head, form).await.status, 200);
    let list = world.exchanges(2).await;
    let (first, second) = (&list[0]["id"], &list[1]["id"]);
    for path in [
        "/api/requests".to_owned(),
        format!("/api/requests/{first}"),
        format!("/api/requests/{second}"),
        format!("/api/requests/{first}/curl"),
        format!("/api/requests/{second}/curl"),
        format!("/api/requests/{first}/body/request"),
        "/api/har".to_owned(),
    ] {
        let shown = world.call("GET", &path, None).await.text();
        assert!(!shown.contains("s3cret") && shown.contains("[masked]") || path.contains("/body/"), "{path}: {shown}");
    }
    for path in ["/api/requests/http", "/api/requests?text=s3cret"] {
        let shown = world.read(path).await["requests"].to_string();
        assert!(!shown.contains("s3cret"), "{path}: {shown}");
    }
    let shown = world.read(&format!("/api/requests/{second}")).await["request"]["text"].clone();
    assert_eq!(shown, "author=ada&api-key=[masked]&new_password=[masked]");
    // A replay sends what was masked.
    let edits = json!({"headers": [["Host", "x"], ["X-CSRF-Token", "[masked]"]]});
    let again = world.call("POST", &format!("/api/requests/{first}/replay"), Some(edits)).await;
    assert_eq!(again.status, 200, "{}", again.text());
    let sent = world.read("/api/requests/3?reveal=1").await;
    for secret in ["s3cret-c", "s3cret-d", "s3cret-f"] {
        assert!(sent["request"].to_string().contains(secret), "{sent}");
    }
}

#[tokio::test]
async fn a_shell_runs_the_curl_command_with_masked_values() {
    let world = world(&[]).await;
    let head = format!(
        "GET /echo?token=a&list[]=1&x=$HOME HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer b\r\nX-Empty:\r\nConnection: close",
        world.host
    );
    request(world.server.address, &head, b"").await;
    world.exchanges(1).await;
    let command = world.call("GET", "/api/requests/1/curl", None).await.text();
    let to = format!("{command} --silent --noproxy '*' --connect-to ::{}", world.server.address);
    let output = tokio::process::Command::new("sh").args(["-c", &to]).output().await.unwrap();
    let echo: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{command}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(echo["target"], "/echo?token=[masked]&list[]=1&x=$HOME");
    let headers = echo["headers"].as_array().unwrap();
    assert!(
        headers.contains(&json!(["authorization", "[masked]"])) && headers.contains(&json!(["x-empty", ""])),
        "{echo}"
    );
}

#[tokio::test]
async fn more_names_are_masked_and_more_hosts_answered_on_request() {
    let world = world(&["--inspect-mask", "X-Key,pin", "--inspect-host", "box.lan"]).await;
    let head = format!("GET /echo?pin=1234 HTTP/1.1\r\nHost: {}\r\nX-Key: hidden\r\nConnection: close", world.host);
    request(world.server.address, &head, b"").await;
    let list = world.exchanges(1).await;
    let detail = world.detail(&list[0]).await;
    assert_eq!(detail["path"], "/echo?pin=[masked]");
    assert!(!detail["request"].to_string().contains("hidden"));
    assert_eq!(get(world.tunnel.inspector(), "box.lan:1", "/api/status").await.status, 200);
    drop(world.user);
}
