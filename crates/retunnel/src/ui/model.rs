//! The state of the view: updated by events, statistics and keys. Nothing here draws.

use std::{collections::VecDeque, time::Duration};

use retunnel_client::{Event, RequestSummary, StatsSnapshot, TunnelInfo};
use tokio::time::Instant;

/// Requests that can be scrolled back to.
const REQUESTS: usize = 500;
/// Events that can be scrolled back to.
const EVENTS: usize = 200;
/// Seconds of traffic in the sparklines.
const SECONDS: usize = 120;
/// Maximum length of the filter.
const FILTER: usize = 60;

/// A part of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tab {
    Tunnels,
    Traffic,
    Requests,
    Events,
}

impl Tab {
    pub(crate) const ALL: [Self; 4] = [Self::Tunnels, Self::Traffic, Self::Requests, Self::Events];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Tunnels => "Tunnels",
            Self::Traffic => "Traffic",
            Self::Requests => "Requests",
            Self::Events => "Events",
        }
    }
}

/// The state of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Online,
    /// Lost, with the cause and the time of the next attempt.
    Waiting(String, Instant),
    /// Reconnecting now, after this cause.
    Connecting(String),
}

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Good,
    Info,
    Bad,
}

/// A line in the list of events.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    /// Time since the view was started.
    pub(crate) at: Duration,
    pub(crate) severity: Severity,
    pub(crate) text: String,
}

/// A tunnel in the list of tunnels.
#[derive(Debug, Clone)]
pub(crate) struct TunnelRow {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) target: String,
    pub(crate) requests: u64,
    /// Why it does not work.
    pub(crate) trouble: Option<String>,
    /// The server closed it for good. It stays in the list with the reason.
    pub(crate) is_closed: bool,
}

/// Everything the view shows.
#[derive(Debug)]
pub(crate) struct Model {
    started: Instant,
    pub(crate) status: Status,
    pub(crate) server: String,
    pub(crate) account: String,
    pub(crate) latency: Option<Duration>,
    pub(crate) inspector: Option<String>,
    pub(crate) tunnels: Vec<TunnelRow>,
    /// What is wrong with the tunnels file.
    pub(crate) file_trouble: Option<String>,
    pub(crate) stats: StatsSnapshot,
    requests: VecDeque<(String, RequestSummary)>,
    pub(crate) notes: VecDeque<Note>,
    /// Bytes in and out of each second, the newest last.
    pub(crate) seconds: VecDeque<(u64, u64)>,
    second: Instant,
    counted: (u64, u64),
    pub(crate) tab: Tab,
    /// The tunnel that copy, open and QR code apply to.
    pub(crate) selected: usize,
    /// Lines scrolled back in requests and events.
    pub(crate) back: usize,
    pub(crate) filter: String,
    /// The filter is being typed.
    pub(crate) typing: bool,
    pub(crate) qr: bool,
    /// A short reply to a key, and when it disappears.
    flash: Option<(String, Instant)>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            status: Status::Online,
            server: String::new(),
            account: String::new(),
            latency: None,
            inspector: None,
            tunnels: Vec::new(),
            file_trouble: None,
            stats: StatsSnapshot::default(),
            requests: VecDeque::new(),
            notes: VecDeque::new(),
            seconds: VecDeque::new(),
            second: now,
            counted: (0, 0),
            tab: Tab::Requests,
            selected: 0,
            back: 0,
            filter: String::new(),
            typing: false,
            qr: false,
            flash: None,
        }
    }

    /// The selected tunnel.
    pub(crate) fn tunnel(&self) -> Option<&TunnelRow> {
        self.tunnels.get(self.selected).or_else(|| self.tunnels.first())
    }

    /// Replaces the open tunnels.
    pub(crate) fn set_tunnels(&mut self, open: Vec<(TunnelInfo, StatsSnapshot)>) {
        let selected = self.tunnel().map(|row| row.name.clone());
        let before = std::mem::take(&mut self.tunnels);
        let trouble = |name: &str| before.iter().find(|row| row.name == name && !row.is_closed)?.trouble.clone();
        self.tunnels = open
            .into_iter()
            .map(|(info, stats)| TunnelRow {
                trouble: trouble(&info.name),
                name: info.name,
                url: info.url,
                target: info.target.to_string(),
                requests: stats.requests,
                is_closed: false,
            })
            .collect();
        let is_open = |row: &TunnelRow| self.tunnels.iter().any(|open| open.name == row.name);
        let closed: Vec<TunnelRow> = before.into_iter().filter(|row| row.is_closed && !is_open(row)).collect();
        self.tunnels.extend(closed);
        let position = self.tunnels.iter().position(|row| Some(&row.name) == selected.as_ref());
        self.selected = position.unwrap_or(0);
    }

    /// Removes the tunnels that the server closed for good.
    pub(crate) fn remove_closed(&mut self) {
        self.tunnels.retain(|row| !row.is_closed);
    }

    /// Replaces the statistics and updates the traffic of each second.
    pub(crate) fn set_stats(&mut self, stats: StatsSnapshot) {
        while self.second.elapsed() >= Duration::from_secs(1) {
            self.second += Duration::from_secs(1);
            let moved = (
                stats.bytes_in - self.counted.0.min(stats.bytes_in),
                stats.bytes_out - self.counted.1.min(stats.bytes_out),
            );
            self.counted = (stats.bytes_in, stats.bytes_out);
            if self.seconds.len() == SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back(moved);
        }
        self.stats = stats;
    }

    /// Bytes per second, in and out.
    pub(crate) fn rates(&self) -> (u64, u64) {
        self.seconds.back().copied().unwrap_or_default()
    }

    /// The requests that match the filter, newest first.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &(String, RequestSummary)> {
        let filter = self.filter.to_lowercase();
        self.requests.iter().rev().filter(move |(tunnel, request)| {
            filter.is_empty()
                || [&request.method, &request.path, &request.error, &request.visitor, tunnel]
                    .iter()
                    .any(|text| text.to_lowercase().contains(&filter))
                || request.status.to_string().starts_with(&filter)
        })
    }

    /// Applies an event.
    pub(crate) fn handle(&mut self, event: &Event) {
        match event {
            Event::Connecting { .. } => {
                if let Status::Waiting(cause, _) = &self.status {
                    self.status = Status::Connecting(cause.clone());
                }
            }
            Event::Connected { session, .. } => {
                self.status = Status::Online;
                self.server.clone_from(&session.server);
                self.account.clone_from(&session.account);
                self.note(Severity::Good, format!("connected to {}", session.server));
            }
            Event::Disconnected { cause, retry_in, .. } => {
                let cause = cause.to_string();
                // A server that restarts takes many attempts; one line is enough.
                if self.status == Status::Online {
                    self.note(Severity::Bad, cause.clone());
                }
                self.status = Status::Waiting(cause, Instant::now() + *retry_in);
            }
            Event::TunnelOpened(info) => self.note(Severity::Good, format!("{} is open", info.url)),
            Event::TunnelRestored(info) => {
                self.trouble(&info.name, None);
                self.note(Severity::Good, format!("{} is open again", info.url));
            }
            Event::TunnelFailed { name, refusal, .. } | Event::TunnelClosed { name, refusal, .. } => {
                self.trouble(name, Some(refusal.to_string()));
                if let Some(row) = self.tunnels.iter_mut().find(|row| row.name == *name) {
                    row.is_closed = matches!(event, Event::TunnelClosed { .. });
                }
                self.note(Severity::Bad, format!("tunnel {name}: {refusal}"));
            }
            Event::LocalUnreachable { tunnel, reason, .. } => {
                let is_news = self.trouble(tunnel, Some(format!("local service: {reason}")));
                if is_news {
                    self.note(Severity::Bad, format!("the local service of {tunnel} does not answer: {reason}"));
                }
            }
            Event::OutOfDescriptors { refused, .. } => {
                self.note(Severity::Bad, format!("no file descriptor is left: visitors get 503 ({refused} so far)"));
            }
            Event::Request { tunnel, request, .. } => {
                if request.error.is_empty() && self.trouble(tunnel, None) {
                    self.note(Severity::Good, format!("the local service of {tunnel} answers again"));
                }
                if self.requests.len() == REQUESTS {
                    self.requests.pop_front();
                }
                self.requests.push_back((tunnel.clone(), request.clone()));
                // A view that is scrolled back keeps showing the same lines.
                if self.back > 0 && self.tab == Tab::Requests {
                    self.back += 1;
                }
            }
            _ => {}
        }
    }

    /// Sets or clears what is wrong with a tunnel. Returns whether it was fine before and is not now, or the other way round.
    fn trouble(&mut self, name: &str, trouble: Option<String>) -> bool {
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.name == name) else { return false };
        let is_news = tunnel.trouble.is_some() != trouble.is_some();
        tunnel.trouble = trouble;
        is_news
    }

    pub(crate) fn note(&mut self, severity: Severity, text: String) {
        if self.notes.len() == EVENTS {
            self.notes.pop_front();
        }
        self.notes.push_back(Note { at: self.started.elapsed(), severity, text });
    }

    /// Shows a reply to a key for a moment.
    pub(crate) fn flash(&mut self, text: impl Into<String>) {
        self.flash = Some((text.into(), Instant::now() + Duration::from_secs(3)));
    }

    pub(crate) fn flashed(&self) -> Option<&str> {
        self.flash.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(text, _)| text.as_str())
    }

    pub(crate) fn next_tab(&mut self, step: usize) {
        let position = Tab::ALL.iter().position(|tab| *tab == self.tab).unwrap_or(0);
        self.go_to(Tab::ALL[(position + step) % Tab::ALL.len()]);
    }

    pub(crate) fn go_to(&mut self, tab: Tab) {
        (self.tab, self.back) = (tab, 0);
    }

    /// Scrolls towards older lines, or selects the next tunnel.
    pub(crate) fn scroll(&mut self, lines: isize) {
        let (at, last) = match self.tab {
            Tab::Tunnels => (&mut self.selected, self.tunnels.len()),
            Tab::Events => (&mut self.back, self.notes.len()),
            Tab::Requests => {
                let last = self.shown().count();
                (&mut self.back, last)
            }
            Tab::Traffic => return,
        };
        *at = at.saturating_add_signed(lines).min(last.saturating_sub(1));
    }

    /// Adds a character to the filter; `None` removes the last one.
    pub(crate) fn type_filter(&mut self, character: Option<char>) {
        match character {
            Some(character) if self.filter.len() < FILTER => self.filter.push(character),
            Some(_) => {}
            None => drop(self.filter.pop()),
        }
        self.back = 0;
    }
}
