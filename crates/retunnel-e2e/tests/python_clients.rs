//! The published Python clients, unchanged, against the built server: library and command line of each version.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed test says where")]

use retunnel_e2e::{
    apps::{App, PythonClient, Use},
    eventually,
    process::Server,
    service::pattern,
    sha256,
    visitor::{get, post, request},
};
use serde_json::Value;
use tokio::task::JoinSet;

/// Everything that a user of such a client relies on.
async fn works(version: &'static str, how: Use) {
    println!("published client {version}, {how:?}");
    // The first release requests no name and does not reconnect; like later ones, it does not know chunked answers.
    let is_first = version == "2.0.0";
    let app = App::python(0).await;
    let server = Server::start(&[]).await;
    let client = PythonClient::start(version, how, server.address, &app.port(), "shop", "").await;
    if !is_first {
        assert_eq!(client.host(), format!("shop.tunnel.test:{}", server.address.port()));
    }
    let (address, host) = (server.address, client.host().to_owned());

    let echo: Value = serde_json::from_slice(&get(address, &host, "/echo/a%20b?x=1").await.body).unwrap();
    assert_eq!((&echo["method"], &echo["target"]), (&Value::from("GET"), &Value::from("/echo/a%20b?x=1")));
    for size in [0, 1000, 1_000_000] {
        let body = pattern(size);
        let echo: Value = serde_json::from_slice(&post(address, &host, "/echo", &body).await.body).unwrap();
        assert_eq!(
            (echo["length"].as_u64(), echo["sha256"].as_str()),
            (Some(size as u64), Some(sha256(&body).as_str()))
        );
    }
    // A chunked request is sent to such a client with a length.
    let chunked = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close");
    let echo: Value =
        serde_json::from_slice(&request(address, &chunked, b"5\r\nhello\r\n0\r\n\r\n").await.body).unwrap();
    assert_eq!(echo["sha256"], sha256(b"hello"));
    let large = get(address, &host, "/bytes/5000000").await;
    assert_eq!((large.status, large.body.len()), (200, 5_000_000));
    let redirect = get(address, &host, "/redirect").await;
    assert_eq!(redirect.status, 302);
    assert!(redirect.header("location").unwrap().ends_with("/echo?from=redirect"));
    for status in [404, 500, 503] {
        assert_eq!(get(address, &host, &format!("/status/{status}")).await.status, status);
    }
    let too_large = post(address, &host, "/echo", &pattern(4_200_000)).await;
    assert_eq!((too_large.status, too_large.header("x-retunnel-error")), (413, Some("request_too_large")));
    let upgrade = format!("GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade, close\r\nUpgrade: websocket");
    assert_eq!(request(address, &upgrade, b"").await.status, 501);

    let mut visitors = JoinSet::new();
    for n in 0..50 {
        let host = host.clone();
        visitors.spawn(async move {
            let answer = get(address, &host, &format!("/echo/{n}")).await;
            serde_json::from_slice::<Value>(&answer.body).is_ok_and(|echo| echo["target"] == format!("/echo/{n}"))
        });
    }
    assert_eq!(visitors.join_all().await.into_iter().filter(|right| *right).count(), 50);

    let server = if is_first {
        server
    } else {
        // A restarted server gives it the same name.
        let server = server.restart().await;
        eventually("the client is back", || async {
            (get(server.address, &host, "/status/404").await.text() == "status 404").then_some(())
        })
        .await;
        server
    };

    // The local service stops: the visitor gets an error, the tunnel stays.
    app.process.kill().await;
    let down = get(server.address, &host, "/echo").await;
    assert_eq!((down.status, down.header("x-retunnel-error")), (502, Some("local_unreachable")));
}

async fn asks_for_a_password(version: &'static str, how: Use) {
    let (app, server) = (App::python(0).await, Server::start(&[]).await);
    let client = PythonClient::start(version, how, server.address, &app.port(), "", "me:secret").await;
    let host = client.host().to_owned();
    assert_eq!(get(server.address, &host, "/echo").await.status, 401);
    let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic bWU6c2VjcmV0\r\nConnection: close");
    assert_eq!(request(server.address, &head, b"").await.status, 200);
}

/// A module for each version, as the Makefile installs them.
macro_rules! versions {
    ($($module:ident $version:literal),* $(,)?) => {
        const VERSIONS: &[&str] = &[$($version),*];
        $(mod $module {
            use super::*;

            #[tokio::test]
            async fn library() {
                works($version, Use::Library).await;
            }

            #[tokio::test]
            async fn command() {
                works($version, Use::Command).await;
            }
        })*
    };
}

versions! {
    client_2_0_0 "2.0.0",
    client_2_0_1 "2.0.1",
    client_2_0_2 "2.0.2",
    client_2_0_3 "2.0.3",
    client_2_1_0 "2.1.0",
    client_2_5_1 "2.5.1",
    client_2_5_2 "2.5.2",
    client_2_5_3 "2.5.3",
}

#[test]
fn every_installed_version_is_tried() {
    if let Ok(installed) = std::env::var("RETUNNEL_TEST_CLIENTS") {
        assert_eq!(
            installed.split_whitespace().filter(|version| version.starts_with("2.")).collect::<Vec<_>>(),
            VERSIONS
        );
    }
}

#[tokio::test]
async fn passwords_are_asked_for() {
    for version in VERSIONS {
        for how in [Use::Library, Use::Command] {
            asks_for_a_password(version, how).await;
        }
    }
}

#[tokio::test]
async fn the_default_domain_is_shown_as_it_is() {
    // The last `--domain` counts.
    let (app, server) = (App::python(0).await, Server::start(&["--domain", "localhost"]).await);
    for version in ["2.0.1", "2.5.3"] {
        let client = PythonClient::start(version, Use::Command, server.address, &app.port(), "", "").await;
        assert!(client.host().ends_with(&format!(".LOCALHOST:{}", server.address.port())), "{}", client.url);
        assert_eq!(get(server.address, client.host(), "/echo").await.status, 200);
    }
}

#[tokio::test]
async fn answers_that_are_kept_whole_have_a_bound_together() {
    let (app, server) = (App::python(0).await, Server::start_with(4096, "limits: {max_buffered: 3000000}").await);
    let client = PythonClient::start("2.5.3", Use::Command, server.address, &app.port(), "", "").await;
    let refused = get(server.address, client.host(), "/bytes/5000000").await;
    assert_eq!((refused.status, refused.header("x-retunnel-error")), (503, Some("too_many_connections")));
    // Its memory is free again.
    for _ in 0..3 {
        assert_eq!(get(server.address, client.host(), "/bytes/2000000").await.body.len(), 2_000_000);
    }
}
