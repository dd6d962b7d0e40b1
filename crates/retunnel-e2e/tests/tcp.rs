//! TCP tunnels: bytes, half-close, many connections, ports and their owners.

use retunnel_e2e::{
    eventually,
    process::{Server, User, port_range},
    service::{self, pattern},
    sha256,
    visitor::Visitor,
};
use tokio::{io::AsyncWriteExt, task::JoinSet};

fn at(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], port))
}

#[tokio::test]
async fn bytes_and_half_closes_pass_both_ways() {
    let (server, user) = (Server::start(&["--tcp-ports", &port_range()]).await, User::default());
    let echo = service::tcp_echo().await;
    let tunnel = user.tunnel(server.address, &["tcp", &echo.port()]).await;
    assert_eq!(tunnel.info["url"], format!("tcp://tunnel.test:{}", tunnel.port()));
    let body = pattern(5_000_000);
    let visitor = Visitor::connect(at(tunnel.port())).await;
    let (mut reader, mut writer) = visitor.socket.into_split();
    let sent = body.clone();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut back = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut back).await.unwrap();
    assert_eq!(sha256(&back), sha256(&body));

    // The service answers only after the visitor's half-close.
    let count = service::tcp_count().await;
    let counted = user.tunnel(server.address, &["tcp", &count.port()]).await;
    let mut visitor = Visitor::connect(at(counted.port())).await;
    visitor.send(&body).await;
    visitor.socket.shutdown().await.unwrap();
    assert_eq!(String::from_utf8(visitor.to_end().await).unwrap(), format!("{} {}", body.len(), sha256(&body)));
}

#[tokio::test]
async fn a_thousand_connections_at_once() {
    let (server, user) = (Server::start(&["--tcp-ports", &port_range()]).await, User::default());
    let echo = service::tcp_echo().await;
    let tunnel = user.tunnel(server.address, &["tcp", &echo.port()]).await;
    let before = server.process.descriptors();
    let mut visitors = Vec::new();
    for _ in 0..1000 {
        visitors.push(Visitor::connect(at(tunnel.port())).await);
    }
    let mut done = JoinSet::new();
    for (n, mut visitor) in visitors.into_iter().enumerate() {
        done.spawn(async move {
            let text = format!("visitor {n}");
            visitor.send(&text).await;
            visitor.take(text.len()).await == text.as_bytes()
        });
    }
    assert!(done.join_all().await.into_iter().all(|right| right));
    eventually("the descriptors are back", || async { (server.process.descriptors() <= before + 2).then_some(()) })
        .await;
}

#[tokio::test]
async fn ports_belong_to_their_account() {
    let range = port_range();
    let (server, owner, other) = (Server::start(&["--tcp-ports", &range]).await, User::default(), User::default());
    let echo = service::tcp_echo().await;
    let mut first = owner.tunnel(server.address, &["tcp", &echo.port()]).await;
    let port = first.port();
    let wanted = port.to_string();
    let address = server.address.to_string();
    let ask = |port: &str| ["tcp", "1", "--server", &address, "--remote-port", port].map(str::to_owned);
    let refused = ask(&wanted);
    let (code, _, stderr) = other.run(&refused.each_ref().map(String::as_str)).await;
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("port_unavailable"), "{stderr}");
    let outside = ask("22");
    let (code, _, stderr) = other.run(&outside.each_ref().map(String::as_str)).await;
    assert_eq!(code, 69);
    assert!(stderr.contains("port_out_of_range"), "{stderr}");
    // A clean goodbye frees the port at once, for every account.
    first.process.signal("INT").await;
    assert_eq!(first.process.exit().await, Some(0));
    let second = other.tunnel(server.address, &["tcp", &echo.port(), "--remote-port", &wanted]).await;
    assert_eq!(second.port(), port);
    let mut visitor = Visitor::connect(at(port)).await;
    visitor.send("hi").await;
    assert_eq!(visitor.take(2).await, b"hi");
}

#[tokio::test]
async fn a_killed_client_is_a_reset_and_never_a_clean_end() {
    let (server, user) = (Server::start(&["--tcp-ports", &port_range()]).await, User::default());
    let echo = service::tcp_echo().await;
    let tunnel = user.tunnel(server.address, &["tcp", &echo.port()]).await;
    let mut visitor = Visitor::connect(at(tunnel.port())).await;
    visitor.send("hi").await;
    assert_eq!(visitor.take(2).await, b"hi");
    tunnel.process.kill().await;
    let mut byte = [0; 1];
    let end = tokio::io::AsyncReadExt::read(&mut visitor.socket, &mut byte).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
