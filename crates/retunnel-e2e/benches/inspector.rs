//! What the inspector costs: the same requests through a tunnel without it, with it, and with a page open, in alternation. Prints
//! medians of the ratios of neighbouring rounds, which a noisy machine disturbs least. Run by
//! `cargo bench -p retunnel-e2e --bench inspector` with the built release program. `RETUNNEL_BENCH_OTHER` names another
//! build of the program that takes part without the inspector, for example one that has no tap.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints and stops at the first failure")]

use std::{net::SocketAddr, path::Path, time::Duration};

use retunnel_e2e::{
    process::{Running, Server, Tunnel, User},
    service,
    visitor::Visitor,
};
use tokio::{task::JoinSet, time::Instant};

const ROUNDS: usize = 15;
const SPAN: Duration = Duration::from_millis(1500);
const CONNECTIONS: usize = 64;

/// One measured round.
#[derive(Debug, Clone, Copy)]
struct Round {
    per_second: f64,
    /// CPU seconds per 100k requests: of the client, and of client and server.
    client: f64,
    both: f64,
}

/// CPU seconds of a process so far (Linux; 100 ticks a second).
fn cpu(process: &Running) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

async fn load(address: SocketAddr, host: &str) -> usize {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + SPAN;
    for _ in 0..CONNECTIONS {
        let request = format!("GET /bytes/1024 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
        tasks.spawn(async move {
            let mut visitor = Visitor::connect(address).await;
            let mut count = 0;
            while Instant::now() < end {
                visitor.send(&request).await;
                let answer = visitor.answer(false).await;
                assert_eq!((answer.status, answer.body.len()), (200, 1024));
                count += 1;
            }
            count
        });
    }
    tasks.join_all().await.into_iter().sum()
}

async fn measure(server: &Server, tunnel: &Tunnel) -> Round {
    let before = (cpu(&tunnel.process), cpu(&server.process));
    let count = load(server.address, &server.host(tunnel.name())).await as f64;
    let (client, edge) = (cpu(&tunnel.process) - before.0, cpu(&server.process) - before.1);
    Round {
        per_second: count / SPAN.as_secs_f64(),
        client: client / count * 100_000.0,
        both: (client + edge) / count * 100_000.0,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // `cargo test --benches` compiles and starts benchmarks; there is nothing to check then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let port = service.port();
    let off = user.tunnel(server.address, &["http", &port, "--no-inspect"]).await;
    let on = user.tunnel(server.address, &["http", &port]).await;
    let watched = user.tunnel(server.address, &["http", &port]).await;
    // A page that reads the events.
    let mut page = Visitor::connect(watched.inspector()).await;
    page.send("GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { page.to_end().await.len() });
    let mut tunnels = vec![("off", &off), ("on, no page open", &on), ("on, a page open", &watched)];
    let other = match std::env::var_os("RETUNNEL_BENCH_OTHER") {
        Some(path) => Some(user.tunnel_of(Path::new(&path), server.address, &["http", &port, "--no-inspect"]).await),
        None => None,
    };
    tunnels.extend(other.as_ref().map(|tunnel| ("the other build", tunnel)));
    for (_, tunnel) in &tunnels {
        measure(&server, tunnel).await;
    }
    let mut rounds: Vec<Vec<Round>> = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = vec![None; tunnels.len()];
        // The first is not always the same.
        for step in 0..tunnels.len() {
            let which = (round + step) % tunnels.len();
            measured[which] = Some(measure(&server, tunnels[which].1).await);
        }
        rounds.push(measured.into_iter().map(Option::unwrap).collect());
    }
    for (which, (name, _)) in tunnels.iter().enumerate() {
        let of = |value: fn(&Round) -> f64| median(rounds.iter().map(|round| value(&round[which])).collect());
        let ratio = |value: fn(&Round) -> f64| {
            (median(rounds.iter().map(|round| value(&round[which]) / value(&round[0])).collect()) - 1.0) * 100.0
        };
        println!(
            "{name}: {:.0}/s ({:+.1} %); CPU s per 100k requests: client {:.2} ({:+.1} %), client and server {:.2} ({:+.1} %)",
            of(|round| round.per_second),
            ratio(|round| round.per_second),
            of(|round| round.client),
            ratio(|round| round.client),
            of(|round| round.both),
            ratio(|round| round.both),
        );
    }
    println!("client memory: off {} KiB, on {} KiB", off.process.peak_memory() / 1024, on.process.peak_memory() / 1024);
}
