//! Last words: what one side has sent is delivered before the end that follows it, whatever that end is.
//!
//! Many servers refuse like this: they write why, and close while bytes of the client wait unread. The system makes that
//! close a reset. Directly the client reads the message nevertheless, every time.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::{net::SocketAddr, sync::Arc};

use retunnel_e2e::{
    TIMEOUT,
    authority::Authority,
    process::{Server, Tunnel, User, port_range},
    service::pattern,
    sha256,
    visitor::{Answer, Visitor},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

const MESSAGE: &[u8] = b"-ERR max number of clients reached\r\n";
/// Tries of one kind. Faults of this kind depend on timing.
const TRIES: usize = 60;

/// How the client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Native,
    Tls,
    Dialect3,
}

/// A TCP tunnel to a service at `port`.
struct Public {
    _server: Server,
    _user: User,
    _authority: Option<Authority>,
    tunnel: Tunnel,
}

impl Public {
    async fn open(wire: Wire, port: u16) -> Self {
        let (user, range, port) = (User::default(), port_range(), port.to_string());
        if wire == Wire::Tls {
            let authority = Authority::default();
            let (cert, key) = authority.issue_files(&["localhost", "127.0.0.1", "tunnel.test", "*.tunnel.test"]);
            let server = Server::start(&["--tls-cert", &cert, "--tls-key", &key, "--tcp-ports", &range]).await;
            let url = format!("https://localhost:{}", server.address.port());
            let tunnel = user.tunnel_at(&url, &["tcp", &port, "--ca-file", &authority.file()]).await;
            return Self { _server: server, _user: user, _authority: Some(authority), tunnel };
        }
        let server = Server::start(&["--tcp-ports", &range]).await;
        let dialect: &[&str] = if wire == Wire::Dialect3 { &["--dialect", "3"] } else { &[] };
        let tunnel = user.tunnel(server.address, &[&["tcp", &port], dialect].concat()).await;
        Self { _server: server, _user: user, _authority: None, tunnel }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.tunnel.port()))
    }
}

/// A service that handles each connection with `handle`.
struct Refusing {
    port: u16,
    _task: JoinSet<()>,
}

impl Refusing {
    async fn start<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(handle(socket));
            }
        });
        Self { port, _task: task }
    }
}

/// Connects, sends, and reads up to the end, whatever that is.
async fn visit(address: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // The service may have closed before all is sent.
    let _ = timeout(TIMEOUT, socket.write_all(payload)).await.expect("the service ends the connection");
    let mut got = Vec::new();
    let _ = timeout(TIMEOUT, socket.read_to_end(&mut got)).await.expect("an end in time");
    got
}

/// The service's message reaches visitors that have sent `payload`, of which it reads at most `reads`.
async fn the_message_arrives(wire: Wire, reads: usize, payload: &[u8]) {
    let service = Refusing::start(move |mut socket| async move {
        let mut some = vec![0; reads];
        if reads > 0 {
            let _ = socket.read(&mut some).await;
        }
        let _ = socket.write_all(MESSAGE).await;
    })
    .await;
    let public = Public::open(wire, service.port).await;
    // One after the other, and all together: an idle link, and a busy one.
    for n in 0..TRIES {
        assert_eq!(visit(public.address(), payload).await, MESSAGE, "{wire:?}, try {n}");
    }
    let mut visits = JoinSet::new();
    for _ in 0..TRIES {
        let (address, payload) = (public.address(), payload.to_vec());
        visits.spawn(async move { visit(address, &payload).await });
    }
    let arrived = visits.join_all().await.into_iter().filter(|got| got == MESSAGE).count();
    assert_eq!(arrived, TRIES, "{wire:?}, together");
}

#[tokio::test]
async fn a_service_that_refuses_without_reading_is_heard() {
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        the_message_arrives(wire, 0, b"PING\r\n1234").await;
    }
}

#[tokio::test]
async fn a_service_that_resets_after_its_message_is_heard() {
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        the_message_arrives(wire, 1, b"PING\r\n1234").await;
    }
}

#[tokio::test]
async fn a_service_that_refuses_in_the_midst_of_an_upload_is_heard() {
    let upload = pattern(2 << 20);
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        the_message_arrives(wire, 64 * 1024, &upload).await;
    }
}

#[tokio::test]
async fn a_visitor_that_leaves_without_reading_is_heard() {
    const WORDS: &[u8] = b"QUIT: I have seen enough";
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        let (heard, mut words) = mpsc::unbounded_channel();
        let service = Refusing::start(move |mut socket| {
            let heard = heard.clone();
            async move {
                let _ = socket.write_all(b"220 welcome\r\n").await;
                let mut got = Vec::new();
                let _ = socket.read_to_end(&mut got).await;
                let _ = heard.send(got);
            }
        })
        .await;
        let public = Public::open(wire, service.port).await;
        for n in 0..TRIES {
            let mut socket = TcpStream::connect(public.address()).await.unwrap();
            // The greeting waits unread, so that the end is a reset.
            socket.peek(&mut [0]).await.unwrap();
            socket.write_all(WORDS).await.unwrap();
            drop(socket);
            let got = timeout(TIMEOUT, words.recv()).await.expect("an end in time").unwrap();
            assert_eq!(got, WORDS, "{wire:?}, try {n}");
        }
    }
}

/// More than the link carries: the streams are on lanes.
const BULK: usize = 4 << 20;

#[tokio::test]
async fn a_long_answer_before_a_reset_arrives_whole() {
    let answer = Arc::new(pattern(BULK));
    let expected = sha256(&answer);
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        let answer = Arc::clone(&answer);
        let service = Refusing::start(move |mut socket| {
            let answer = Arc::clone(&answer);
            async move {
                let _ = socket.read_exact(&mut vec![0; BULK]).await;
                let _ = socket.write_all(&answer).await;
                // The visitor has taken all but the last bytes, which the system still holds; ten bytes wait unread.
                let _ = socket.read_exact(&mut [0]).await;
            }
        })
        .await;
        let public = Public::open(wire, service.port).await;
        for n in 0..5 {
            let mut visitor = Visitor::connect(public.address()).await;
            visitor.send(pattern(BULK)).await;
            let mut got = visitor.take(BULK - 100_000).await;
            // The service closes after the first of these, with nine unread.
            visitor.send("0123456789").await;
            let _ = timeout(TIMEOUT, visitor.socket.read_to_end(&mut visitor.received)).await.expect("an end in time");
            got.append(&mut visitor.received);
            assert_eq!((got.len(), sha256(&got)), (BULK, expected.clone()), "{wire:?}, try {n}");
        }
    }
}

#[tokio::test]
async fn a_long_upload_before_a_reset_arrives_whole() {
    for wire in [Wire::Native, Wire::Tls, Wire::Dialect3] {
        let (heard, mut uploads) = mpsc::unbounded_channel();
        let service = Refusing::start(move |mut socket| {
            let heard = heard.clone();
            async move {
                let _ = socket.write_all(b"220 welcome\r\n").await;
                let mut got = Vec::new();
                let _ = socket.read_to_end(&mut got).await;
                let _ = heard.send(got);
            }
        })
        .await;
        let public = Public::open(wire, service.port).await;
        for n in 0..5 {
            let mut socket = TcpStream::connect(public.address()).await.unwrap();
            socket.peek(&mut [0]).await.unwrap();
            socket.write_all(&pattern(BULK)).await.unwrap();
            // What waits in the system at the reset is the visitor's own loss: wait until the server has it.
            retunnel_link::last_bytes_sent(&socket).await;
            drop(socket);
            let got = timeout(TIMEOUT, uploads.recv()).await.expect("an end in time").unwrap();
            assert_eq!((got.len(), sha256(&got)), (BULK, sha256(&pattern(BULK))), "{wire:?}, try {n}");
        }
    }
}

#[tokio::test]
async fn a_reset_is_still_a_reset_after_the_last_words() {
    let service = Refusing::start(|mut socket| async move {
        let _ = socket.read_u8().await;
        let _ = socket.write_all(MESSAGE).await;
    })
    .await;
    let public = Public::open(Wire::Native, service.port).await;
    let mut visitor = Visitor::connect(public.address()).await;
    visitor.send("PING\r\n1234").await;
    assert_eq!(visitor.take(MESSAGE.len()).await, MESSAGE);
    let end = visitor.socket.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Sends a request's head and as much of its body as it can, then reads the answer.
async fn upload(address: SocketAddr, head: String, body: Vec<u8>) -> Answer {
    let visitor = Visitor::connect(address).await;
    let (reader, mut writer) = visitor.socket.into_split();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let _ = writer.write_all(head.as_bytes()).await;
        let _ = writer.write_all(&body).await;
        writer
    });
    let mut visitor = Visitor::over(tokio::io::join(reader, tokio::io::sink()));
    visitor.answer(false).await
}

#[tokio::test]
async fn a_refusal_during_an_upload_reaches_the_visitor() {
    let close = "HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large";
    let until_close = "HTTP/1.0 401 Unauthorized\r\n\r\ntoo large";
    for (dialect, sizes) in [("native", &[2_000_000, 30 << 20][..]), ("3", &[2_000_000]), ("2", &[2_000_000])] {
        for refusal in [close, until_close] {
            let service = Refusing::start(move |socket| async move {
                let mut visitor = Visitor::over(socket);
                let _ = visitor.head().await;
                let _ = visitor.socket.write_all(refusal.as_bytes()).await;
            })
            .await;
            let (server, user, port) = (Server::start(&[]).await, User::default(), service.port.to_string());
            let tunnel = user.tunnel(server.address, &["http", &port, "--dialect", dialect]).await;
            let host = server.host(tunnel.name());
            for size in sizes {
                let head = format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n");
                for n in 0..20 {
                    let answer = upload(server.address, head.clone(), vec![b'x'; *size]).await;
                    let status = refusal[9..12].parse::<u16>().unwrap();
                    assert_eq!(
                        (answer.status, &answer.text()[..]),
                        (status, "too large"),
                        "{dialect}, {size}, try {n}"
                    );
                    assert!(answer.is_complete, "{dialect}, {size}, try {n}");
                }
            }
        }
    }
}
