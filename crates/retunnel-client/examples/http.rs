//! Publishes a local HTTP service.
//!
//! Start a server and a local service first, for example `retunnel server` and `python3 -m http.server 8080`. Then run
//!
//! ```sh
//! cargo run -p retunnel-client --example http -- localhost:6400 8080
//! ```

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::env;

use retunnel_client::{Client, Error, ServerEndpoint, Tunnel};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "localhost:6400".into());
    let port = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let (client, tunnel) = publish(server.parse()?, port).await?;
    println!("{} -> {}", tunnel.url(), tunnel.info().target);
    // The tunnel survives reconnects. It ends if the server closes it for good.
    println!("closed: {}", tunnel.closed().await);
    client.close().await;
    Ok(())
}

/// Connects to a server and gives a local port a public address. Without a token the client registers an account.
pub(crate) async fn publish(server: ServerEndpoint, port: u16) -> Result<(Client, Tunnel), Error> {
    let client = Client::builder().server(server).connect().await?;
    let tunnel = client.http(port).await?;
    Ok((client, tunnel))
}
