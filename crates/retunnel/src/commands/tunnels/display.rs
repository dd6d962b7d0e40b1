//! Prints what is open, follows it as lines or as the live view, and prints a summary at the end.

use anyhow::Result;
use retunnel_client::{Client, Tunnel, TunnelProtocol};
use serde_json::{Value, json};

use super::{handler::EventHandler, live, open::OpenTunnels};
use crate::{
    commands::{json_events, signals::Signals},
    output::{self, Output},
};

/// Shows one tunnel until the user or the server ends it.
#[cfg(feature = "server")]
pub(crate) async fn show_one(
    client: &Client,
    tunnel: Tunnel,
    handler: EventHandler,
    signals: &mut Signals,
    output: Output,
) -> Result<()> {
    show(client, OpenTunnels::one(tunnel), handler, signals, output).await
}

/// Prints what is open and stays until the user or the server ends it.
pub(super) async fn show(
    client: &Client,
    mut tunnels: OpenTunnels,
    mut handler: EventHandler,
    signals: &mut Signals,
    output: Output,
) -> Result<()> {
    let interactive = output.is_interactive();
    print(&tunnels, client, handler.inspector.as_deref(), output, interactive);
    handler.start_json_events();
    let outcome = if interactive {
        live::run(client, &mut tunnels, &mut handler, signals).await
    } else {
        lines(client, &mut tunnels, &mut handler, signals).await
    };
    output.status("Shutting down...");
    let stats = client.stats();
    drop(tunnels);
    handler.json_event(&json_events::line(
        "ended",
        json!({
            "cause": outcome.as_ref().err().map(ToString::to_string), "requests": stats.requests,
            "bytes_in": stats.bytes_in, "bytes_out": stats.bytes_out, "uptime_ms": stats.uptime.as_millis() as u64,
        }),
    ));
    output.status(&format!(
        "Tunnel closed. {} request{}, {} received, {} sent, up {}",
        stats.requests,
        if stats.requests == 1 { "" } else { "s" },
        output::bytes(stats.bytes_in),
        output::bytes(stats.bytes_out),
        output::duration(stats.uptime),
    ));
    outcome
}

/// Lines on stderr until the end.
async fn lines(
    client: &Client,
    tunnels: &mut OpenTunnels,
    handler: &mut EventHandler,
    signals: &mut Signals,
) -> Result<()> {
    loop {
        // Every arm is cancel-safe.
        let step = tokio::select! {
            event = handler.events.next() => match event {
                Some(event) => {
                    handler.handle(event);
                    continue;
                }
                None => return Ok(()),
            },
            step = tunnels.next() => step?,
            cause = client.ended() => return Err(cause.into()),
            () = signals.next() => return Ok(()),
        };
        tunnels.apply(step, handler);
    }
}

fn print(open: &OpenTunnels, client: &Client, inspector: Option<&str>, output: Output, interactive: bool) {
    if output.json {
        let line = match open.tunnels.as_slice() {
            [tunnel] if open.single => describe(tunnel, client, inspector),
            tunnels => {
                let all: Vec<_> = tunnels.iter().map(|tunnel| describe(tunnel, client, inspector)).collect();
                // A single tunnel is described in both forms, because releases of the published clients differ in this.
                let mut line = if let [single] = all.as_slice() { single.clone() } else { json!({}) };
                line["tunnels"] = all.into();
                line
            }
        };
        return output.json(&line);
    }
    if interactive {
        return;
    }
    for tunnel in &open.tunnels {
        let line = if open.single { tunnel.url().to_owned() } else { format!("{}={}", tunnel.name(), tunnel.url()) };
        output.result(&line);
    }
    for tunnel in &open.tunnels {
        output.status(&format!("Forwarding {} -> {}", tunnel.url(), tunnel.info().target));
    }
    if let Some(url) = inspector {
        output.status(&format!("Inspector {url}"));
    }
    output.status("Press Ctrl+C to stop");
    output.status(&"-".repeat(40));
}

fn describe(tunnel: &Tunnel, client: &Client, inspector: Option<&str>) -> Value {
    let info = tunnel.info();
    let session = client.session();
    json!({
        "name": info.name,
        "url": info.url,
        "protocol": info.protocol.as_str(),
        "local_port": info.target.local_port(),
        "target": info.target.to_string(),
        "subdomain": if info.protocol == TunnelProtocol::Http { Value::from(info.subdomain.clone()) } else { Value::Null },
        "remote_port": info.remote_port,
        "server": session.as_ref().map(|session| session.server.clone()),
        "dialect": session.as_ref().map(|session| session.dialect.as_str()),
        "account": session.map(|session| session.account),
        "inspector": inspector,
    })
}
