//! `examples/events.rs` against a real server.

#[path = "../examples/events.rs"]
#[expect(dead_code, reason = "the test calls what main calls")]
mod example;
mod support;

use retunnel_client::Client;
use support::{Local, TIMEOUT, TestServer};
use tokio::time::timeout;

#[tokio::test]
async fn a_client_reports_what_happens_from_connecting_to_its_end() {
    let server = TestServer::start().await;
    let local = Local::http("hello").await;
    let client = Client::builder().server(server.endpoint()).start();
    let mut lines = Vec::new();
    let follow = example::follow(client.events(), |line| lines.push(line));
    let visit = async {
        let tunnel = client.http(local.port).await.unwrap();
        server.get(tunnel.url(), "/page").await;
        // The request is reported by the server after its end.
        while tunnel.stats().requests == 0 {
            tokio::task::yield_now().await;
        }
        client.close().await;
    };
    timeout(TIMEOUT, async { tokio::join!(follow, visit) }).await.expect("the end in time");

    let expected = ["connecting, attempt 1", "registered", "connected to", "tunnel ", "GET /page -> 200", "ended: "];
    let mut rest = lines.iter();
    for part in expected {
        assert!(rest.any(|line| line.contains(part)), "no `{part}` in order in {lines:#?}");
    }
    server.stop().await;
}
