//! `examples/http.rs` against a real server.

#[path = "../examples/http.rs"]
#[expect(dead_code, reason = "the test calls what main calls")]
mod example;
mod support;

use retunnel_client::TunnelError;
use support::{Local, TestServer};

#[tokio::test]
async fn a_local_port_has_a_public_address_until_its_tunnel_closes() {
    let server = TestServer::start().await;
    let local = Local::http("from the local service").await;
    let (client, tunnel) = example::publish(server.endpoint(), local.port).await.unwrap();

    let answer = server.get(tunnel.url(), "/").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("from the local service"), "{answer}");

    let url = tunnel.url().to_owned();
    assert!(client.close_tunnel(tunnel.name()));
    assert!(matches!(tunnel.closed().await, TunnelError::Closed));
    client.close().await;
    let answer = server.get(&url, "/").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}
