//! `retunnel demo`: server, client and sample service in one process, and a real request through all of them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use retunnel_client::{Client, LocalTarget, ServerEndpoint, TunnelSpec};
use retunnel_server::{Server, ServerHandle, config::ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    args::{DemoArgs, Global},
    commands::{
        logging,
        signals::Signals,
        tunnels::{self, EventHandler},
    },
    output::Output,
    settings::Identity,
    variables::Variables,
};

/// How long the request through the tunnel may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the demo's server listens if the port is free.
const PORT: u16 = 6400;

pub(crate) fn run(args: &DemoArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    logging::start(global, variables, "warn", false, output.is_interactive())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(demo(args, output));
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn demo(args: &DemoArgs, output: Output) -> Result<()> {
    let mut signals = Signals::listen()?;
    let data = TemporaryDirectory::new()?;
    let server = start_server(&data).await?;
    let mut service = JoinSet::new();
    let port = match args.port {
        Some(port) => port,
        None => {
            let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot start the sample service")?;
            let port = listener.local_addr()?.port();
            service.spawn(sample::serve(listener));
            output.status(&format!("sample service   http://127.0.0.1:{port}"));
            port
        }
    };
    output.status(&format!("server           http://{} (data in a temporary directory)", server.address()));

    let endpoint: ServerEndpoint = server.address().to_string().parse()?;
    let client = Client::builder().server(endpoint.clone()).connect().await?;
    let mut handler = EventHandler::new(&client, Identity::unsaved(endpoint), output);
    let tunnel = handler.during(client.open(TunnelSpec::http(LocalTarget::port(port)))).await?;
    output.status(&format!("tunnel           {} -> localhost:{port}", tunnel.url()));

    let response = check(server.address(), tunnel.url()).await?;
    output.status(&format!("request          GET {}/", tunnel.url()));
    output.status(&format!(
        "response         {} in {:.1} ms, {} bytes",
        response.status_line,
        response.time.as_secs_f64() * 1000.0,
        response.body_bytes,
    ));
    if response.is_ok {
        output.status("It works: the request went through the server and the client to the service and back.");
    }
    let outcome = if args.once {
        let report = serde_json::json!({
            "url": tunnel.url(), "status": response.status, "ms": response.time.as_secs_f64() * 1000.0,
        });
        if output.json {
            output.json(&report)
        } else {
            output.result(tunnel.url())
        }
        drop(tunnel);
        if response.is_ok { Ok(()) } else { Err(anyhow::anyhow!("the tunnel answered `{}`", response.status_line)) }
    } else {
        tunnels::show_one(&client, tunnel, handler, &mut signals, output).await
    };
    client.close().await;
    service.shutdown().await;
    server.shutdown().await;
    outcome
}

/// The embedded server, on its default port if that is free.
async fn start_server(data: &TemporaryDirectory) -> Result<ServerHandle> {
    let mut config = ServerConfig::new(data.path.join("server"));
    config.limits.grace_period = Duration::from_millis(300);
    for port in [PORT, 0] {
        config.listen = SocketAddr::from(([127, 0, 0, 1], port));
        match Server::start(config.clone()).await {
            Err(retunnel_server::StartError::Listen { .. }) if port != 0 => {}
            result => return Ok(result?),
        }
    }
    bail!("no free port for the demo server")
}

struct Response {
    status_line: String,
    status: u16,
    is_ok: bool,
    time: Duration,
    body_bytes: usize,
}

/// A visitor's request to the public URL. The name is not resolved, because not every system resolves `*.localhost`.
async fn check(server: SocketAddr, url: &str) -> Result<Response> {
    let host = url.strip_prefix("http://").unwrap_or(url);
    let started = Instant::now();
    let exchange = async {
        let mut socket = TcpStream::connect(server).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(8 * 1024 * 1024).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(REQUEST_TIMEOUT, exchange)
        .await
        .context("the tunnel did not answer in time")?
        .context("the request through the tunnel failed")?;
    let time = started.elapsed();
    let head_end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("the response is not HTTP")?;
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    let status_line = head.lines().next().unwrap_or_default().to_owned();
    let status: u16 = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    // Any response of the service shows that the tunnel works; the server's own pages have this header.
    let is_ok = status != 0 && !head.to_ascii_lowercase().contains("x-retunnel-error");
    Ok(Response { status_line, status, is_ok, time, body_bytes: answer.len() - head_end - 4 })
}

/// A directory that is removed on drop.
struct TemporaryDirectory {
    path: std::path::PathBuf,
}

impl TemporaryDirectory {
    fn new() -> Result<Self> {
        let name = format!("retunnel-demo-{}", retunnel_proto::random_text(10));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot create the directory {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

mod sample {
    //! A sample service for people who have none at hand.

    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::JoinSet,
        time::timeout,
    };

    const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Hello from your machine</title>\
        <style>:root{color-scheme:light dark}body{margin:0;min-height:100vh;display:grid;place-items:center;\
        font:17px/1.6 system-ui,sans-serif;background:light-dark(#f5f6f8,#14161a);color:light-dark(#1c1f24,#e8eaed)}\
        main{max-width:34rem;margin:1.5rem}</style></head><body><main><h1>Hello from your machine</h1>\
        <p>This page comes from the sample service of <code>retunnel demo</code>. It travelled through a real tunnel: \
        browser, ReTunnel server, ReTunnel client, service.</p><p>Publish your own: <code>retunnel demo 8080</code></p>\
        </main></body></html>\n";
    const MAX_HEAD: usize = 64 * 1024;

    pub(super) async fn serve(listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => { connections.spawn(answer(socket)); }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Answers one request and closes the connection.
    async fn answer(mut socket: TcpStream) {
        let mut head = Vec::new();
        let arrived = timeout(Duration::from_secs(10), async {
            while !head.windows(4).any(|part| part == b"\r\n\r\n") {
                if head.len() > MAX_HEAD || socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
            true
        });
        if arrived.await.unwrap_or(false) {
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PAGE}",
                PAGE.len()
            );
            let _ = socket.write_all(text.as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    }
}
