//! Records the program on a terminal as an asciicast (version 2) for the documentation: a tunnel, requests, a service that is
//! down for a moment, a server that restarts. Run by `scripts/record-terminal`, which makes the picture from it.

#![expect(clippy::unwrap_used, reason = "a recording stops at the first surprise")]

use std::time::Duration;

use retunnel_e2e::{
    process::{Server, User},
    service,
    terminal::Terminal,
    visitor,
};
use serde_json::json;
use tokio::time::sleep;

const SIZE: (u16, u16) = (110, 30);
/// How long a still screen is shown.
const LOOK: Duration = Duration::from_millis(1500);

/// Waits, so that the recording shows the screen.
async fn watch(terminal: &mut Terminal, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        terminal.until("a picture", |_| true).await;
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let file = std::env::args().nth(1).expect("the file to write");
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let (port, address) = (app.port(), server.address.to_string());
    let host = server.host("shop");
    let args = ["http", &port, "--server", &address, "--subdomain", "shop"];
    let mut terminal = Terminal::start(&user, &args, &[], SIZE);
    terminal.sees("online").await;
    watch(&mut terminal, LOOK).await;
    for (path, pause) in [
        ("/", 300),
        ("/bytes/48213", 250),
        ("/bytes/220410", 400),
        ("/status/304", 250),
        ("/api/orders", 500),
        ("/status/404", 400),
        ("/bytes/1048576", 600),
        ("/api/orders?page=2", 300),
    ] {
        visitor::get(server.address, &host, path).await;
        watch(&mut terminal, Duration::from_millis(pause)).await;
    }
    let local = app.address;
    drop(app);
    visitor::get(server.address, &host, "/api/cart").await;
    terminal.sees("does not answer").await;
    watch(&mut terminal, LOOK).await;
    let _app = service::http_on(local).await;
    visitor::get(server.address, &host, "/api/cart").await;
    terminal.sees("answers again").await;
    watch(&mut terminal, LOOK).await;
    terminal.press("/orders").await;
    watch(&mut terminal, LOOK).await;
    terminal.press("\x1b").await;
    let stopped = server.stop().await;
    terminal.sees("retrying in").await;
    watch(&mut terminal, LOOK).await;
    let _server = stopped.start().await;
    terminal.sees("online").await;
    terminal.press("r").await;
    watch(&mut terminal, LOOK).await;
    terminal.press("r").await;
    watch(&mut terminal, LOOK).await;

    let mut cast =
        json!({ "version": 2, "width": SIZE.0, "height": SIZE.1, "title": "retunnel http" }).to_string() + "\n";
    // A part may end inside a character.
    let mut pending = Vec::new();
    for (at, bytes) in &terminal.written {
        pending.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&pending) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let text = String::from_utf8(pending.drain(..whole).collect()).unwrap();
        // Hide what differs between recordings.
        let text = text.replace(&format!(":{}", local.port()), ":3000");
        let seconds = (at.as_secs_f64() * 1000.0).round() / 1000.0;
        cast += &(json!([seconds, "o", text]).to_string() + "\n");
    }
    std::fs::write(file, cast).unwrap();
    terminal.press("q").await;
    terminal.end().await;
}
