//! Handles a client's events: saves tokens, prints lines and JSON, and remembers what is wrong.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use retunnel_client::{Client, Event, Events, PageCode, RequestSummary, ServerEndpoint, Token};
use retunnel_config::ConfigFile;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::reconnects::ReconnectLog;
use crate::{
    commands::{json_events, reload::Report},
    output::Output,
    printable,
    ui::{
        spinner::{self, Spinner},
        theme::Theme,
    },
};

/// The server's code for answers of local services that accept only host names they know.
const HOST_NOT_ALLOWED: &str = PageCode::HostNotAllowed.as_str();
const HOST_HINT: &str =
    "the local service does not accept the public host name; start again with `--host-header rewrite`";

/// Handles the events of a client.
pub(crate) struct EventHandler {
    pub(super) events: Events,
    server: ServerEndpoint,
    /// Where a new token is saved.
    config_path: PathBuf,
    output: Output,
    /// Shown on a terminal while there is nothing else to show.
    spinner: Option<Spinner>,
    reconnects: ReconnectLog,
    /// A live view shows what happens; lines would destroy it.
    pub(super) silent: bool,
    /// Every event is printed as a line of JSON; set once the first line is out.
    json_events: bool,
    /// Tunnels whose local service does not accept connections.
    unreachable: HashSet<String>,
    /// Tunnels whose local service rejected the public host name, and whose user has seen the hint.
    hinted: HashSet<String>,
    /// The last thing that went wrong, for the live view.
    pub(super) trouble: Option<String>,
    /// The URL of each tunnel that was open.
    urls: HashMap<String, String>,
    /// The inspector's URL, if there is one.
    pub(super) inspector: Option<String>,
}

impl EventHandler {
    pub(crate) fn new(client: &Client, server: ServerEndpoint, config_path: PathBuf, output: Output) -> Self {
        Self {
            events: client.events(),
            server,
            config_path,
            output,
            spinner: None,
            reconnects: ReconnectLog::default(),
            silent: false,
            json_events: false,
            unreachable: HashSet::new(),
            hinted: HashSet::new(),
            trouble: None,
            urls: HashMap::new(),
            inspector: None,
        }
    }

    pub(super) fn show_connecting(&mut self) {
        let text = format!("Connecting to ReTunnel server... ({})", self.server);
        if self.output.is_interactive() {
            self.spinner = Some(Spinner::new(Theme::from_environment(), text));
        } else {
            self.output.status(&text);
        }
    }

    pub(super) fn hide_connecting(&mut self) {
        self.spinner = None;
    }

    /// Prints events as JSON from now on if the user asked for it.
    pub(super) const fn start_json_events(&mut self) {
        self.json_events = self.output.json_events;
    }

    /// Handles events while a future runs.
    pub(crate) async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        let mut tick = interval(spinner::REDRAW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Events that came before the result are handled before it.
                biased;
                Some(event) = self.events.next() => drop(self.handle(event)),
                result = &mut future => return result,
                _ = tick.tick(), if self.spinner.is_some() => self.spinner.iter_mut().for_each(Spinner::draw),
            }
        }
    }

    fn status(&self, text: &str) {
        if !self.silent {
            self.spinner.iter().for_each(Spinner::clear);
            self.output.status(text);
        }
    }

    fn warn(&mut self, text: String) {
        if !self.silent {
            self.spinner.iter().for_each(Spinner::clear);
            self.output.warning(&text);
        }
        self.trouble = Some(text);
    }

    /// Prints what a changed file did.
    pub(super) fn report(&mut self, report: &Report) {
        if let Some(event) = &report.event {
            self.json_event(event);
        }
        if report.is_failure {
            self.warn(report.lines.join("\n"));
            return;
        }
        if let Some(result) = report.result.as_ref().filter(|_| !self.silent && !self.output.json) {
            self.output.result(result);
        }
        report.lines.iter().for_each(|line| self.status(line));
    }

    /// Prints an event for programs if the user asked for events.
    pub(super) fn json_event(&self, line: &Value) {
        if self.json_events {
            self.output.json(line);
        }
    }

    /// Handles an event. Returns a hint that the user should read.
    pub(super) fn handle(&mut self, event: Event) -> Option<String> {
        let mut hint = None;
        if let Some(line) = json_events::of(&event) {
            self.json_event(&line);
        }
        match event {
            Event::Registered { token, .. } => self.save_token(&token),
            Event::Connecting { attempt, .. } => self.reconnects.attempt = attempt,
            Event::Disconnected { cause, retry_in, .. } => {
                let cause = printable::line(&cause.to_string());
                self.trouble = Some(cause.clone());
                let line = self.reconnects.line(&cause, retry_in);
                match (&mut self.spinner, line) {
                    (Some(spinner), _) => spinner.failed(cause, retry_in),
                    (None, Some(line)) => self.warn(line),
                    (None, None) => {}
                }
            }
            Event::Connected { .. } => {
                if std::mem::take(&mut self.reconnects).has_reported() {
                    self.status("Connected");
                }
                self.trouble = None;
            }
            Event::TunnelOpened(info) => drop(self.urls.insert(info.name, info.url)),
            Event::TunnelRestored(info) => {
                let before = self.urls.insert(info.name.clone(), info.url.clone());
                if before.is_some_and(|before| before != info.url) {
                    if !self.silent && !self.output.json {
                        self.output.result(&info.url);
                    }
                    self.warn(printable::line(&format!("tunnel `{}` has a new address: {}", info.name, info.url)));
                }
            }
            Event::TunnelFailed { name, refusal, .. } => {
                self.warn(printable::line(&format!("cannot open tunnel `{name}`: {refusal}")));
            }
            Event::TunnelClosed { name, refusal, .. } => {
                self.warn(printable::line(&format!("the server closed tunnel `{name}`: {refusal}")));
            }
            Event::LocalUnreachable { tunnel, reason, .. } => {
                self.unreachable.insert(tunnel);
                self.warn(printable::line(&format!("the local service does not answer: {reason}")));
            }
            Event::OutOfDescriptors { refused, .. } => {
                let count = if refused > 1 { format!(" ({refused} since the last message)") } else { String::new() };
                self.warn(format!(
                    "no file descriptor is left: visitors get 503{count}; raise the limit (`ulimit -n`)"
                ));
            }
            Event::Request { tunnel, request, .. } => {
                if request.error == HOST_NOT_ALLOWED && self.hinted.insert(tunnel.clone()) {
                    self.json_event(&json_events::line("hint", json!({ "code": HOST_NOT_ALLOWED, "text": HOST_HINT })));
                    self.warn(HOST_HINT.into());
                    hint = Some(HOST_HINT.into());
                }
                if request.error.is_empty() {
                    if self.unreachable.remove(&tunnel) {
                        self.json_event(&json_events::line("local_reachable", json!({ "tunnel": tunnel })));
                    }
                    self.trouble = None;
                }
                self.status(&request_line(&request));
            }
            _ => {}
        }
        hint
    }

    fn save_token(&mut self, token: &Token) {
        let server = self.server.authority();
        match ConfigFile::save_token_for(&self.config_path, &server, token) {
            Ok(()) => self.status(&format!("Registered with {server}; token saved to {}", self.config_path.display())),
            Err(error) => self.warn(format!("cannot save the new token: {error}")),
        }
    }
}

/// A request as one line.
fn request_line(request: &RequestSummary) -> String {
    let what = if request.method.is_empty() {
        format!("TCP {}", request.visitor)
    } else {
        format!("{} {} {}", request.method, request.path, request.status)
    };
    let error = if request.error.is_empty() { String::new() } else { format!(" [{}]", request.error) };
    printable::line(&format!("{what} {} ms{error}", request.duration_ms))
}
