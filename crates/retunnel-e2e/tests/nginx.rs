//! Scenarios: a server behind nginx, with the configuration of `docs/examples/nginx.conf`, and with one that passes only WebSockets.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use futures_util::{SinkExt, StreamExt};
use retunnel_e2e::{
    TIMEOUT,
    authority::Authority,
    eventually,
    nginx::{Nginx, Upgrades},
    process::{Server, Tunnel, User, port_range},
    service::{self, pattern},
    sha256,
    visitor::Answer,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_websockets::{ClientBuilder, Message};

struct Site {
    authority: Authority,
    server: Server,
    nginx: Nginx,
    user: User,
}

impl Site {
    async fn start(upgrades: Upgrades) -> Self {
        let options =
            ["--public-url", "https://tunnel.test", "--trusted-proxies", "127.0.0.1", "--tcp-ports", &port_range()];
        let server = Server::start(&[&options[..], &["--registration", "open"]].concat()).await;
        let authority = Authority::default();
        let nginx = Nginx::start(upgrades, server.address, &authority).await;
        Self { authority, server, nginx, user: User::default() }
    }

    async fn tunnel(&self, args: &[&str]) -> Tunnel {
        let authority = self.authority.file();
        let server = format!("https://localhost:{}", self.nginx.address.port());
        self.user.tunnel_at(&server, &[args, &["--ca-file", &authority]].concat()).await
    }

    async fn get(&self, host: &str, path: &str) -> Answer {
        let mut visitor = self.authority.visitor(self.nginx.address, host).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        visitor.answer(false).await
    }

    /// How many such requests nginx has completed so far.
    fn count(&self, line: &str) -> usize {
        self.nginx.asked().iter().filter(|asked| *asked == line).count()
    }
}

/// Everything that a link carries.
async fn carries_all(site: &Site, tunnel: &Tunnel) {
    let host = "shop.tunnel.test";
    assert_eq!(tunnel.info["url"], format!("https://{host}"));
    let echo: Value = serde_json::from_str(&site.get(host, "/echo").await.text()).unwrap();
    let headers = echo["headers"].as_array().unwrap();
    let seen = |name: &str| headers.iter().find(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
    assert_eq!(seen("x-forwarded-proto").unwrap()[1], "https");
    // Large enough for a lane.
    let expected: Vec<u8> = pattern(64 * 1024).into_iter().cycle().take(20_000_000).collect();
    let bulk = site.get(host, "/bytes/20000000").await;
    assert!(bulk.is_complete && sha256(&bulk.body) == sha256(&expected));
    let mut visitor = site.authority.visitor(site.nginx.address, host).await;
    let body = pattern(3_000_000);
    visitor.send(format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    visitor.send(&body).await;
    assert_eq!(visitor.answer(false).await.text(), "3000000");
    // A visitor's own WebSocket.
    let visitor = site.authority.visitor(site.nginx.address, host).await;
    let builder = ClientBuilder::new().uri(&format!("ws://{host}/ws")).unwrap();
    let mut socket = builder.connect_on(visitor.socket).await.unwrap().0;
    for size in [0, 5, 300_000] {
        socket.send(Message::binary(pattern(size))).await.unwrap();
        let back = timeout(TIMEOUT, socket.next()).await.unwrap().unwrap().unwrap();
        assert!(back.as_payload()[..] == pattern(size), "{size}");
    }
}

#[tokio::test]
async fn links_pass_as_they_are_where_any_upgrade_may() {
    let (site, app) = (Site::start(Upgrades::Any).await, service::http().await);
    let tunnel = site.tunnel(&["http", &app.port(), "--subdomain", "shop"]).await;
    carries_all(&site, &tunnel).await;
    tunnel.process.kill().await;
    eventually("nginx has seen the link's end", || async {
        (site.count("/api/v1/link retunnel 101") >= 2).then_some(())
    })
    .await;
    assert!(site.nginx.asked().iter().all(|asked| !asked.starts_with("/api/v1/link websocket")));
}

#[tokio::test]
async fn links_and_lanes_ride_in_websockets_where_nothing_else_passes() {
    let (mut site, app) = (Site::start(Upgrades::WebSocket).await, service::http().await);
    let tunnel = site.tunnel(&["http", &app.port(), "--subdomain", "shop"]).await;
    carries_all(&site, &tunnel).await;
    assert_eq!(site.count("/api/v1/link retunnel 426"), 1);

    // The next link does not try the upgrade.
    site.server = site.server.restart().await;
    eventually("the client is back", || async {
        (site.get("shop.tunnel.test", "/status/204").await.status == 204).then_some(())
    })
    .await;
    tunnel.process.kill().await;
    eventually("nginx has seen both links and a lane", || async {
        (site.count("/api/v1/link websocket 101") >= 3).then_some(())
    })
    .await;
    assert_eq!(site.count("/api/v1/link retunnel 426"), 1);
}

#[tokio::test]
async fn tcp_and_half_closes_pass_in_websockets() {
    let (site, count) = (Site::start(Upgrades::WebSocket).await, service::tcp_count().await);
    let tunnel = site.tunnel(&["tcp", &count.port()]).await;
    for size in [0, 1, 70_000, 30_000_000] {
        let sent = pattern(size);
        let mut visitor = TcpStream::connect(("127.0.0.1", tunnel.port())).await.unwrap();
        visitor.write_all(&sent).await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut told = String::new();
        timeout(TIMEOUT, visitor.read_to_string(&mut told)).await.expect("an answer in time").unwrap();
        assert_eq!(told, format!("{size} {}", sha256(&sent)));
    }
}
