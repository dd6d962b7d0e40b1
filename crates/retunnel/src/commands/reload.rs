//! `retunnel start` while its file changes: what the file says anew is done, what it says as before is left alone.

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
        config, events,
        watch::{FileWatch, Seen},
    },
    settings::Variables,
};

/// A file of tunnels as it was read.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// The tunnels that are wanted; none stands for all.
    pub(crate) names: Vec<String>,
    pub(crate) text: String,
    pub(crate) file: TunnelsFile,
    pub(crate) variables: Variables,
}

impl Source {
    /// The wanted tunnels of a file.
    pub(crate) fn wanted(&self, file: &TunnelsFile) -> Vec<TunnelEntry> {
        let is_wanted = |entry: &&TunnelEntry| self.names.is_empty() || self.names.contains(&entry.name);
        file.tunnels.iter().filter(is_wanted).cloned().collect()
    }

    /// Reads a new text of the file. Without a wanted tunnel it is taken for a mistake: it may be half written.
    fn read(&self, text: &str) -> Result<TunnelsFile, Diagnostics> {
        let file = TunnelsFile::parse(text, |name| self.variables.value(name))?;
        let mut diagnostics = Diagnostics::default();
        if self.wanted(&file).is_empty() {
            diagnostics.add(Position::default(), "it has no tunnels to open");
        }
        diagnostics.into_result(file)
    }
}

/// Follows the file of a running program.
pub(crate) struct Following {
    client: Arc<Client>,
    source: Source,
    watch: FileWatch,
    /// What the file says now, right or not yet done.
    entries: Vec<TunnelEntry>,
    opening: JoinSet<(String, Result<Tunnel, TunnelError>)>,
    /// The tunnels in `opening`.
    handles: Vec<(String, AbortHandle)>,
}

/// Something to do.
pub(crate) enum Step {
    Seen(Seen),
    Opened(String, Result<Tunnel, TunnelError>),
}

/// What was done, for people and programs.
pub(crate) struct Report {
    /// Something did not work.
    pub(crate) is_bad: bool,
    /// The file is right, and is what runs.
    pub(crate) is_taken: bool,
    pub(crate) lines: Vec<String>,
    /// For `--json-events`; `None` when an event of the client tells it.
    pub(crate) event: Option<Value>,
    /// A line on stdout, as for tunnels that were open from the beginning.
    pub(crate) result: Option<String>,
}

impl Following {
    /// Follows from now on. Must be called in a runtime.
    pub(crate) fn new(client: Arc<Client>, source: Source) -> Result<Self> {
        let watch = FileWatch::new(source.path.clone(), source.text.clone())?;
        let entries = source.wanted(&source.file);
        Ok(Self { client, source, watch, entries, opening: JoinSet::new(), handles: Vec::new() })
    }

    /// Whether tunnels are about to be open.
    pub(crate) fn is_opening(&self) -> bool {
        !self.handles.is_empty()
    }

    /// Waits for something to do. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                seen = self.watch.next() => return Step::Seen(seen),
                // One that was aborted is none.
                Some(opened) = self.opening.join_next() => if let Ok((name, opened)) = opened {
                    return Step::Opened(name, opened);
                },
            }
        }
    }

    /// Does it.
    pub(crate) fn step(&mut self, step: Step, tunnels: &mut Vec<Tunnel>) -> Report {
        match step {
            Step::Seen(Seen::Text(text)) => match self.source.read(&text) {
                Ok(file) => self.change(&file, tunnels),
                Err(diagnostics) => unusable(&self.source.path, &diagnostics),
            },
            Step::Seen(Seen::Unreadable(reason)) => {
                let mut diagnostics = Diagnostics::default();
                diagnostics.add(Position::default(), format!("it cannot be read: {reason}"));
                unusable(&self.source.path, &diagnostics)
            }
            Step::Opened(name, opened) => {
                self.handles.retain(|(opening, _)| *opening != name);
                match opened {
                    Ok(tunnel) => {
                        let line = format!("Forwarding {} -> {}", tunnel.url(), tunnel.info().target);
                        let result = format!("{name}={}", tunnel.url());
                        tunnels.push(tunnel);
                        Report { is_bad: false, is_taken: false, lines: vec![line], event: None, result: Some(result) }
                    }
                    Err(error) => not_open(&name, &error),
                }
            }
        }
    }

    /// Makes what runs what the file says.
    fn change(&mut self, file: &TunnelsFile, tunnels: &mut Vec<Tunnel>) -> Report {
        let wanted = self.source.wanted(file);
        let (mut opened, mut reopened, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
        let mut closed: Vec<String> = Vec::new();
        let before = std::mem::replace(&mut self.entries, wanted.clone());
        // What the server closed for good, or the user through the inspector, is opened again if the file wants it.
        tunnels.retain(|tunnel| !tunnel.is_closed());
        for old in &before {
            let is_there = tunnels.iter().any(|tunnel| tunnel.name() == old.name) || self.is_opened(&old.name);
            if is_there && wanted.iter().all(|entry| entry.name != old.name) {
                closed.push(old.name.clone());
                self.close(&old.name, tunnels);
            }
        }
        for entry in &wanted {
            let open = tunnels.iter().find(|tunnel| tunnel.name() == entry.name);
            let old = before.iter().find(|old| old.name == entry.name);
            let is_there = open.is_some() || self.is_opened(&entry.name);
            if is_there && old == Some(entry) {
                unchanged.push(entry.name.clone());
                continue;
            }
            let Ok(mut spec) = entry.spec() else { continue };
            if let (Some(open), Some(old)) = (open, old) {
                spec = at_the_same_address(spec, entry, old, open);
            }
            if is_there { &mut reopened } else { &mut opened }.push(entry.name.clone());
            self.close(&entry.name, tunnels);
            self.open(entry.name.clone(), spec);
        }
        let restart = needs_restart(&self.source.file, file);
        let path = self.source.path.display();
        let mut done = Vec::new();
        for (what, names) in [("opens", &opened), ("opens again", &reopened), ("closed", &closed)] {
            if !names.is_empty() {
                done.push(format!("{what} {}", names.join(", ")));
            }
        }
        if done.is_empty() {
            done.push("no tunnel changed".into());
        } else if !unchanged.is_empty() {
            done.push(format!("{} unchanged", unchanged.len()));
        }
        let mut lines = vec![format!("{path} was read again: {}", done.join("; "))];
        if !restart.is_empty() {
            let keys = restart.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            lines.push(format!("{keys} changed too, but cannot while the program runs; start it again"));
        }
        let event = events::line(
            "config_reloaded",
            json!({
                "file": self.source.path, "opened": opened, "reopened": reopened, "closed": closed,
                "unchanged": unchanged, "restart_needed": restart,
            }),
        );
        Report { is_bad: !restart.is_empty(), is_taken: true, lines, event: Some(event), result: None }
    }

    fn is_opened(&self, name: &str) -> bool {
        self.handles.iter().any(|(opening, _)| opening == name)
    }

    /// Gives a tunnel up. Exchanges under way go on to their end.
    fn close(&mut self, name: &str, tunnels: &mut Vec<Tunnel>) {
        tunnels.retain(|tunnel| tunnel.name() != name);
        self.handles.retain(|(opening, handle)| {
            let is_meant = opening == name;
            if is_meant {
                handle.abort();
            }
            !is_meant
        });
    }

    fn open(&mut self, name: String, spec: TunnelSpec) {
        let (client, told) = (Arc::clone(&self.client), name.clone());
        let handle = self.opening.spawn(async move { (told, client.open(spec).await) });
        self.handles.push((name, handle));
    }
}

/// A tunnel that leaves its address to the server keeps the one it has.
fn at_the_same_address(spec: TunnelSpec, entry: &TunnelEntry, old: &TunnelEntry, open: &Tunnel) -> TunnelSpec {
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

/// The keys that changed and count only when the program starts.
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

fn unusable(path: &Path, diagnostics: &Diagnostics) -> Report {
    let mut lines = vec![format!("{} cannot be used as it is now; everything goes on as before", path.display())];
    lines.extend(config::lines(path, diagnostics));
    let event = events::line("config_invalid", json!({ "file": path, "mistakes": diagnostics.list() }));
    Report { is_bad: true, is_taken: false, lines, event: Some(event), result: None }
}

fn not_open(name: &str, error: &TunnelError) -> Report {
    let event = match error {
        TunnelError::Refused(refusal) => Some(events::refused("tunnel_failed", name, refusal)),
        _ => None,
    };
    let lines = vec![format!("tunnel `{name}` is not open: {error}")];
    Report { is_bad: true, is_taken: false, lines, event, result: None }
}
