//! The same requests direct and through the tunnel, against services in three languages.

use std::net::SocketAddr;

use retunnel_e2e::{
    apps::App,
    process::{Server, User},
    service,
    visitor::{Answer, request},
};
use serde_json::Value;

/// Headers that the tunnel adds, changes or removes on purpose (`docs/protocol.md`, HTTP).
const OF_THE_TUNNEL: &[&str] =
    &["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "connection", "te", "transfer-encoding"];

fn requests() -> Vec<(String, &'static [u8])> {
    let simple =
        |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nHost: app.tunnel.test\r\nConnection: close{headers}");
    vec![
        (simple("GET /echo/a%2Fb//c/../d?x=%20&&y", ""), b""),
        (
            simple("GET /echo", "\r\nAccept: */*\r\nCookie: a=1\r\nCookie: b=2\r\nX-Empty:\r\nX-Many: 1\r\nx-many: 2"),
            b"",
        ),
        (simple("GET /echo", "\r\nX-Latin: caf\u{e9}"), b""),
        (simple("HEAD /bytes/5000", ""), b""),
        (simple("OPTIONS /echo", "\r\nOrigin: http://a.test"), b""),
        (simple("DELETE /echo/1", ""), b""),
        (simple("POST /echo", "\r\nContent-Length: 11\r\nContent-Type: text/plain"), b"hello world"),
        (simple("PUT /echo", "\r\nTransfer-Encoding: chunked"), b"6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"),
        (simple("PATCH /echo", "\r\nContent-Length: 0"), b""),
        (simple("GET /bytes/300000", ""), b""),
        (simple("GET /chunks/7", "\r\nTE: trailers"), b""),
        (simple("GET /status/204", ""), b""),
        (simple("GET /status/304", ""), b""),
        (simple("GET /status/404", ""), b""),
        (simple("GET /status/500", ""), b""),
        (simple("GET /redirect", ""), b""),
        (simple("GET /cookies", ""), b""),
        (simple("GET /close", ""), b""),
    ]
}

/// Headers as a sorted list, without those that differ by time or on purpose.
fn comparable(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .into_iter()
        .filter(|(name, _)| name != "date" && name != "keep-alive" && !OF_THE_TUNNEL.contains(&name.as_str()))
        .collect();
    headers.sort();
    headers
}

fn compare(name: &str, head: &str, direct: Answer, tunnelled: Answer) {
    let what = format!("{name}: {}", head.lines().next().unwrap_or_default());
    assert_eq!(direct.status, tunnelled.status, "{what}");
    assert_eq!(direct.is_complete, tunnelled.is_complete, "{what}");
    assert_eq!(direct.trailers, tunnelled.trailers, "{what}");
    let echo =
        |answer: &Answer| serde_json::from_slice::<Value>(&answer.body).ok().filter(|echo| echo["headers"].is_array());
    match (echo(&direct), echo(&tunnelled)) {
        (Some(mut one), Some(mut two)) => {
            let taken = |echo: &mut Value| {
                let headers = echo["headers"].take();
                let pairs = headers.as_array().into_iter().flatten();
                comparable(pairs.map(|pair| (text(&pair[0]), text(&pair[1]))).collect())
            };
            assert_eq!(taken(&mut one), taken(&mut two), "{what}: what arrived");
            assert_eq!(one, two, "{what}");
            // The echo is longer by the headers that the tunnel adds.
            return;
        }
        _ => assert_eq!(direct.body, tunnelled.body, "{what}"),
    }
    assert_eq!(comparable(direct.headers), comparable(tunnelled.headers), "{what}: what came back");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

async fn same(name: &str, service: SocketAddr) {
    let (server, user) = (Server::start(&[]).await, User::default());
    let port = service.port().to_string();
    let _tunnel = user.tunnel(server.address, &["http", &port, "--subdomain", "app"]).await;
    for (head, body) in requests() {
        let direct = request(service, &head, body).await;
        let tunnelled = request(server.address, &head, body).await;
        compare(name, &head, direct, tunnelled);
    }
}

#[tokio::test]
async fn hyper() {
    let service = service::http().await;
    same("hyper", service.address).await;
}

#[tokio::test]
async fn python() {
    let app = App::python(0).await;
    same("python", app.address).await;
}

#[tokio::test]
async fn node() {
    let app = App::node().await;
    same("node", app.address).await;
}
