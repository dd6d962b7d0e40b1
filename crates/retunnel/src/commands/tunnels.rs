//! What `http`, `tcp`, `start` and `demo` share: connect, open tunnels, show them, and close in order.

mod display;
mod handler;
mod live;
mod open;
mod reconnects;

use std::{io::IsTerminal, sync::Arc, time::Duration};

use anyhow::Result;
use retunnel_client::{RefusalCode, TunnelError};
use tokio::time::{Instant, sleep};

#[cfg(feature = "server")]
pub(crate) use self::display::show_one;
pub(crate) use self::{handler::EventHandler, open::TunnelSource};
use crate::{
    args::Global,
    commands::{descriptors, logging, signals::Signals},
    inspector::{self, Inspector},
    memory,
    output::Output,
    settings::Settings,
    variables::Variables,
};

/// How long closing the session may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(800);
/// A client that is replaced this soon after its start probably replaced the other one: two services have the same account and
/// name.
const CONTENDED: Duration = Duration::from_secs(60);
/// How long such a client waits before it exits. Service managers restart it at once, and visitors would meet a change of
/// the client with every start.
const REPLACED_PAUSE: Duration = Duration::from_secs(10);

/// Connects, opens the tunnels and serves until Ctrl+C.
pub(crate) fn run(
    source: TunnelSource,
    settings: Settings,
    inspector: Option<inspector::Options>,
    global: &Global,
    variables: &Variables,
    output: Output,
) -> Result<()> {
    logging::start(global, variables, "warn", false, output.is_interactive())?;
    descriptors::raise_limit();
    // One thread relays faster than two that share the work, and leaves the other cores to the local service.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut signals = match source {
            TunnelSource::CommandLine(_) => Signals::listen()?,
            TunnelSource::File(_) => Signals::listen_reloading()?,
        };
        tokio::select! {
            result = serve(source, settings, inspector, &mut signals, output) => result,
            never = memory::trim_when_idle() => match never {},
        }
    });
    // A pending name lookup must not delay the exit.
    runtime.shutdown_background();
    result
}

async fn serve(
    source: TunnelSource,
    settings: Settings,
    inspector: Option<inspector::Options>,
    signals: &mut Signals,
    output: Output,
) -> Result<()> {
    let began = Instant::now();
    let inspector = bind_inspector(inspector, output).await?;
    let mut builder = settings.builder;
    if let Some(inspector) = &inspector {
        builder = builder.observer(inspector.observer());
    }
    let client = Arc::new(builder.start());
    let mut handler = EventHandler::new(&client, settings.identity, output);
    handler.inspector = inspector.as_ref().map(Inspector::url);
    let _inspector_tasks = inspector.map(|inspector| inspector.serve(Arc::clone(&client)));
    handler.show_connecting();
    let opened = tokio::select! {
        opened = open::open(&client, source, &mut handler, output) => opened,
        () = signals.next() => {
            handler.hide_connecting();
            output.status("Shutting down...");
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await;
            return Ok(());
        }
    };
    handler.hide_connecting();
    let outcome = match opened {
        Ok(tunnels) => display::show(&client, tunnels, handler, signals, output).await,
        Err(error) => Err(handler.explained(error)),
    };
    // A session that is closed in order frees its names at once.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await;
    if let Err(error) = &outcome
        && is_replaced(error)
        && began.elapsed() < CONTENDED
        && !std::io::stdout().is_terminal()
    {
        output.warning(&format!(
            "another client of this account took over the address; exiting in {} s, so that a service manager does not take it \
             back at once",
            REPLACED_PAUSE.as_secs()
        ));
        tokio::select! {
            () = sleep(REPLACED_PAUSE) => {}
            () = signals.next() => {}
        }
    }
    outcome
}

fn is_replaced(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<TunnelError>(),
        Some(TunnelError::Refused(refusal)) if refusal.code == RefusalCode::Superseded
    )
}

/// Starts the inspector unless it is disabled. If the user gave no address and no port is free, tunnels work without it.
async fn bind_inspector(options: Option<inspector::Options>, output: Output) -> Result<Option<Inspector>> {
    let Some(options) = options else { return Ok(None) };
    let has_address = options.has_address();
    match Inspector::bind(options).await {
        Ok(inspector) => {
            if !inspector.is_private() {
                output.warning(&format!("other machines can reach the inspector at {}", inspector.url()));
            }
            Ok(Some(inspector))
        }
        Err(error) if has_address => Err(error.into()),
        Err(error) => {
            output.warning(&format!("{error}; continuing without it"));
            Ok(None)
        }
    }
}
