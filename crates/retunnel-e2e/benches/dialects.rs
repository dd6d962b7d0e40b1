//! What a request costs the server, by the dialect of the client: CPU seconds of the server's process alone, with the
//! built release program and a published client. Run by `make bench-parts`; rounds alternate, and medians are printed.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints and stops at the first failure")]

use std::{net::SocketAddr, time::Duration};

use retunnel_e2e::{
    apps::Use,
    process::{Server, User},
    published_3::PythonUser,
    service,
    visitor::Visitor,
};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

const ROUNDS: usize = 7;
const SPAN: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 64;

/// Requests that were answered.
async fn requests(address: SocketAddr, host: &str) -> u32 {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + SPAN;
    for _ in 0..CONNECTIONS {
        let request = format!("GET /bytes/1024 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        tasks.spawn(async move {
            let mut count = 0;
            let mut visitor = Visitor::connect(address).await;
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

/// CPU seconds of the server so far (Linux; 100 ticks a second).
fn cpu(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
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
    let native = user.tunnel(server.address, &["http", &port]).await;
    let three = user.tunnel(server.address, &["http", &port, "--dialect", "3"]).await;
    let python = PythonUser::new("3.3.2", server.address);
    let published =
        python.open(Use::Library, &[json!({ "protocol": "http", "local_port": service.address.port() })]).await;
    let tunnels = [
        ("native, this client", server.host(native.name())),
        ("dialect 3, this client", server.host(three.name())),
        ("dialect 3, published 3.3.2", published.host(0).to_owned()),
    ];
    let mut rates = vec![Vec::new(); tunnels.len()];
    let mut costs = vec![Vec::new(); tunnels.len()];
    for _ in 0..ROUNDS {
        for (n, (_, host)) in tunnels.iter().enumerate() {
            let before = cpu(&server);
            let count = f64::from(requests(server.address, host).await);
            rates[n].push(count / SPAN.as_secs_f64());
            costs[n].push((cpu(&server) - before) / count * 100_000.0);
        }
    }
    println!("{CONNECTIONS} kept connections, answers of 1 KiB, CPU seconds of the server per 100k requests:");
    for (n, (name, _)) in tunnels.iter().enumerate() {
        let ratios = costs[n].iter().zip(&costs[0]).map(|(cost, native)| cost / native).collect();
        println!(
            "{name:<28} {:>7.0}/s  {:.2} s  {:.2} times native",
            median(rates[n].clone()),
            median(costs[n].clone()),
            median(ratios)
        );
    }
}
