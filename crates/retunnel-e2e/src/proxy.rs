//! A TCP proxy between client and server whose wire can be cut or go silent.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// State of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Good,
    /// Sockets stay open, no bytes pass.
    BlackHole,
    /// The same, but what the server sends still arrives.
    ToClientOnly,
    /// The same, but what the client sends still arrives.
    ToServerOnly,
}

/// Forwards connections while its wire is good.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    wire: watch::Sender<(Wire, u64)>,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy in front of `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = watch::Sender::new((Wire::Good, 0));
        let state = Arc::new(wire.subscribe());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let mut state = state.as_ref().clone();
                connections.spawn(async move { forward(socket, target, &mut state).await });
            }
        });
        Self { address, wire, _task: task }
    }

    /// From now on no bytes pass on the existing connections, which stay open. New ones work.
    pub fn black_hole(&self) {
        self.wire.send_modify(|(wire, generation)| {
            *wire = Wire::BlackHole;
            *generation += 1;
        });
    }

    /// From now on only one direction passes on the existing connections.
    pub fn one_way(&self, to_client: bool) {
        self.wire.send_modify(|(wire, generation)| {
            *wire = if to_client { Wire::ToClientOnly } else { Wire::ToServerOnly };
            *generation += 1;
        });
    }

    /// Closes every existing connection. New ones work.
    pub fn cut(&self) {
        self.wire.send_modify(|(wire, generation)| {
            *wire = Wire::Good;
            *generation += 1;
        });
    }
}

async fn forward(mut socket: TcpStream, target: SocketAddr, state: &mut watch::Receiver<(Wire, u64)>) {
    let Ok(mut upstream) = TcpStream::connect(target).await else { return };
    let born = state.borrow_and_update().1;
    let _ = (socket.set_nodelay(true), upstream.set_nodelay(true));
    tokio::select! {
        _ = copy_bidirectional(&mut socket, &mut upstream) => return,
        _ = state.wait_for(|(_, generation)| *generation != born) => {}
    }
    // A silent proxy keeps its sockets open until the test ends.
    let wire = state.borrow().0;
    let _ = match wire {
        Wire::Good => return,
        Wire::BlackHole => Ok(0),
        Wire::ToClientOnly => tokio::io::copy(&mut upstream, &mut socket).await,
        Wire::ToServerOnly => tokio::io::copy(&mut socket, &mut upstream).await,
    };
    std::future::pending::<()>().await;
}
