//! How long a user waits for the URL: from the start of the process to the line on stdout, with a server on this machine.
//! Run by `cargo bench -p retunnel-e2e --bench first_url` with the built release program.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Duration;

use retunnel_e2e::{
    process::{Running, Server, User},
    service,
};
use tokio::time::Instant;

const ROUNDS: usize = 20;
/// The required time.
const PROMISE: Duration = Duration::from_millis(300);

async fn first_url(server: &Server, user: &User, port: &str) -> Duration {
    let command = user.command(&["http", port, "--server", &server.address.to_string()]);
    let began = Instant::now();
    let mut client = Running::start(command).await;
    let line = client.line().await;
    let took = began.elapsed();
    assert!(line.starts_with("http://"), "{line}");
    client.signal("TERM").await;
    client.exit().await;
    took
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Server::start(&["--tcp-ports", "off"]).await;
    let app = service::http().await;
    let known = User::default();
    // A user's first run registers an account.
    let mut new = Vec::new();
    let mut again = Vec::new();
    for _ in 0..ROUNDS {
        new.push(first_url(&server, &User::default(), &app.port()).await);
        again.push(first_url(&server, &known, &app.port()).await);
    }
    let mut worst = Duration::ZERO;
    for (what, times) in [("first run, makes an account", &mut new), ("later runs", &mut again)] {
        times.sort();
        let (median, slowest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
        println!("{what}: median {:.1} ms, slowest {:.1} ms of {ROUNDS}", ms(median), ms(slowest));
        worst = worst.max(median);
    }
    assert!(worst < PROMISE, "the URL takes {worst:?}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
