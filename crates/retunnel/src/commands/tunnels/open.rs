//! Opens the tunnels of a command line or a file, and keeps them with the file that may change them.

use std::sync::Arc;

use anyhow::Result;
use futures_util::future::join_all;
use retunnel_client::{Client, Tunnel, TunnelError, TunnelSpec};
use tokio::join;

use super::handler::EventHandler;
use crate::{
    commands::reload::{LoadedFile, Reloader, Report, Step},
    output::Output,
};

/// The tunnels to open.
pub(crate) enum TunnelSource {
    /// One from the command line. If it cannot be opened, the program exits.
    CommandLine(TunnelSpec),
    /// Those of a file. One that cannot be opened is reported and does not stop the others.
    File(Box<LoadedFile>),
}

/// Open tunnels and where they come from.
pub(super) struct OpenTunnels {
    pub(super) tunnels: Vec<Tunnel>,
    /// From a command line.
    pub(super) single: bool,
    /// Applies the changes of the file they come from.
    reloader: Option<Reloader>,
}

impl OpenTunnels {
    /// A tunnel from the command line.
    pub(super) fn one(tunnel: Tunnel) -> Self {
        Self { tunnels: vec![tunnel], single: true, reloader: None }
    }

    /// Waits for the next step of a reload, or until the server has closed all tunnels. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Step, TunnelError> {
        let Some(reloader) = &mut self.reloader else { return Err(all_closed(&self.tunnels).await) };
        let is_opening = reloader.is_opening();
        tokio::select! {
            step = reloader.next() => Ok(step),
            error = all_closed(&self.tunnels), if !is_opening => Err(error),
        }
    }

    /// Applies a step and reports it.
    pub(super) fn apply(&mut self, step: Step, handler: &mut EventHandler) -> Option<Report> {
        let report = self.reloader.as_mut()?.apply(step, &mut self.tunnels);
        handler.report(&report);
        Some(report)
    }
}

async fn all_closed(tunnels: &[Tunnel]) -> TunnelError {
    let mut last = TunnelError::Closed;
    for tunnel in tunnels {
        last = tunnel.closed().await;
    }
    if matches!(last, TunnelError::Closed) {
        // The user closed them through the inspector's API and may open others.
        std::future::pending::<()>().await;
    }
    last
}

/// Opens all tunnels. The requests go out together with the start of the session, which saves a round trip.
pub(super) async fn open(
    client: &Arc<Client>,
    source: TunnelSource,
    handler: &mut EventHandler,
    output: Output,
) -> Result<OpenTunnels> {
    let file = match source {
        TunnelSource::CommandLine(spec) => {
            let (connected, tunnel) = handler.during(async { join!(client.connected(), client.open(spec)) }).await;
            connected?;
            return Ok(OpenTunnels::one(tunnel?));
        }
        TunnelSource::File(file) => file,
    };
    let entries = file.selected(&file.file);
    let specs = entries.iter().map(|entry| entry.spec()).collect::<Result<Vec<_>, _>>()?;
    let opening = join_all(specs.into_iter().map(|spec| client.open(spec)));
    let (connected, results) = handler.during(async { join!(client.connected(), opening) }).await;
    connected?;
    let mut tunnels = Vec::new();
    let mut failure = None;
    for (entry, result) in entries.into_iter().zip(results) {
        match result {
            Ok(tunnel) => tunnels.push(tunnel),
            Err(error) => {
                output.warning(&format!("cannot open tunnel `{}`: {error}", entry.name));
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        Some(error) if tunnels.is_empty() => Err(error.into()),
        _ => {
            let reloader = Some(Reloader::new(Arc::clone(client), *file)?);
            Ok(OpenTunnels { tunnels, single: false, reloader })
        }
    }
}
