//! Handles a client's events: saves what the server has accepted, prints lines and JSON, and remembers what is wrong.

use std::collections::{HashMap, HashSet};

use retunnel_client::{
    Client, ConnectError, Dialect, Event, Events, PageCode, RefusalCode, RequestSummary, SessionInfo, Token,
};
use retunnel_config::ConfigFile;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::reconnects::ReconnectLog;
use crate::{
    commands::{json_events, reload::Report},
    output::Output,
    printable,
    settings::Identity,
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
    identity: Identity,
    /// Whether the account has been shown.
    has_shown_account: bool,
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
    pub(crate) fn new(client: &Client, identity: Identity, output: Output) -> Self {
        Self {
            events: client.events(),
            identity,
            has_shown_account: false,
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
        let Identity { server, server_from, .. } = &self.identity;
        let by = if server.is_default() { String::new() } else { format!(", from {server_from}") };
        let text = format!("Connecting to ReTunnel server... ({server}{by})");
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
            Event::Registered { token, replaces, not_saved, .. } => {
                self.registered(token, replaces.as_ref(), not_saved)
            }
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
            Event::Connected { session, .. } => {
                if std::mem::take(&mut self.reconnects).has_reported() {
                    self.status("Connected");
                }
                self.trouble = None;
                self.accepted(&session);
            }
            Event::TunnelOpened(info) if info.target.has_no_listener() => {
                let reason = format!("nothing listens at {} yet", info.target);
                self.json_event(&json_events::line(
                    "local_unreachable",
                    json!({ "tunnel": info.name, "reason": reason }),
                ));
                self.warn(format!("{reason}: visitors of {} get an error until the service is started", info.url));
                self.unreachable.insert(info.name);
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

    fn registered(&mut self, token: Token, replaces: Option<&Token>, not_saved: Option<String>) {
        let Identity { server, saved, .. } = &self.identity;
        let (server, path) = (server.to_string(), saved.as_ref().map(|saved| saved.path.display().to_string()));
        if let Some(old) = replaces {
            let old = old.masked();
            self.warn(format!(
                "{server} does not accept the token {old} any more, which this program registered by itself; a new account \
                 replaces it, and the names of the old one may be lost"
            ));
        }
        match (not_saved, path) {
            (Some(reason), _) => self.warn(format!("cannot save the new token: {reason}")),
            (None, Some(path)) => self.status(&format!("Registered with {server}; token saved to {path}")),
            (None, None) => {}
        }
        self.identity.token = Some((token, "just registered".into()));
        self.has_shown_account = false;
    }

    /// The server has accepted the token.
    fn accepted(&mut self, session: &SessionInfo) {
        if std::mem::replace(&mut self.has_shown_account, true) {
            return;
        }
        let Identity { server, token, saved, is_unbound, has_chosen_dialect, .. } = self.identity.clone();
        let Some(saved) = saved else { return };
        // Another program may have registered the account.
        let token = token.or_else(|| Some((saved.token()?.into_token(), saved.path.display().to_string())));
        if let Some((token, from)) = &token {
            let account =
                if session.account.is_empty() { String::new() } else { format!("Account {}, ", session.account) };
            self.status(&format!("{account}token {} ({from})", token.masked()));
            if is_unbound && let Err(error) = ConfigFile::save_token_for(&saved.path, &server, token) {
                self.warn(format!("cannot save which server the token is for: {error}"));
            }
        }
        let is_new = has_chosen_dialect && session.dialect != Dialect::Native;
        if is_new && let Err(error) = ConfigFile::save_dialect(&saved.path, &server, session.dialect.as_str()) {
            self.warn(format!("cannot save the server's dialect: {error}"));
        }
    }

    /// Adds which token the server refused.
    pub(super) fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let Some((token, from)) = &self.identity.token else { return error };
        match error.downcast_ref::<ConnectError>() {
            Some(ConnectError::Refused { refusal, .. }) if refusal.code == RefusalCode::Unauthorized => {
                error.context(format!("the token {} ({from})", token.masked()))
            }
            // A token that this program registered by itself would be replaced.
            Some(ConnectError::Register { .. }) => {
                error.context(format!("the server does not accept the token {} ({from}) any more", token.masked()))
            }
            _ => error,
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
