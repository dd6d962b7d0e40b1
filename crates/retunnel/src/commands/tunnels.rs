//! What `http`, `tcp`, `start` and `demo` share: connect, open, show, and a tidy end.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::Result;
use futures_util::future::join_all;
use retunnel_client::{
    Client, Event, Events, PageCode, RequestSummary, Tunnel, TunnelError, TunnelProtocol, TunnelSpec,
};
use retunnel_config::ConfigFile;
use serde_json::{Value, json};
use tokio::{
    join,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    args::Global,
    commands::{
        descriptors, events, logging,
        reload::{Following, Report, Source, Step},
        signals::Signals,
    },
    inspector::Inspector,
    memory,
    output::{self, Output},
    settings::{Settings, Variables},
    ui::{
        self,
        look::Look,
        waiting::{self, Waiting},
    },
};

/// The server's code for answers of local services that serve only hosts they know.
const HOST_NOT_ALLOWED: &str = PageCode::HostNotAllowed.as_str();
const HOST_HINT: &str =
    "the local service does not answer to the public host name; start again with `--host-header rewrite`";
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_millis(800);

/// Tunnels to open.
pub(crate) enum Wanted {
    /// Of a command line: it opens, or the program ends.
    One(TunnelSpec),
    /// Of a file: one that does not open is reported and does not stop the others.
    File(Box<Source>),
}

/// Connects, opens and serves until Ctrl-C.
pub(crate) fn run(
    wanted: Wanted,
    settings: Settings,
    global: &Global,
    variables: &Variables,
    output: Output,
) -> Result<()> {
    logging::start(global, variables, "warn", false, output.is_interactive())?;
    descriptors::raise();
    // One thread relays faster than two that share the work, and leaves the others to the local service.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut signals = match wanted {
            Wanted::One(_) => Signals::take()?,
            Wanted::File(_) => Signals::take_reloading()?,
        };
        tokio::select! {
            result = serve(wanted, settings, &mut signals, output) => result,
            never = memory::give_back() => match never {},
        }
    });
    // A name lookup under way must not hold the end up.
    runtime.shutdown_background();
    result
}

async fn serve(wanted: Wanted, settings: Settings, signals: &mut Signals, output: Output) -> Result<()> {
    let inspector = inspector(&settings, output).await?;
    let mut builder = settings.builder.clone();
    if let Some(inspector) = &inspector {
        builder = builder.observer(inspector.observer());
    }
    let client = Arc::new(builder.start());
    let mut watcher = Watcher::new(&client, settings, output);
    watcher.inspector = inspector.as_ref().map(Inspector::url);
    let _inspecting = inspector.map(|inspector| inspector.serve(Arc::clone(&client)));
    watcher.begin();
    let opened = tokio::select! {
        opened = open(&client, wanted, &mut watcher, output) => opened,
        () = signals.next() => {
            watcher.waiting = None;
            output.status("Shutting down...");
            let _ = tokio::time::timeout(GOODBYE, client.close()).await;
            return Ok(());
        }
    };
    watcher.waiting = None;
    let outcome = match opened {
        Ok(opened) => show(&client, opened, watcher, signals, output).await,
        Err(error) => Err(error),
    };
    // The server frees names at once when it hears a goodbye.
    let _ = tokio::time::timeout(GOODBYE, client.close()).await;
    outcome
}

/// The inspector, if one is wanted. That no port is free for one that nobody asked for does not stop a tunnel.
async fn inspector(settings: &Settings, output: Output) -> Result<Option<Inspector>> {
    let Some(options) = settings.inspector.clone() else { return Ok(None) };
    let is_asked_for = options.is_asked_for();
    match Inspector::bind(options).await {
        Ok(inspector) => {
            if !inspector.is_private() {
                output
                    .warning(&format!("other machines can reach the inspector and what it shows: {}", inspector.url()));
            }
            Ok(Some(inspector))
        }
        Err(error) if is_asked_for => Err(error.into()),
        Err(error) => {
            output.warning(&format!("there is no inspector: {error}"));
            Ok(None)
        }
    }
}

/// Open tunnels, and where they come from.
pub(crate) struct Opened {
    pub(crate) tunnels: Vec<Tunnel>,
    /// From a command line.
    single: bool,
    /// From a file that may change.
    following: Option<Following>,
}

impl Opened {
    #[cfg(feature = "server")]
    pub(crate) fn one(tunnel: Tunnel) -> Self {
        Self { tunnels: vec![tunnel], single: true, following: None }
    }

    /// Waits for something to do with the file of the tunnels, or until the server has closed them all. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Step, TunnelError> {
        let Some(following) = &mut self.following else { return Err(all_closed(&self.tunnels).await) };
        let is_opening = following.is_opening();
        tokio::select! {
            step = following.next() => Ok(step),
            error = all_closed(&self.tunnels), if !is_opening => Err(error),
        }
    }

    /// Does it, and tells.
    pub(crate) fn step(&mut self, step: Step, watcher: &mut Watcher) -> Option<Report> {
        let report = self.following.as_mut()?.step(step, &mut self.tunnels);
        watcher.report(&report);
        Some(report)
    }
}

async fn all_closed(tunnels: &[Tunnel]) -> TunnelError {
    let mut last = TunnelError::Closed;
    for tunnel in tunnels {
        last = tunnel.closed().await;
    }
    if matches!(last, TunnelError::Closed) {
        // The user closed them through the API, and may open others.
        std::future::pending::<()>().await;
    }
    last
}

async fn open(client: &Arc<Client>, wanted: Wanted, watcher: &mut Watcher, output: Output) -> Result<Opened> {
    // Tunnels are asked for at once: the requests go along with the session's beginning, which spares a round trip.
    match wanted {
        Wanted::One(spec) => {
            let (connected, tunnel) = watcher.during(async { join!(client.connected(), client.open(spec)) }).await;
            connected?;
            Ok(Opened { tunnels: vec![tunnel?], single: true, following: None })
        }
        Wanted::File(source) => {
            let mut tunnels = Vec::new();
            let mut failure = None;
            let entries = source.wanted(&source.file);
            let specs = entries.iter().map(|entry| entry.spec()).collect::<Result<Vec<_>, _>>()?;
            let opening = join_all(specs.into_iter().map(|spec| client.open(spec)));
            let (connected, opened) = watcher.during(async { join!(client.connected(), opening) }).await;
            connected?;
            for (entry, opened) in entries.into_iter().zip(opened) {
                match opened {
                    Ok(tunnel) => tunnels.push(tunnel),
                    Err(error) => {
                        let name = entry.name;
                        output.warning(&format!("tunnel `{name}` is not open: {error}"));
                        failure.get_or_insert(error);
                    }
                }
            }
            match failure {
                Some(error) if tunnels.is_empty() => Err(error.into()),
                _ => {
                    let following = Some(Following::new(Arc::clone(client), *source)?);
                    Ok(Opened { tunnels, single: false, following })
                }
            }
        }
    }
}

/// Prints what was opened and stays until the user or the server ends it.
pub(crate) async fn show(
    client: &Client,
    mut opened: Opened,
    mut watcher: Watcher,
    signals: &mut Signals,
    output: Output,
) -> Result<()> {
    let interactive = output.is_interactive();
    print(&opened, client, watcher.inspector.as_deref(), output, interactive);
    watcher.told_events = output.json_events;
    let outcome = if interactive {
        ui::live(client, &mut opened, &mut watcher, signals).await
    } else {
        plain(&mut opened, client, &mut watcher, signals).await
    };
    output.status("Shutting down...");
    let stats = client.stats();
    drop(opened);
    watcher.tell(&events::line(
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

fn print(opened: &Opened, client: &Client, inspector: Option<&str>, output: Output, interactive: bool) {
    if output.json {
        let line = match opened.tunnels.as_slice() {
            [tunnel] if opened.single => described(tunnel, client, inspector),
            tunnels => {
                let all: Vec<_> = tunnels.iter().map(|tunnel| described(tunnel, client, inspector)).collect();
                // A single one is described in both ways, as the published clients do it from one release to the next.
                let mut line = if let [single] = all.as_slice() { single.clone() } else { json!({}) };
                line["tunnels"] = all.into();
                line
            }
        };
        return output.json(&line);
    }
    for tunnel in &opened.tunnels {
        if !interactive {
            let line =
                if opened.single { tunnel.url().to_owned() } else { format!("{}={}", tunnel.name(), tunnel.url()) };
            output.result(&line);
        }
    }
    if !interactive {
        for tunnel in &opened.tunnels {
            output.status(&format!("Forwarding {} -> {}", tunnel.url(), tunnel.info().target));
        }
        if let Some(url) = inspector {
            output.status(&format!("Inspector {url}"));
        }
        output.status("Press Ctrl+C to stop");
        output.status(&"-".repeat(40));
    }
}

fn described(tunnel: &Tunnel, client: &Client, inspector: Option<&str>) -> Value {
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

/// Lines on stderr until the end.
async fn plain(opened: &mut Opened, client: &Client, watcher: &mut Watcher, signals: &mut Signals) -> Result<()> {
    loop {
        // Every arm is cancel-safe.
        let step = tokio::select! {
            event = watcher.events.next() => match event {
                Some(event) => {
                    watcher.handle(event);
                    continue;
                }
                None => return Ok(()),
            },
            step = opened.next() => step?,
            cause = client.ended() => return Err(ended(client, cause).await),
            () = signals.next() => return Ok(()),
        };
        opened.step(step, watcher);
    }
}

/// The cause of a client's end as an error with its exit code.
pub(crate) async fn ended(client: &Client, cause: String) -> anyhow::Error {
    match client.connected().await {
        Err(error) => error.into(),
        Ok(_) => anyhow::anyhow!(cause),
    }
}

/// Follows a client's events: saves tokens, tells of losses, shows requests.
pub(crate) struct Watcher {
    pub(crate) events: Events,
    settings: Settings,
    output: Output,
    /// The line of a terminal while there is nothing else to show.
    waiting: Option<Waiting>,
    losses: Losses,
    /// A live view shows what happens; lines would destroy it.
    pub(crate) silent: bool,
    /// Every event follows on stdout: the first line is out.
    told_events: bool,
    /// Tunnels whose local service does not take connections.
    down: HashSet<String>,
    /// Tunnels whose local service refused the public host name, and whose user was told.
    hinted: HashSet<String>,
    /// The last thing that went wrong, for the live view.
    pub(crate) trouble: Option<String>,
    /// Where the inspector is, when there is one.
    pub(crate) inspector: Option<String>,
}

impl Watcher {
    pub(crate) fn new(client: &Client, settings: Settings, output: Output) -> Self {
        Self {
            events: client.events(),
            settings,
            output,
            waiting: None,
            losses: Losses::default(),
            silent: false,
            told_events: false,
            down: HashSet::new(),
            hinted: HashSet::new(),
            trouble: None,
            inspector: None,
        }
    }

    fn begin(&mut self) {
        let text = format!("Connecting to ReTunnel server... ({})", self.settings.server);
        if self.output.is_interactive() {
            self.waiting = Some(Waiting::new(Look::of_environment(), text));
        } else {
            self.output.status(&text);
        }
    }

    /// Waits for something while events are followed.
    pub(crate) async fn during<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        tokio::pin!(wanted);
        let mut tick = interval(waiting::REDRAW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Events that came before the result are handled before it.
                biased;
                Some(event) = self.events.next() => drop(self.handle(event)),
                result = &mut wanted => return result,
                _ = tick.tick(), if self.waiting.is_some() => self.waiting.iter_mut().for_each(Waiting::draw),
            }
        }
    }

    fn say(&self, text: &str) {
        if !self.silent {
            self.waiting.iter().for_each(Waiting::clear);
            self.output.status(text);
        }
    }

    fn warn(&mut self, text: String) {
        if !self.silent {
            self.waiting.iter().for_each(Waiting::clear);
            self.output.warning(&text);
        }
        self.trouble = Some(text);
    }

    /// What a changed file did.
    fn report(&mut self, report: &Report) {
        if let Some(event) = &report.event {
            self.tell(event);
        }
        if report.is_bad {
            self.warn(report.lines.join("\n"));
            return;
        }
        if let Some(result) = report.result.as_ref().filter(|_| !self.silent && !self.output.json) {
            self.output.result(result);
        }
        report.lines.iter().for_each(|line| self.say(line));
    }

    /// A line for programs that asked for events.
    pub(crate) fn tell(&self, line: &Value) {
        if self.told_events {
            self.output.json(line);
        }
    }

    /// Follows an event; gives what the user should read beside it.
    pub(crate) fn handle(&mut self, event: Event) -> Option<String> {
        let mut hint = None;
        if let Some(line) = events::of(&event) {
            self.tell(&line);
        }
        match event {
            Event::Registered { token } => {
                let server = self.settings.server.authority();
                match ConfigFile::save_token_for(&self.settings.path, &server, &token) {
                    Ok(()) => {
                        self.say(&format!("Registered with {server}; the token is in {}", self.settings.path.display()))
                    }
                    Err(error) => self.warn(format!("the new token was not saved: {error}")),
                }
            }
            Event::Connecting { attempt } => self.losses.attempt = attempt,
            Event::Disconnected { cause, retry_in, .. } => {
                self.trouble = Some(cause.clone());
                let line = self.losses.line(&cause, retry_in);
                match (&mut self.waiting, line) {
                    (Some(waiting), _) => waiting.failed(cause, retry_in),
                    (None, Some(line)) => self.warn(line),
                    (None, None) => {}
                }
            }
            Event::Connected { .. } => {
                if std::mem::take(&mut self.losses).told.is_some() {
                    self.say("Connected");
                }
                self.trouble = None;
            }
            Event::TunnelFailed { name, refusal } => self.warn(format!("tunnel `{name}` is not open: {refusal}")),
            Event::TunnelClosed { name, refusal } => self.warn(format!("the server closed tunnel `{name}`: {refusal}")),
            Event::LocalUnreachable { tunnel, reason } => {
                self.down.insert(tunnel);
                self.warn(format!("the local service does not answer: {reason}"));
            }
            Event::Request { tunnel, request } => {
                if request.error == HOST_NOT_ALLOWED && self.hinted.insert(tunnel.clone()) {
                    self.tell(&events::line("hint", json!({ "code": HOST_NOT_ALLOWED, "text": HOST_HINT })));
                    self.warn(HOST_HINT.into());
                    hint = Some(HOST_HINT.into());
                }
                if request.error.is_empty() && self.down.remove(&tunnel) {
                    self.tell(&events::line("local_reachable", json!({ "tunnel": tunnel })));
                }
                if request.error.is_empty() {
                    self.trouble = None;
                }
                self.say(&line(&request));
            }
            _ => {}
        }
        hint
    }
}

/// What is told of lost sessions and failed tries: a line for each, unless they come faster than anyone reads.
#[derive(Debug, Default)]
struct Losses {
    attempt: u32,
    /// The last cause, and when it was told.
    told: Option<(String, Instant)>,
}

impl Losses {
    /// Tries that follow each other faster than this are one line in so much time.
    const QUIET: Duration = Duration::from_secs(10);

    /// The line for a failure, if it is told.
    fn line(&mut self, cause: &str, retry_in: Duration) -> Option<String> {
        let now = Instant::now();
        let is_news = match &self.told {
            None => true,
            Some((before, at)) => {
                before != cause || retry_in >= Duration::from_secs(1) || now.duration_since(*at) >= Self::QUIET
            }
        };
        if !is_news {
            return None;
        }
        let is_first = self.told.replace((cause.to_owned(), now)).is_none();
        let when = match retry_in.as_secs_f64() {
            seconds if seconds < 0.05 => "now".to_owned(),
            seconds if seconds < 0.95 => format!("in {seconds:.1} s"),
            seconds => format!("in {seconds:.0} s"),
        };
        let more = match (is_first, self.attempt) {
            (true, _) => " (Ctrl+C stops)".to_owned(),
            (false, attempt) => format!(" (try {} failed)", attempt),
        };
        Some(format!("{cause}; trying again {when}{more}"))
    }
}

/// A request as one line.
pub(crate) fn line(request: &RequestSummary) -> String {
    let what = if request.method.is_empty() {
        format!("TCP {}", request.visitor)
    } else {
        format!("{} {} {}", request.method, request.path, request.status)
    };
    let error = if request.error.is_empty() { String::new() } else { format!(" [{}]", request.error) };
    let safe: String = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{safe} {} ms{error}", request.duration_ms)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_try_has_a_line_unless_they_come_too_fast() {
        let mut losses = Losses::default();
        let mut told = Vec::new();
        let (lost, refused) = ("connection lost", "connection refused");
        let seconds = [(lost, 0.0), (refused, 0.4), (refused, 0.7), (refused, 0.6), (refused, 1.5), (refused, 16.0)];
        for (number, (cause, seconds)) in seconds.into_iter().enumerate() {
            losses.attempt = number as u32;
            let retry_in = Duration::from_secs_f64(seconds);
            told.extend(losses.line(cause, retry_in));
            advance(retry_in).await;
        }
        assert_eq!(
            told,
            [
                "connection lost; trying again now (Ctrl+C stops)",
                "connection refused; trying again in 0.4 s (try 1 failed)",
                "connection refused; trying again in 2 s (try 4 failed)",
                "connection refused; trying again in 16 s (try 5 failed)",
            ]
        );
        let quick = Duration::from_millis(500);
        let count = (0..60).filter(|_| losses.line(refused, quick).is_some()).count();
        assert!(count <= 1, "{count}");
    }
}
