//! Publishes a local TCP service at a public port.
//!
//! Start a server with a range of public ports first: `retunnel server --tcp-ports 20000-20099`. Then run
//!
//! ```sh
//! cargo run -p retunnel-client --example tcp -- localhost:6400 22
//! ```
//!
//! and connect to the printed port, for example with `ssh -p PORT localhost`.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::env;

use retunnel_client::{Client, Error, ServerEndpoint, Tunnel, TunnelSpec};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "localhost:6400".into());
    let port = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(22);
    let (client, tunnel) = publish(server.parse()?, port).await?;
    println!("{} -> {}", tunnel.url(), tunnel.info().target);
    println!("closed: {}", tunnel.closed().await);
    client.close().await;
    Ok(())
}

/// Connects to a server and gives a local port a public TCP port. [`TunnelSpec::remote_port`] would ask for a certain one.
pub(crate) async fn publish(server: ServerEndpoint, port: u16) -> Result<(Client, Tunnel), Error> {
    let client = Client::builder().server(server).connect().await?;
    let tunnel = client.open(TunnelSpec::tcp(port).name("shell")).await?;
    Ok((client, tunnel))
}
