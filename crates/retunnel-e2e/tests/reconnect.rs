//! Everything that can be lost comes back: links, servers, clients, names.

use std::time::Duration;

use retunnel_e2e::{
    eventually,
    process::{Running, Server, User},
    proxy::Proxy,
    service,
    visitor::{Visitor, get},
};
use tokio::time::Instant;

async fn served(address: std::net::SocketAddr, host: &str) -> Option<()> {
    (get(address, host, "/status/204").await.status == 204).then_some(())
}

#[tokio::test]
async fn a_restarted_server_gives_everybody_their_names_back() {
    let (server, service) = (Server::start(&[]).await, service::http().await);
    let (one, two) = (User::default(), User::default());
    let first = one.tunnel(server.address, &["http", &service.port(), "--subdomain", "first"]).await;
    let second = two.tunnel(server.address, &["http", &service.port()]).await;
    let (first_host, second_host) = (server.host(first.name()), server.host(second.name()));
    let stopped = server.stop().await;
    let server = stopped.start().await;
    let started = Instant::now();
    for host in [&first_host, &second_host] {
        eventually("the tunnel is back", || served(server.address, host)).await;
    }
    println!("both tunnels answered {:?} after the server listened", started.elapsed());
    // While the owner is away, no one else gets the name, even across the restart.
    first.process.kill().await;
    let address = server.address.to_string();
    let (code, _, stderr) = two.run(&["http", "1", "--server", &address, "--subdomain", "first"]).await;
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("name_unavailable"), "{stderr}");
}

#[tokio::test]
async fn the_new_address_is_printed_after_the_server_changed_its_domain() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let (port, address) = (service.port(), server.address);
    let at = address.to_string();
    let args = ["http", &port, "--server", &at, "--subdomain", "shop"];
    let mut client = Running::start(user.command(&args)).await;
    assert_eq!(client.line().await, format!("http://shop.tunnel.test:{}", address.port()));
    // Nothing new is printed when the address stays.
    let server = server.restart().await;
    eventually("the tunnel is back", || served(address, "shop.tunnel.test")).await;
    let _server = server.restart_for("other.test").await;
    assert_eq!(client.line().await, format!("http://shop.other.test:{}", address.port()));
    assert_eq!(served(address, "shop.other.test").await, Some(()));
}

#[tokio::test]
async fn a_killed_client_comes_back_to_its_name_and_visitors_wait_for_it() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    let host = server.host("shop");
    assert_eq!(get(server.address, &host, "/status/204").await.status, 204);
    tunnel.process.kill().await;
    let mut visitor = Visitor::connect(server.address).await;
    visitor.send(format!("GET /status/204 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let _again = user.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    let answer = visitor.answer(false).await;
    assert_eq!(answer.status, 204, "held until the client was back: {}", answer.text());
}

#[tokio::test]
async fn the_newest_session_of_an_account_wins() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let mut old = user.tunnel(server.address, &["http", "1", "--subdomain", "shop"]).await;
    let _new = user.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    let began = Instant::now();
    assert_eq!(get(server.address, &server.host("shop"), "/status/204").await.status, 204);
    assert_eq!(old.process.exit().await, Some(79), "the older client ends with its own exit code");
    assert!(
        began.elapsed() > Duration::from_secs(8),
        "a service manager that restarts it at once would take the name back"
    );
}

#[tokio::test]
async fn a_name_of_somebody_else_is_refused() {
    let (server, service) = (Server::start(&[]).await, service::http().await);
    let (owner, other) = (User::default(), User::default());
    let _tunnel = owner.tunnel(server.address, &["http", &service.port(), "--subdomain", "shop"]).await;
    let address = server.address.to_string();
    for (name, code) in [("shop", "name_unavailable"), ("www", "name_reserved"), ("xn--abc", "name_invalid")] {
        let (exit, stdout, stderr) = other.run(&["http", "1", "--server", &address, "--subdomain", name]).await;
        assert_eq!((exit, stdout.as_str()), (69, ""), "{stderr}");
        assert!(stderr.contains(code), "{stderr}");
    }
    assert_eq!(get(server.address, &server.host("shop"), "/status/204").await.status, 204);
}

#[tokio::test]
async fn a_cut_link_is_back_in_a_moment() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let proxy = Proxy::start(server.address).await;
    let tunnel = user.tunnel(proxy.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    for _ in 0..20 {
        proxy.cut();
        let started = Instant::now();
        eventually("the tunnel is back", || served(server.address, &host)).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    let (client, of_server) = (tunnel.process.descriptors(), server.process.descriptors());
    for _ in 0..30 {
        proxy.cut();
        eventually("the tunnel is back", || served(server.address, &host)).await;
    }
    assert!(tunnel.process.descriptors() <= client + 5 && server.process.descriptors() <= of_server + 8);
}

#[tokio::test]
async fn a_silent_link_is_noticed_by_both_ends() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let proxy = Proxy::start(server.address).await;
    let tunnel = user.tunnel(proxy.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    assert_eq!(get(server.address, &host, "/status/204").await.status, 204);
    proxy.black_hole();
    let started = Instant::now();
    // A visitor that arrives in the meantime waits and is served by the next session.
    let answer = get(server.address, &host, "/status/204").await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    println!("served {:?} after the wire went silent", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_stopped_client_serves_again_when_it_goes_on() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    tunnel.process.signal("STOP").await;
    // The server gives up the session; the name is held, and visitors get 503 eventually.
    let answer = get(server.address, &host, "/status/204").await;
    assert_eq!((answer.status, answer.header("x-retunnel-error")), (503, Some("tunnel_offline")));
    assert!(answer.header("retry-after").is_some());
    tunnel.process.signal("CONT").await;
    eventually("the tunnel is back", || served(server.address, &host)).await;
}

#[tokio::test]
async fn a_stopping_server_lets_transfers_finish_and_then_ends() {
    let (mut server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let mut visitor = Visitor::connect(server.address).await;
    visitor.send(format!("GET /events/20 HTTP/1.1\r\nHost: {}\r\n\r\n", server.host(tunnel.name()))).await;
    visitor.head().await.unwrap();
    server.process.signal("TERM").await;
    let body = visitor.to_end().await;
    assert!(body.ends_with(b"0\r\n\r\n"), "the answer is complete: {}", String::from_utf8_lossy(&body));
    assert_eq!(server.process.exit().await, Some(0));

    let mut idle = Server::start(&[]).await;
    let started = Instant::now();
    idle.process.signal("TERM").await;
    assert_eq!(idle.process.exit().await, Some(0));
    assert!(started.elapsed() < Duration::from_secs(5));

    // A second signal ends at once.
    let mut busy = Server::start(&["--grace-period", "600"]).await;
    let tunnel = user.tunnel(busy.address, &["http", &service.port()]).await;
    let mut visitor = Visitor::connect(busy.address).await;
    visitor.send(format!("GET /events/1000000 HTTP/1.1\r\nHost: {}\r\n\r\n", busy.host(tunnel.name()))).await;
    visitor.head().await.unwrap();
    busy.process.signal("TERM").await;
    eventually("the door is closed", || async {
        tokio::net::TcpStream::connect(busy.address).await.is_err().then_some(())
    })
    .await;
    busy.process.signal("TERM").await;
    assert_eq!(busy.process.exit().await, Some(0));
}
