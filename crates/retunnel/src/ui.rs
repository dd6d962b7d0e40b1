//! The live view: what the tunnels do now, redrawn a few times a second.

use std::{collections::VecDeque, time::Duration};

use anyhow::Result;
use crossterm::event::{Event as Input, EventStream, KeyCode, KeyModifiers};
use futures_util::StreamExt;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Table},
};
use retunnel_client::{Client, RequestSummary, StatsSnapshot, Tunnel};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    commands::{
        signals::Signals,
        tunnels::{Watcher, all_closed, ended},
    },
    output::{bytes, duration},
};

/// Time between two pictures.
const REDRAW: Duration = Duration::from_millis(250);
/// Span over which rates are measured.
const RATE_SPAN: Duration = Duration::from_secs(2);

/// Shows the view until the user or the server ends it. The terminal is given back in every case.
pub(crate) async fn live(
    client: &Client,
    tunnels: &[Tunnel],
    watcher: &mut Watcher,
    signals: &mut Signals,
) -> Result<()> {
    watcher.silent = true;
    let mut terminal = ratatui::try_init()?;
    let result = run(&mut terminal, client, tunnels, watcher, signals).await;
    ratatui::restore();
    watcher.silent = false;
    result
}

async fn run(
    terminal: &mut ratatui::DefaultTerminal,
    client: &Client,
    tunnels: &[Tunnel],
    watcher: &mut Watcher,
    signals: &mut Signals,
) -> Result<()> {
    let mut input = EventStream::new();
    let mut tick = interval(REDRAW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rates = Rates::default();
    let closed = all_closed(tunnels);
    tokio::pin!(closed);
    loop {
        // Every arm is cancel-safe; the pinned future goes on.
        tokio::select! {
            _ = tick.tick() => {
                let stats = client.stats();
                rates.add(&stats);
                let view = View { client, tunnels, stats: &stats, rates: rates.current(), trouble: watcher.trouble.as_deref(), inspector: watcher.inspector.as_deref() };
                terminal.draw(|frame| view.draw(frame))?;
            }
            event = watcher.events.next() => match event {
                Some(event) => watcher.handle(event),
                None => return Ok(()),
            },
            key = input.next() => match key {
                Some(Ok(Input::Key(key))) if key.is_press() => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(_)) | None => signals.next().await,
            },
            error = &mut closed => return Err(error.into()),
            cause = client.ended() => return Err(ended(client, cause).await),
            () = signals.next() => return Ok(()),
        }
    }
}

/// Bytes per second over the last moments.
#[derive(Debug, Default)]
struct Rates {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Rates {
    fn add(&mut self, stats: &StatsSnapshot) {
        let now = Instant::now();
        self.samples.push_back((now, stats.bytes_in, stats.bytes_out));
        while self.samples.front().is_some_and(|(at, ..)| now.duration_since(*at) > RATE_SPAN) {
            self.samples.pop_front();
        }
    }

    fn current(&self) -> (u64, u64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return (0, 0) };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds < 0.1 {
            return (0, 0);
        }
        let rate = |from: u64, to: u64| (to.saturating_sub(from) as f64 / seconds) as u64;
        (rate(first.1, last.1), rate(first.2, last.2))
    }
}

struct View<'a> {
    client: &'a Client,
    tunnels: &'a [Tunnel],
    stats: &'a StatsSnapshot,
    rates: (u64, u64),
    trouble: Option<&'a str>,
    inspector: Option<&'a str>,
}

impl View<'_> {
    fn draw(&self, frame: &mut Frame<'_>) {
        let facts = self.facts();
        let height = u16::try_from(facts.len()).unwrap_or(u16::MAX).saturating_add(2);
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(height), Constraint::Min(3), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(facts).block(Block::bordered().title(" ReTunnel ")), top);
        self.draw_requests(frame, middle);
        let help = Line::from(" q or Ctrl+C ends the tunnel").style(Style::new().fg(Color::DarkGray));
        frame.render_widget(help, bottom);
    }

    fn facts(&self) -> Vec<Line<'static>> {
        let session = self.client.session();
        let status = match &session {
            Some(session) => Span::styled(
                format!("online ({})", session.server),
                Style::new().fg(Color::Green).add_modifier(Modifier::BOLD),
            ),
            None => Span::styled("reconnecting...", Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD)),
        };
        let mut lines = vec![fact("Status", status)];
        if let Some(session) = session {
            lines.push(fact("Account", session.account.into()));
        }
        if let Some(inspector) = self.inspector {
            lines.push(fact("Inspector", inspector.to_owned().into()));
        }
        for tunnel in self.tunnels {
            let url = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);
            lines.push(fact("URL", Span::styled(tunnel.url().to_owned(), url)));
            lines.push(fact("Local", tunnel.info().target.to_string().into()));
        }
        let (rate_in, rate_out) = self.rates;
        lines.push(fact("Received", format!("{} ({}/s)", bytes(self.stats.bytes_in), bytes(rate_in)).into()));
        lines.push(fact("Sent", format!("{} ({}/s)", bytes(self.stats.bytes_out), bytes(rate_out)).into()));
        let requests = format!("{}, {} connections open", self.stats.requests, self.stats.open_connections);
        lines.push(fact("Requests", requests.into()));
        lines.push(fact("Uptime", duration(self.stats.uptime).into()));
        if let Some(trouble) = self.trouble {
            lines.push(fact("Trouble", Span::styled(trouble.to_owned(), Style::new().fg(Color::Red))));
        }
        lines
    }

    fn draw_requests(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.stats.recent.iter().rev().map(row);
        let widths = [
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Min(20),
        ];
        let header =
            Row::new(["Method", "Status", "Time", "Sent", "Path"]).style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" Requests ")), area);
    }
}

fn fact(name: &'static str, value: Span<'static>) -> Line<'static> {
    Line::from(vec![Span::styled(format!(" {name:<10}"), Style::new().fg(Color::DarkGray)), value])
}

fn row(request: &RequestSummary) -> Row<'static> {
    let color = match request.status {
        0 => Color::Gray,
        200..400 => Color::Green,
        400..500 => Color::Yellow,
        _ => Color::Red,
    };
    // What a visitor sent must not move the cursor.
    let safe = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let (method, path) = if request.method.is_empty() {
        ("TCP".to_owned(), safe(&request.visitor))
    } else {
        (safe(&request.method), safe(&request.path))
    };
    let status = if request.status == 0 { "-".to_owned() } else { request.status.to_string() };
    Row::new([method, status, format!("{} ms", request.duration_ms), bytes(request.bytes_out), path])
        .style(Style::new().fg(color))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[tokio::test]
    async fn the_view_shows_requests_and_trouble() {
        let client = Client::builder().start();
        let request = RequestSummary {
            method: "GET".into(),
            path: "/a\u{1b}[2J".into(),
            status: 404,
            duration_ms: 7,
            bytes_out: 2_000,
            bytes_in: 0,
            started_ms: 0,
            visitor: String::new(),
            error: String::new(),
        };
        let mut stats = client.stats();
        stats.recent.push(request);
        let view = View {
            client: &client,
            tunnels: &[],
            stats: &stats,
            rates: (0, 1_500),
            trouble: Some("it rains"),
            inspector: None,
        };
        let mut terminal = Terminal::new(TestBackend::new(80, 20)).expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("drawn");
        let text = terminal.backend().to_string();
        for part in ["reconnecting", "GET", "404", "7 ms", "2.0 kB", "1.5 kB/s", "/a?[2J", "it rains"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
