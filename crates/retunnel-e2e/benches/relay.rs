//! What a tunnel costs: requests per second, latency, bytes per second, CPU seconds and memory, with the built release
//! program as server and client. Run by `make bench-parts`; rounds of "direct" and "tunnel" alternate, and medians are printed.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints and stops at the first failure")]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use retunnel_e2e::{
    process::{Running, Server, Tunnel, User},
    service,
    visitor::Visitor,
};
use tokio::{task::JoinSet, time::Instant};

const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(3);
const BULK: usize = 1 << 30;

/// One measured round.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

async fn requests(address: SocketAddr, host: &str, connections: usize, keep_alive: bool) -> Round {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + SPAN;
    for _ in 0..connections {
        let close = if keep_alive { "" } else { "Connection: close\r\n" };
        let request = format!("GET /bytes/1024 HTTP/1.1\r\nHost: {host}\r\n{close}\r\n");
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut visitor = Visitor::connect(address).await;
            while Instant::now() < end {
                let started = Instant::now();
                if !keep_alive && !times.is_empty() {
                    visitor = Visitor::connect(address).await;
                }
                visitor.send(&request).await;
                let answer = visitor.answer(false).await;
                assert_eq!((answer.status, answer.body.len()), (200, 1024));
                times.push(started.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    Round { per_second: times.len() as f64 / SPAN.as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99) }
}

async fn download(address: SocketAddr, host: &str) -> Round {
    let mut visitor = Visitor::connect(address).await;
    let started = Instant::now();
    visitor.send(format!("GET /bytes/{BULK} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    visitor.head().await.unwrap();
    let mut left = BULK;
    while left > 0 {
        left -= visitor.take(left.min(1 << 20)).await.len();
    }
    Round { per_second: BULK as f64 / 1e6 / started.elapsed().as_secs_f64(), ..Round::default() }
}

fn median(mut rounds: Vec<Round>) -> Round {
    let mut middle = |value: fn(&Round) -> f64| {
        rounds.sort_by(|a, b| value(a).total_cmp(&value(b)));
        value(&rounds[rounds.len() / 2])
    };
    Round { per_second: middle(|r| r.per_second), p50_ms: middle(|r| r.p50_ms), p99_ms: middle(|r| r.p99_ms) }
}

/// CPU seconds of a process so far (Linux; 100 ticks a second).
fn cpu(process: &Running) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn used(server: &Server, tunnel: &Tunnel) -> f64 {
    cpu(&server.process) + cpu(&tunnel.process)
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
    let program: PathBuf = retunnel_e2e::process::program();
    println!(
        "program: {}",
        if program.to_string_lossy().contains("release") { "release build" } else { "debug build" }
    );
    let (server, service, user) = (Server::start(&[]).await, service::http().await, User::default());
    let tunnel = user.tunnel(server.address, &["http", &service.port()]).await;
    let host = server.host(tunnel.name());
    println!(
        "idle memory: server {} KiB, client {} KiB",
        server.process.memory() / 1024,
        tunnel.process.memory() / 1024
    );

    for (name, connections, keep_alive) in [
        ("1 connection", 1, true),
        ("64 connections", 64, true),
        ("256 connections", 256, true),
        ("64, new connection each", 64, false),
    ] {
        let (mut direct, mut tunnelled, mut seconds) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..ROUNDS {
            direct.push(requests(service.address, &host, connections, keep_alive).await);
            let before = used(&server, &tunnel);
            tunnelled.push(requests(server.address, &host, connections, keep_alive).await);
            seconds += used(&server, &tunnel) - before;
        }
        let count: f64 = tunnelled.iter().map(|round| round.per_second * SPAN.as_secs_f64()).sum();
        let (direct, tunnelled) = (median(direct), median(tunnelled));
        println!(
            "{name}: direct {:.0}/s p50 {:.2} ms p99 {:.2} ms; tunnel {:.0}/s p50 {:.2} ms p99 {:.2} ms; \
             {:.2} CPU s per 100k requests (server and client)",
            direct.per_second,
            direct.p50_ms,
            direct.p99_ms,
            tunnelled.per_second,
            tunnelled.p50_ms,
            tunnelled.p99_ms,
            seconds / count * 100_000.0,
        );
    }
    let (mut direct, mut tunnelled, mut seconds) = (Vec::new(), Vec::new(), 0.0);
    for _ in 0..ROUNDS {
        direct.push(download(service.address, &host).await);
        let before = used(&server, &tunnel);
        tunnelled.push(download(server.address, &host).await);
        seconds += used(&server, &tunnel) - before;
    }
    println!(
        "1 GiB download: direct {:.0} MB/s; tunnel {:.0} MB/s, {:.2} CPU s per GiB (server and client)",
        median(direct).per_second,
        median(tunnelled).per_second,
        seconds / ROUNDS as f64,
    );
    println!(
        "peak memory: server {} KiB, client {} KiB",
        server.process.peak_memory() / 1024,
        tunnel.process.peak_memory() / 1024
    );
}
