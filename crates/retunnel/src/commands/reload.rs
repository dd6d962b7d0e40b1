//! Reloads the file of `retunnel start`: opens, reopens and closes the tunnels that changed, and leaves the others alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use retunnel_client::{Client, Tunnel, TunnelError, TunnelProtocol, TunnelSpec};
use retunnel_config::{Diagnostics, Position, TunnelEntry, TunnelsFile};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};

use crate::{
    commands::{
        diagnostics, json_events,
        watch::{FileContent, FileWatch},
    },
    variables::Variables,
};

/// A tunnels file as it was read at the start.
pub(crate) struct LoadedFile {
    pub(crate) path: PathBuf,
    /// The tunnels to open; empty means all.
    pub(crate) names: Vec<String>,
    pub(crate) text: String,
    pub(crate) file: TunnelsFile,
    pub(crate) variables: Variables,
}

impl LoadedFile {
    /// The tunnels of a file that are to be opened.
    pub(crate) fn selected(&self, file: &TunnelsFile) -> Vec<TunnelEntry> {
        let is_selected = |entry: &&TunnelEntry| self.names.is_empty() || self.names.contains(&entry.name);
        file.tunnels.iter().filter(is_selected).cloned().collect()
    }

    /// Parses a new version of the file. One without a tunnel to open is an error: it may be half written.
    fn read(&self, text: &str) -> Result<TunnelsFile, Diagnostics> {
        let file = TunnelsFile::parse(text, |name| self.variables.for_tunnels_file(name))?;
        if self.selected(&file).is_empty() { Err(diagnostics::no_tunnels()) } else { Ok(file) }
    }
}

/// Applies the changes of a tunnels file to a running client.
pub(crate) struct Reloader {
    client: Arc<Client>,
    loaded: LoadedFile,
    watch: FileWatch,
    /// The tunnels of the newest valid version of the file, open or not.
    entries: Vec<TunnelEntry>,
    opening: JoinSet<(String, Result<Tunnel, TunnelError>)>,
    /// The tunnels in `opening`.
    handles: Vec<(String, AbortHandle)>,
}

/// A step of a reload.
pub(crate) enum Step {
    /// The file changed, or cannot be read.
    File(FileContent),
    /// A tunnel was opened, or cannot be.
    Tunnel(String, Result<Tunnel, TunnelError>),
}

/// What a step did, for people and programs.
pub(crate) struct Report {
    /// Something did not work.
    pub(crate) is_failure: bool,
    /// The file is valid and was applied.
    pub(crate) is_applied: bool,
    pub(crate) lines: Vec<String>,
    /// For `--json-events`; `None` if an event of the client covers it.
    pub(crate) event: Option<Value>,
    /// A line on stdout, the same as for tunnels that were opened at the start.
    pub(crate) result: Option<String>,
}

impl Reloader {
    /// Watches the file from now on. Must be called in a runtime.
    pub(crate) fn new(client: Arc<Client>, loaded: LoadedFile) -> Result<Self> {
        let watch = FileWatch::new(loaded.path.clone(), loaded.text.clone())?;
        let entries = loaded.selected(&loaded.file);
        Ok(Self { client, loaded, watch, entries, opening: JoinSet::new(), handles: Vec::new() })
    }

    /// Whether tunnels are being opened.
    pub(crate) fn is_opening(&self) -> bool {
        !self.handles.is_empty()
    }

    /// Waits for the next step. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                content = self.watch.next() => return Step::File(content),
                // Aborted tasks are skipped.
                Some(opened) = self.opening.join_next() => if let Ok((name, opened)) = opened {
                    return Step::Tunnel(name, opened);
                },
            }
        }
    }

    /// Applies a step.
    pub(crate) fn apply(&mut self, step: Step, tunnels: &mut Vec<Tunnel>) -> Report {
        match step {
            Step::File(FileContent::Text(text)) => match self.loaded.read(&text) {
                Ok(file) => self.change(&file, tunnels),
                Err(diagnostics) => invalid_file(&self.loaded.path, &diagnostics),
            },
            Step::File(FileContent::Unreadable(reason)) => {
                let mut diagnostics = Diagnostics::default();
                diagnostics.add(Position::default(), format!("cannot be read: {reason}"));
                invalid_file(&self.loaded.path, &diagnostics)
            }
            Step::Tunnel(name, opened) => {
                self.handles.retain(|(opening, _)| *opening != name);
                match opened {
                    Ok(tunnel) => {
                        let line = format!("Forwarding {} -> {}", tunnel.url(), tunnel.info().target);
                        let result = format!("{name}={}", tunnel.url());
                        tunnels.push(tunnel);
                        Report {
                            is_failure: false,
                            is_applied: false,
                            lines: vec![line],
                            event: None,
                            result: Some(result),
                        }
                    }
                    Err(error) => open_failed(&name, &error),
                }
            }
        }
    }

    /// Opens, reopens and closes tunnels until they match the file.
    fn change(&mut self, file: &TunnelsFile, tunnels: &mut Vec<Tunnel>) -> Report {
        let wanted = self.loaded.selected(file);
        let (mut opened, mut reopened, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
        let mut closed: Vec<String> = Vec::new();
        let before = std::mem::replace(&mut self.entries, wanted.clone());
        // Tunnels that the server closed for good, or the user through the inspector, are opened again if the file has them.
        tunnels.retain(|tunnel| !tunnel.is_closed());
        for old in &before {
            let is_there = tunnels.iter().any(|tunnel| tunnel.name() == old.name) || self.is_pending(&old.name);
            if is_there && wanted.iter().all(|entry| entry.name != old.name) {
                closed.push(old.name.clone());
                self.close(&old.name, tunnels);
            }
        }
        for entry in &wanted {
            let open = tunnels.iter().find(|tunnel| tunnel.name() == entry.name);
            let old = before.iter().find(|old| old.name == entry.name);
            let is_there = open.is_some() || self.is_pending(&entry.name);
            if is_there && old == Some(entry) {
                unchanged.push(entry.name.clone());
                continue;
            }
            let Ok(mut spec) = entry.spec() else { continue };
            if let (Some(open), Some(old)) = (open, old) {
                spec = keep_address(spec, entry, old, open);
            }
            if is_there { &mut reopened } else { &mut opened }.push(entry.name.clone());
            self.close(&entry.name, tunnels);
            self.open(entry.name.clone(), spec);
        }
        let restart = needs_restart(&self.loaded.file, file);
        let path = self.loaded.path.display();
        let mut done = Vec::new();
        for (what, names) in [("opening", &opened), ("reopening", &reopened), ("closed", &closed)] {
            if !names.is_empty() {
                done.push(format!("{what} {}", names.join(", ")));
            }
        }
        if done.is_empty() {
            done.push("no tunnel changed".into());
        } else if !unchanged.is_empty() {
            done.push(format!("{} unchanged", unchanged.len()));
        }
        let mut lines = vec![format!("reloaded {path}: {}", done.join("; "))];
        if !restart.is_empty() {
            let keys = restart.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            lines.push(format!("{keys} changed too; restart to apply"));
        }
        let event = json_events::line(
            "config_reloaded",
            json!({
                "file": self.loaded.path, "opened": opened, "reopened": reopened, "closed": closed,
                "unchanged": unchanged, "restart_needed": restart,
            }),
        );
        Report { is_failure: !restart.is_empty(), is_applied: true, lines, event: Some(event), result: None }
    }

    fn is_pending(&self, name: &str) -> bool {
        self.handles.iter().any(|(opening, _)| opening == name)
    }

    /// Closes a tunnel, or stops opening it. Exchanges in progress run to their end.
    fn close(&mut self, name: &str, tunnels: &mut Vec<Tunnel>) {
        tunnels.retain(|tunnel| tunnel.name() != name);
        self.handles.retain(|(opening, handle)| {
            let matches = opening == name;
            if matches {
                handle.abort();
            }
            !matches
        });
    }

    fn open(&mut self, name: String, spec: TunnelSpec) {
        let (client, key) = (Arc::clone(&self.client), name.clone());
        let handle = self.opening.spawn(async move { (key, client.open(spec).await) });
        self.handles.push((name, handle));
    }
}

/// Asks for the current address again if the file leaves the choice to the server.
fn keep_address(spec: TunnelSpec, entry: &TunnelEntry, old: &TunnelEntry, open: &Tunnel) -> TunnelSpec {
    let info = open.info();
    let is_random = |entry: &TunnelEntry| entry.subdomain.is_none() && entry.hostname.is_none();
    match info.protocol {
        _ if entry.protocol != old.protocol => spec,
        TunnelProtocol::Http if is_random(entry) && is_random(old) => {
            spec.clone().subdomain(&info.subdomain).unwrap_or(spec)
        }
        TunnelProtocol::Tcp => match (entry.remote_port, old.remote_port, info.remote_port) {
            (None, None, Some(port)) => spec.remote_port(port),
            _ => spec,
        },
        _ => spec,
    }
}

/// The changed keys that take effect only at the start.
fn needs_restart(running: &TunnelsFile, now: &TunnelsFile) -> Vec<&'static str> {
    [
        ("server_addr", running.server_addr != now.server_addr),
        ("auth_token", running.auth_token != now.auth_token),
        ("dialect", running.dialect != now.dialect),
        ("log_level", running.log_level != now.log_level),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

fn invalid_file(path: &Path, diagnostics: &Diagnostics) -> Report {
    let mut lines = vec![format!("{} is not valid; the running tunnels stay as they are", path.display())];
    lines.extend(diagnostics::lines(path, diagnostics));
    let event = json_events::line("config_invalid", json!({ "file": path, "mistakes": diagnostics.list() }));
    Report { is_failure: true, is_applied: false, lines, event: Some(event), result: None }
}

fn open_failed(name: &str, error: &TunnelError) -> Report {
    let event = match error {
        TunnelError::Refused(refusal) => Some(json_events::refused("tunnel_failed", name, refusal)),
        _ => None,
    };
    let lines = vec![format!("cannot open tunnel `{name}`: {error}")];
    Report { is_failure: true, is_applied: false, lines, event, result: None }
}
