//! `examples/tcp.rs` against a real server.

#[path = "../examples/tcp.rs"]
#[expect(dead_code, reason = "the test calls what main calls")]
mod example;
mod support;

use std::net::Ipv4Addr;

use support::{Local, TIMEOUT, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

#[tokio::test]
async fn bytes_pass_in_both_directions_and_each_end_is_passed_on() {
    let server = TestServer::start().await;
    let local = Local::echo().await;
    let (client, tunnel) = example::publish(server.endpoint(), local.port).await.unwrap();
    assert_eq!(tunnel.name(), "shell");
    let port = tunnel.info().remote_port.expect("TCP tunnels have a public port");

    let mut visitor = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    visitor.write_all(b"there and back").await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut echoed = String::new();
    timeout(TIMEOUT, visitor.read_to_string(&mut echoed)).await.expect("the echo in time").unwrap();
    assert_eq!(echoed, "there and back");

    client.close().await;
    server.stop().await;
}
