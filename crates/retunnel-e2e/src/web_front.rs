//! A web server in front of another one, as at hosting services: it reads requests and sends them on as its own, without
//! what concerns one connection only. An upgrade is such a thing.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use hyper::{
    Request, Response, StatusCode, body::Incoming, client::conn::http1 as client, header,
    server::conn::http1 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What the front changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// It passes WebSockets on.
    pub websockets: bool,
    /// How late its clock is; its answers have a `Date`.
    pub behind: Duration,
}

/// A web server that passes everything on to one target.
#[derive(Debug)]
pub struct WebFront {
    /// Where it listens.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

/// Connections under way; they end with the front.
type Tasks = Arc<Mutex<JoinSet<()>>>;

impl WebFront {
    /// Starts it.
    pub async fn start(habits: Habits, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let tasks = Tasks::default();
            while let Ok((socket, _)) = listener.accept().await {
                let own = Arc::clone(&tasks);
                let service = service_fn(move |request| pass(request, habits, target, Arc::clone(&own)));
                let connection = server::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades();
                tasks.lock().unwrap().spawn(async move { drop(connection.await) });
            }
        });
        Self { address, _task: task }
    }
}

async fn pass(
    mut request: Request<Incoming>,
    habits: Habits,
    target: SocketAddr,
    tasks: Tasks,
) -> Result<Response<Incoming>, Infallible> {
    let is_websocket = request.headers().get(header::UPGRADE).is_some_and(|to| to == "websocket");
    if !(is_websocket && habits.websockets) {
        request.headers_mut().remove(header::UPGRADE);
        request.headers_mut().remove(header::CONNECTION);
    }
    let visitor = hyper::upgrade::on(&mut request);
    let socket = TcpStream::connect(target).await.unwrap();
    let (mut sender, connection) = client::handshake(TokioIo::new(socket)).await.unwrap();
    tasks.lock().unwrap().spawn(async move { drop(connection.with_upgrades().await) });
    let mut response = sender.send_request(request).await.unwrap();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = hyper::upgrade::on(&mut response);
        tasks.lock().unwrap().spawn(async move {
            let (Ok(visitor), Ok(upstream)) = (visitor.await, upstream.await) else { return };
            let _ = copy_bidirectional(&mut TokioIo::new(visitor), &mut TokioIo::new(upstream)).await;
        });
    } else {
        let date = httpdate::fmt_http_date(SystemTime::now() - habits.behind);
        response.headers_mut().insert(header::DATE, date.parse().unwrap());
    }
    Ok(response)
}
