//! Scenarios: early data, and networks that do not pass it on.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use retunnel_e2e::{
    process::{Server, User},
    service, visitor,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What a proxy between client and server does when a link is requested.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// Passes nothing on before the client has authenticated.
    Hold,
    /// Takes bytes after the request for another request.
    Refuse,
    /// Drops them, and ends the resulting connection.
    Lose,
    /// Does not know links.
    Answer404,
    /// Lets the server's answer say that it speaks link version 1.
    Downgrade,
}

#[derive(Debug)]
struct Between {
    address: SocketAddr,
    /// The first bytes of each connection that asked for a link.
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    _task: JoinSet<()>,
}

impl Between {
    async fn start(does: Does, server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let log = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(does, client, server, Arc::clone(&log)));
            }
        });
        Self { address, seen, _task: task }
    }

    /// Head and rest of the link's first bytes, for each link.
    fn seen(&self) -> Vec<(String, Vec<u8>)> {
        let split = |bytes: &Vec<u8>| {
            let end = head_end(bytes).unwrap();
            (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end..].to_vec())
        };
        self.seen.lock().unwrap().iter().map(split).collect()
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|part| part == text.as_bytes())
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    Some(find(bytes, "\r\n\r\n")? + 4)
}

/// Reads up to this text; what arrived together with it is included.
async fn first_bytes(client: &mut TcpStream, until: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 * 1024);
    while find(&bytes, until).is_none() && client.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {}
    bytes
}

async fn pass(does: Does, mut client: TcpStream, server: SocketAddr, log: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut bytes = first_bytes(&mut client, "\r\n\r\n").await;
    let is_link = bytes.starts_with(b"GET /api/v1/link ");
    let end = head_end(&bytes).unwrap();
    if is_link && matches!(does, Does::Hold | Does::Downgrade) && find(&bytes, "link_version").is_none() {
        bytes.extend(first_bytes(&mut client, "link_version").await);
    }
    if is_link {
        log.lock().unwrap().push(bytes.clone());
    }
    let is_early = is_link && bytes.len() > end;
    let mut upstream = TcpStream::connect(server).await.unwrap();
    match does {
        Does::Refuse if is_early => {
            let _ =
                client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            return;
        }
        Does::Lose if is_early => {
            upstream.write_all(&bytes[..end]).await.unwrap();
            let answer = first_bytes(&mut upstream, "\r\n\r\n").await;
            let _ = client.write_all(&answer).await;
            return;
        }
        Does::Answer404 => {
            let _ = client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            let _ = client.shutdown().await;
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest).await;
            log.lock().unwrap().push([bytes, rest].concat());
            return;
        }
        _ => {}
    }
    upstream.write_all(&bytes).await.unwrap();
    if is_link && matches!(does, Does::Downgrade) {
        const VERSION: &str = "link_version\u{2}";
        let mut answer = first_bytes(&mut upstream, VERSION).await;
        let end = find(&answer, VERSION).unwrap() + VERSION.len();
        answer[end - 1] = 1;
        client.write_all(&answer).await.unwrap();
    }
    let _ = copy_bidirectional(&mut client, &mut upstream).await;
}

/// The token that was saved for a server.
fn token(user: &User, server: SocketAddr) -> String {
    let file = std::fs::read_to_string(user.home().join(".retunnel.conf")).unwrap();
    let keys: Value = serde_json::from_str(&file).unwrap();
    keys["tokens"][server.to_string()].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_says_who_it_is_and_what_it_wants_before_the_upgrade_is_answered() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let between = Between::start(Does::Hold, server.address).await;
    // No answer is sent before the first message arrives, so a client that waits for the 101 waits forever.
    let open = user.tunnel(between.address, &["http", &app.port(), "--subdomain", "open"]).await;
    let closed = user.tunnel(between.address, &["http", &app.port(), "-s", "closed", "--auth", "me:hidden"]).await;
    assert_eq!(visitor::get(server.address, &server.host(open.name()), "/echo").await.status, 200);
    assert_eq!(visitor::get(server.address, &server.host(closed.name()), "/echo").await.status, 401);

    let token = token(&user, between.address);
    let seen = between.seen();
    assert_eq!(seen.len(), 2);
    for (head, behind) in &seen {
        assert!(head.contains(&format!("\r\nAuthorization: Bearer {token}\r\n")));
        assert!(find(behind, &token).is_none(), "a secret that an access log may show");
        assert_eq!(behind[0], 0, "nothing that a request begins with");
    }
    assert!(find(&seen[0].1, "ReqTunnel").is_some());
    assert!(find(&seen[1].1, "ReqTunnel").is_none() && find(&seen[1].1, "hidden").is_none(), "its password waits");
}

#[tokio::test]
async fn a_tunnel_with_rules_is_not_opened_by_a_server_that_ignores_them() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let between = Between::start(Does::Downgrade, server.address).await;
    let address = between.address.to_string();
    for (option, value, rule) in [("--auth", "me:secret", "basic-auth"), ("--host-header", "rewrite", "local-origin")] {
        let (code, _, stderr) =
            user.run(&["http", &app.port(), "--subdomain", "app", option, value, "--server", &address]).await;
        assert_eq!(code, 69, "{stderr}");
        let reason = format!("link version 1, which cannot carry the rule `{rule}`");
        assert!(stderr.contains(&reason) && stderr.contains("[dialect_unsupported]"), "{stderr}");
        assert_eq!(visitor::get(server.address, &server.host("app"), "/echo").await.status, 404);
    }
    let _tunnel = user.tunnel(between.address, &["http", &app.port(), "--subdomain", "app"]).await;
    assert_eq!(visitor::get(server.address, &server.host("app"), "/echo").await.status, 200);
}

#[tokio::test]
async fn links_come_up_where_early_bytes_are_refused_or_lost() {
    let (server, app) = (Server::start(&[]).await, service::http().await);
    for (does, name) in [(Does::Refuse, "refuse"), (Does::Lose, "lose")] {
        let (user, between) = (User::default(), Between::start(does, server.address).await);
        let _tunnel = user.tunnel(between.address, &["http", &app.port(), "-s", name]).await;
        assert_eq!(visitor::get(server.address, &server.host(name), "/echo").await.status, 200);
        let seen = between.seen();
        let asked: Vec<bool> = seen.iter().map(|(head, _)| head.contains("Upgrade: retunnel")).collect();
        assert_eq!(asked, [true, true], "it asks once more, for the same, and nobody else");
        assert!(seen[1].1.is_empty() && !seen[1].0.contains("Authorization"), "and waits for the answer");
    }
}

#[tokio::test]
async fn without_tls_a_token_from_elsewhere_is_shown_to_nobody_who_has_not_answered() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let between = Between::start(Does::Answer404, server.address).await;
    let address = between.address.to_string();
    let secret = "rt_0123456789abcdef";
    let args = ["http", &app.port(), "--server", &address, "--dialect", "native", "--token", secret];
    let (code, _, stderr) = user.run(&args).await;
    assert_eq!(code, 69, "{stderr}");
    let seen = between.seen();
    assert!(!seen.is_empty());
    for (head, behind) in seen {
        assert!(!head.contains(secret) && behind.is_empty(), "{head}");
    }
}
