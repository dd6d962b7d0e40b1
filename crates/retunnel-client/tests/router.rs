//! `examples/axum_router.rs` against a real server.

#[path = "../examples/axum_router.rs"]
#[expect(dead_code, reason = "the test calls what main calls")]
mod example;
mod support;

use axum::{Router, routing::get};
use support::TestServer;

#[tokio::test]
async fn a_router_without_a_port_serves_visitors() {
    let server = TestServer::start().await;
    let (client, tunnel, listener) = example::publish(server.endpoint()).await.unwrap();
    assert_eq!(tunnel.info().target.to_string(), "router");
    let big = "x".repeat(1_000_000);
    let router = Router::new().route("/", get(async || "no port")).route(
        "/big",
        get({
            let big = big.clone();
            async move || big
        }),
    );
    let visits = async {
        let answer = server.get(tunnel.url(), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("no port"), "{answer}");
        let answer = server.get(tunnel.url(), "/big").await;
        assert!(answer.ends_with(&big), "{} bytes", answer.len());
        let answer = server.get(tunnel.url(), "/missing").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    };
    tokio::select! {
        served = async { axum::serve(example::Visitors(listener), router).await } => panic!("{served:?}"),
        () = visits => {}
    }
    client.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_listener_that_is_gone_is_an_unreachable_service() {
    let server = TestServer::start().await;
    let (client, tunnel, listener) = example::publish(server.endpoint()).await.unwrap();
    drop(listener);
    let answer = server.get(tunnel.url(), "/").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("local_unreachable"), "{answer}");
    client.close().await;
    server.stop().await;
}
