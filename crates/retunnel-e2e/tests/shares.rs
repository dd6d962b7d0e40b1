//! Memory that accounts share: who uses it up pays, and nobody else.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::net::SocketAddr;

use retunnel_e2e::{
    TIMEOUT,
    process::{Server, User},
    service,
    visitor::{Visitor, get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Bytes that a stalled visitor asks for: more than its connection holds.
const HOARDED: usize = 8_000_000;

/// A visitor that asks for much and reads nothing.
async fn stalled(server: SocketAddr, host: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // What waits for it waits in the server and not in the system.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(server).await.unwrap();
    let request = format!("GET /bytes/{HOARDED} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn stalled_visitors_of_one_account_do_not_cut_those_of_another() {
    let server = Server::start_with(4096, "limits: {max_buffered: 8000000}").await;
    let (service, hoarder, other) = (service::http().await, User::default(), User::default());
    let hoard = hoarder.tunnel(server.address, &["http", &service.port()]).await;
    let tunnel = other.tunnel(server.address, &["http", &service.port()]).await;
    let (hoard_host, host) = (server.host(hoard.name()), server.host(tunnel.name()));
    // More than there are lanes, so that the rest waits in the memory of the links.
    let mut visitors = Vec::new();
    for _ in 0..160 {
        visitors.push(stalled(server.address, &hoard_host).await);
    }
    for n in 0..40 {
        let answer = get(server.address, &host, "/bytes/3000000").await;
        assert!(answer.is_complete && answer.body.len() == 3_000_000, "download {n}: {} bytes", answer.body.len());
    }
    // The hoarder's account has had to give way.
    let mut was_cut = false;
    for mut visitor in visitors.into_iter().rev() {
        let mut got = Vec::new();
        let _ = timeout(TIMEOUT, visitor.read_to_end(&mut got)).await.expect("an end in time");
        was_cut |= got.len() < HOARDED;
        if was_cut {
            break;
        }
    }
    assert!(was_cut, "the limit was reached");
}

#[tokio::test]
async fn announced_bodies_take_no_room() {
    // There is room for one of the largest bodies that 2.x clients take.
    let server = Server::start_with(4096, "limits: {max_buffered: 1000000}").await;
    let (service, user) = (service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port(), "--dialect", "2"]).await;
    let host = server.host(tunnel.name());
    let mut silent = Vec::new();
    for _ in 0..66 {
        let mut visitor = Visitor::connect(server.address).await;
        visitor.send(format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4000000\r\n\r\n")).await;
        silent.push(visitor);
    }
    for _ in 0..5 {
        let answer = post(server.address, &host, "/sink", &vec![b'x'; 1_000_000]).await;
        assert_eq!((answer.status, answer.text()), (200, "1000000".to_owned()));
    }
}
