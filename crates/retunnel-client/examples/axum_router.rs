//! Publishes an axum router that has no local port: visitors' connections are accepted within this program.
//!
//! Start a server first, for example `retunnel server`. Then run
//!
//! ```sh
//! cargo run -p retunnel-client --example axum_router -- localhost:6400
//! ```

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::{env, future::pending, io};

use axum::{Router, extract::Path, routing::get};
use retunnel_client::{Client, Error, LocalListener, LocalStream, LocalTarget, ServerEndpoint, Tunnel};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = env::args().nth(1).unwrap_or_else(|| "localhost:6400".into());
    let router = Router::new()
        .route("/", get(async || "no local port\n"))
        .route("/hello/{name}", get(async |Path(name): Path<String>| format!("hello, {name}\n")));
    let (client, tunnel, listener) = publish(server.parse()?).await?;
    println!("{}", tunnel.url());
    tokio::select! {
        served = axum::serve(Visitors(listener), router) => served?,
        closed = tunnel.closed() => println!("closed: {closed}"),
    }
    client.close().await;
    Ok(())
}

/// Connects to a server and opens a tunnel whose visitors are accepted by the returned listener.
pub(crate) async fn publish(server: ServerEndpoint) -> Result<(Client, Tunnel, LocalListener), Error> {
    let client = Client::builder().server(server).connect().await?;
    let (target, listener) = LocalTarget::listener("router");
    let tunnel = client.http(target).await?;
    Ok((client, tunnel, listener))
}

/// The listener in the form that axum expects.
#[derive(Debug)]
pub(crate) struct Visitors(pub(crate) LocalListener);

impl axum::serve::Listener for Visitors {
    type Io = LocalStream;
    type Addr = ();

    async fn accept(&mut self) -> (LocalStream, ()) {
        match self.0.accept().await {
            Some(connection) => (connection, ()),
            // The tunnel is closed and no more visitors arrive.
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
