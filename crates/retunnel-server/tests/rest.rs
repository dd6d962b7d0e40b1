//! The REST API of a real server over real sockets.

use std::{net::SocketAddr, path::Path};

use retunnel_server::{
    Server, ServerHandle,
    auth::Auth,
    config::{Registration, ServerConfig},
    store::Store,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{}", self.head);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value.trim()))
    }

    /// An error as the clients want it: an object with `detail` and `code`.
    fn refusal(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        body
    }
}

async fn send(server: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(server).await.expect("connected");
    let bearer = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\n{bearer}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    // A server may answer and close before it has read everything.
    let _ = socket.write_all(body).await;
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    Answer { status, head: head.into(), body: body.into() }
}

async fn post(server: SocketAddr, path: &str, token: Option<&str>, body: Value) -> Answer {
    send(server, "POST", path, token, body.to_string().as_bytes()).await
}

async fn get(server: SocketAddr, path: &str, token: Option<&str>) -> Answer {
    send(server, "GET", path, token, b"").await
}

async fn start(data: &Path, change: impl FnOnce(&mut ServerConfig)) -> ServerHandle {
    let mut config = ServerConfig::new(data.into());
    config.listen = "127.0.0.1:0".parse().expect("an address");
    change(&mut config);
    Server::start(config).await.expect("started")
}

async fn registered(server: SocketAddr, email: &str) -> String {
    let answer = post(server, "/api/v1/auth/register", None, json!({ "email": email })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["auth_token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn an_account_is_registered_verified_and_its_token_rotated() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |_| {}).await;
    let at = server.address();
    let answer =
        post(at, "/api/v1/auth/register", None, json!({ "email": "anon-12345678@retunnel.com", "x": 1 })).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let account = answer.json();
    let token = account["auth_token"].as_str().expect("a token");
    assert!(token.len() == 46 && token.starts_with("rt_"), "256 bits: {}", token.len());
    assert_eq!((&account["token"], &account["email"]), (&json!(token), &json!("anon-12345678@retunnel.com")));

    for answer in [
        get(at, "/api/v1/users/me", Some(token)).await,
        get(at, "/api/v1/auth/verify", Some(token)).await,
        post(at, "/api/v1/auth/verify-token", None, json!({ "old_token": token })).await,
    ] {
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["user_id"], account["id"]);
        assert_eq!(answer.json()["email"], account["email"]);
    }
    let reactivated = post(at, "/api/v1/auth/reactivate-token", None, json!({ "old_token": token })).await;
    assert_eq!(reactivated.json()["auth_token"], json!(token), "a good token stays");

    let mut old = token.to_owned();
    for path in ["/api/v1/auth/login", "/api/v1/auth/refresh"] {
        let answer = send(at, "POST", path, Some(&old), b"").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let new = answer.json()["auth_token"].as_str().expect("a token").to_owned();
        assert_ne!(new, old);
        // The old one is good for nothing: neither to come in, nor to be exchanged again.
        get(at, "/api/v1/users/me", Some(&old)).await.refusal(401, "unauthorized");
        send(at, "POST", path, Some(&old), b"").await.refusal(401, "unauthorized");
        post(at, "/api/v1/auth/verify-token", None, json!({ "old_token": old })).await.refusal(401, "unauthorized");
        post(at, "/api/v1/auth/reactivate-token", None, json!({ "old_token": old }))
            .await
            .refusal(404, "token_unknown");
        assert_eq!(get(at, "/api/v1/users/me", Some(&new)).await.json()["id"], account["id"], "the same account");
        old = new;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn row_43_the_data_directory_holds_no_usable_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |_| {}).await;
    let token = registered(server.address(), "a@example.test").await;
    let mut seen_email = false;
    for entry in std::fs::read_dir(dir.path()).expect("a directory") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("read");
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has(&token));
        seen_email |= has("a@example.test");
    }
    assert!(seen_email, "the account is in one of the files");
    server.shutdown().await;
}

#[tokio::test]
async fn every_refusal_is_an_object_with_a_code() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |_| {}).await;
    let at = server.address();
    let register = "/api/v1/auth/register";
    registered(at, "a@example.test").await;
    post(at, register, None, json!({ "email": "a@example.test" })).await.refusal(409, "email_taken");
    for email in ["", "a", "@", "a@", "@b", "a b@c", "a@b\nc"] {
        post(at, register, None, json!({ "email": email })).await.refusal(400, "invalid_request");
    }
    for body in ["", "{", "[]", "null", "\u{0}", r#"{"email": 5}"#, r#"{"email": null}"#] {
        send(at, "POST", register, None, body.as_bytes()).await.refusal(400, "invalid_request");
    }
    let deep = "[".repeat(10_000);
    send(at, "POST", register, None, deep.as_bytes()).await.refusal(400, "invalid_request");
    post(at, register, None, json!({ "email": "a".repeat(20_000) })).await.refusal(413, "request_too_large");
    let about = get(at, "/api/v1/server", None).await.json();
    assert_eq!((&about["server"], &about["link_version"]), (&json!("retunnel"), &json!(2)), "{about}");
    get(at, "/api/v1/nothing", None).await.refusal(404, "not_found");
    get(at, "/api/v1/auth/nothing", None).await.refusal(404, "not_found");
    let wrong = get(at, register, None).await;
    wrong.refusal(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), Some("POST"));
    get(at, "/api/v1/users/me", None).await.refusal(401, "auth_required");
    for token in ["rt_unknown", "", "x y", &"a".repeat(4_000)] {
        let refused = get(at, "/api/v1/users/me", Some(token)).await;
        assert_eq!(refused.status, 401, "{}", refused.body);
        assert!(refused.json()["detail"].is_string());
    }
    server.shutdown().await;
}

#[tokio::test]
async fn row_41_floods_wait_and_valid_tokens_do_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |config| {
        config.limits.failed_authentications_per_minute = 3;
        config.limits.registrations_per_hour = 2;
    })
    .await;
    let at = server.address();
    let token = registered(at, "a@example.test").await;
    registered(at, "b@example.test").await;
    let refused = post(at, "/api/v1/auth/register", None, json!({ "email": "c@example.test" })).await;
    refused.refusal(429, "rate_limited");
    assert!(refused.header("retry-after").is_some_and(|text| text.parse::<u32>().is_ok_and(|seconds| seconds > 0)));

    for _ in 0..3 {
        get(at, "/api/v1/users/me", Some("rt_guess")).await.refusal(401, "unauthorized");
    }
    let guess = json!({ "old_token": "rt_guess" });
    for refused in [
        get(at, "/api/v1/users/me", Some("rt_guess")).await,
        send(at, "POST", "/api/v1/auth/login", Some("rt_guess"), b"").await,
        post(at, "/api/v1/auth/verify-token", None, guess.clone()).await,
        post(at, "/api/v1/auth/reactivate-token", None, guess).await,
    ] {
        refused.refusal(429, "rate_limited");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(get(at, "/api/v1/users/me", Some(&token)).await.status, 200, "a neighbour's valid token is accepted");
    server.shutdown().await;
}

#[tokio::test]
async fn registration_can_be_by_invitation_or_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |config| config.registration = Registration::Invite).await;
    let at = server.address();
    let register = "/api/v1/auth/register";
    // As `retunnel server invite` does it: beside the running server.
    let code = Auth::new(Store::open(dir.path()).await.expect("a store")).invite().await.expect("a code");
    post(at, register, None, json!({ "email": "a@example.test" })).await.refusal(403, "invite_required");
    post(at, register, None, json!({ "email": "a@example.test", "invite": "inv_x" }))
        .await
        .refusal(403, "invite_invalid");
    let invited = |email: &str| json!({ "email": email, "invite": code });
    assert_eq!(post(at, register, None, invited("a@example.test")).await.status, 200);
    post(at, register, None, invited("b@example.test")).await.refusal(403, "invite_invalid");
    server.shutdown().await;

    let server = start(dir.path(), |config| config.registration = Registration::Closed).await;
    post(server.address(), register, None, invited("c@example.test")).await.refusal(403, "registration_closed");
    server.shutdown().await;
}

#[tokio::test]
async fn tokens_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |_| {}).await;
    let token = registered(server.address(), "a@example.test").await;
    server.shutdown().await;
    let server = start(dir.path(), |_| {}).await;
    assert_eq!(get(server.address(), "/api/v1/users/me", Some(&token)).await.status, 200);
    server.shutdown().await;
}

#[tokio::test]
async fn health_and_the_landing_page_answer_without_a_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), |_| {}).await;
    let at = server.address();
    assert_eq!(get(at, "/healthz", None).await.status, 200);
    assert_eq!(get(at, "/readyz", None).await.status, 200);
    let page = get(at, "/", None).await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains(&format!("retunnel http 8080 --server localhost:{}", at.port())), "{}", page.body);
    server.shutdown().await;
}
