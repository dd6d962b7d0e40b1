//! Prints what happens to a client: connecting, tunnels, requests of visitors, lost connections.
//!
//! Start a server and a local service first, for example `retunnel server` and `python3 -m http.server 8080`. Then run
//!
//! ```sh
//! cargo run -p retunnel-client --example events -- localhost:6400 8080
//! ```
//!
//! Open the public address in a browser, then stop and restart the server.

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use std::env;

use retunnel_client::{Client, Error, Event, Events};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "localhost:6400".into());
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(8080);
    // `start` connects in the background, so that the first events can be received too.
    let client = Client::builder().server(server.parse()?).start();
    let events = client.events();
    let serve = async {
        let tunnel = client.http(port).await?;
        println!("closed: {}", tunnel.closed().await);
        Ok(())
    };
    let print = follow(events, |line| println!("{line}"));
    tokio::select! {
        result = serve => result,
        () = print => Ok(()),
    }
}

/// Describes every event until the client ends.
pub(crate) async fn follow(mut events: Events, mut print: impl FnMut(String)) {
    while let Some(event) = events.next().await {
        print(match event {
            Event::Connecting { attempt, .. } => format!("connecting, attempt {attempt}"),
            Event::Registered { .. } => "registered a new account".into(),
            Event::Connected { session, .. } => format!("connected to {}", session.server),
            Event::Disconnected { cause, retry_in, .. } => {
                format!("disconnected: {cause}; next attempt in {retry_in:?}")
            }
            Event::TunnelOpened(info) => format!("tunnel {} is {}", info.name, info.url),
            Event::TunnelRestored(info) => format!("tunnel {} is {} again", info.name, info.url),
            Event::Request { tunnel, request, .. } => {
                format!("{tunnel}: {} {} -> {}", request.method, request.path, request.status)
            }
            Event::LocalUnreachable { tunnel, reason, .. } => format!("{tunnel}: {reason}"),
            Event::Ended { cause, .. } => {
                print(format!("ended: {cause}"));
                return;
            }
            // More kinds of events may be added.
            other => format!("{other:?}"),
        });
    }
}
