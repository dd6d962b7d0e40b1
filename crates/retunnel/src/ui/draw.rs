//! Draws the model. One page of panes where there is room, else one pane at a time behind tabs.

use qrcode::{EcLevel, QrCode};
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph, Row, Table, Wrap},
};
use retunnel_client::RequestSummary;
use tokio::time::Instant;

use super::{
    look::Look,
    model::{Model, Status, Tab, TunnelRow, Weight},
};
use crate::output::{bytes, duration};

/// From this size on everything is on one page.
const PAGE: (u16, u16) = (100, 30);
/// Bars of traffic beside the figures.
const BARS: u16 = 60;

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, look: Look) {
    let area = frame.area();
    let is_page = area.width >= PAGE.0 && area.height >= PAGE.1;
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(3), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(Paragraph::new(headline(model, look, area.width)), head);
    if is_page {
        let tunnels = u16::try_from(model.tunnels.len()).unwrap_or(u16::MAX).clamp(1, 8) + 3;
        let [top, requests, events] =
            Layout::vertical([Constraint::Length(tunnels.max(7)), Constraint::Min(8), Constraint::Length(8)])
                .areas(body);
        let [left, right] = Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(top);
        for (tab, area) in
            [(Tab::Tunnels, left), (Tab::Traffic, right), (Tab::Requests, requests), (Tab::Events, events)]
        {
            pane(frame, model, look, tab, area, tab == model.tab);
        }
    } else {
        let [tabs, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(body);
        frame.render_widget(tab_bar(model, look), tabs);
        pane(frame, model, look, model.tab, rest, true);
    }
    frame.render_widget(keys(model, look, area.width), foot);
    if model.qr {
        qr(frame, model, look);
    }
}

fn headline(model: &Model, look: Look, width: u16) -> Vec<Line<'static>> {
    let between = look.between();
    let mut first = vec![Span::styled(" ReTunnel ", look.strong(Color::Cyan)), Span::raw(" ")];
    let mut trouble = None;
    match &model.status {
        Status::Online => {
            first.push(Span::styled(format!("{} online", look.dot()), look.strong(Color::Green)));
            let latency =
                model.latency.map_or(String::new(), |rtt| format!("{between}{:.1} ms", rtt.as_secs_f64() * 1000.0));
            let up = duration(model.stats.uptime);
            first.push(Span::raw(format!("{between}{}{latency}{between}up {up}", model.server)));
        }
        Status::Waiting(cause, next) => {
            let left = next.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
            first.push(Span::styled(format!("{} reconnecting", look.dot()), look.strong(Color::Yellow)));
            first
                .push(Span::raw(format!("{between}next try in {left:.0} s{between}the address stays yours meanwhile")));
            trouble = Some(cause.clone());
        }
        Status::Connecting(cause) => {
            first.push(Span::styled(format!("{} reconnecting", look.dot()), look.strong(Color::Yellow)));
            first.push(Span::raw(format!("{between}trying now{between}the address stays yours meanwhile")));
            trouble = Some(cause.clone());
        }
    }
    let mut second = vec![Span::raw(" ")];
    if let Some(tunnel) = model.tunnel() {
        second.push(Span::styled(look.safe(&tunnel.url), look.strong(Color::Cyan).add_modifier(Modifier::UNDERLINED)));
        second.push(Span::styled(format!(" {} {}", look.arrow(), look.safe(&tunnel.target)), look.faint()));
        if model.tunnels.len() > 1 {
            second.push(Span::styled(format!("  ({} of {})", model.selected + 1, model.tunnels.len()), look.faint()));
        }
        trouble = trouble.or_else(|| tunnel.trouble.clone());
    }
    trouble = trouble.or_else(|| model.file.clone());
    let third = match (model.flashed(), trouble, &model.inspector) {
        (Some(text), ..) => Line::styled(format!(" {text}"), look.fg(Color::Cyan)),
        (None, Some(text), _) => Line::styled(
            format!(" {}", look.fitted(&look.safe(&text), usize::from(width).saturating_sub(2))),
            look.fg(Color::Red),
        ),
        (None, None, Some(url)) => Line::styled(format!(" Inspector {url}"), look.faint()),
        (None, None, None) => Line::raw(""),
    };
    vec![first.into(), second.into(), third]
}

fn tab_bar(model: &Model, look: Look) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (number, tab) in Tab::ALL.iter().enumerate() {
        let text = format!(" {} {} ", number + 1, tab.title());
        let style = if *tab == model.tab {
            look.fg(Color::Cyan).add_modifier(Modifier::REVERSED | Modifier::BOLD)
        } else {
            look.faint()
        };
        spans.extend([Span::styled(text, style), Span::raw(" ")]);
    }
    spans.into()
}

fn pane(frame: &mut Frame<'_>, model: &Model, look: Look, tab: Tab, area: Rect, is_active: bool) {
    let mut title = format!(" {} ", tab.title());
    if tab == Tab::Requests && (model.typing || !model.filter.is_empty()) {
        let cursor = if model.typing { "_" } else { "" };
        title = format!(" Requests with `{}{cursor}` ", model.filter);
    }
    if is_active && model.back > 0 && matches!(tab, Tab::Requests | Tab::Events) {
        title = format!("{title}({} newer above) ", model.back);
    }
    let style = if is_active { look.fg(Color::Cyan) } else { look.faint() };
    let block = Block::bordered().border_set(look.border()).border_style(style).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let back = if is_active { model.back } else { 0 };
    match tab {
        Tab::Tunnels => tunnels(frame, model, look, inner, is_active),
        Tab::Traffic => traffic(frame, model, look, inner),
        Tab::Requests => requests(frame, model, look, inner, back),
        Tab::Events => events(frame, model, look, inner, back),
    }
}

fn header(titles: impl IntoIterator<Item = &'static str>, look: Look) -> Row<'static> {
    Row::new(titles.into_iter().map(Line::raw)).style(look.faint().add_modifier(Modifier::BOLD))
}

fn tunnels(frame: &mut Frame<'_>, model: &Model, look: Look, area: Rect, is_active: bool) {
    const STATE: u16 = 7;
    const REQUESTS: u16 = 8;
    let longest = |text: fn(&TunnelRow) -> &str| {
        let longest = model.tunnels.iter().map(|tunnel| text(tunnel).chars().count()).max().unwrap_or(0);
        u16::try_from(longest).unwrap_or(u16::MAX)
    };
    // Three spaces lie between. Where both do not fit the URL is cut: above it is shown whole.
    let columns = area.width.saturating_sub(STATE + REQUESTS + 3);
    let target = longest(|tunnel| &tunnel.target)
        .clamp(13, (columns / 2).max(13))
        .max(columns.saturating_sub(longest(|tunnel| &tunnel.url).saturating_add(1)));
    let url = columns.saturating_sub(target);
    let room = usize::from(area.height.saturating_sub(1));
    let first = (model.selected + 1).saturating_sub(room);
    let online = model.status == Status::Online;
    let rows = model.tunnels.iter().enumerate().skip(first).map(|(place, tunnel)| {
        let (state, color) = match (&tunnel.trouble, online) {
            (Some(_), _) if tunnel.is_gone => ("closed", Color::Red),
            (Some(_), _) => ("trouble", Color::Red),
            (None, true) => ("open", Color::Green),
            (None, false) => ("waiting", Color::Yellow),
        };
        let mark = if place == model.selected && model.tunnels.len() > 1 { ">" } else { " " };
        let row = Row::new([
            Line::raw(look.fitted(&format!("{mark}{}", look.safe(&tunnel.url)), url.into())),
            Line::raw(look.fitted(&look.safe(&tunnel.target), target.into())),
            Line::styled(state, look.fg(color)),
            Line::raw(tunnel.requests.to_string()).alignment(Alignment::Right),
        ]);
        if is_active && place == model.selected && model.tunnels.len() > 1 {
            row.style(Style::new().add_modifier(Modifier::BOLD))
        } else {
            row
        }
    });
    let widths =
        [Constraint::Length(url), Constraint::Length(target), Constraint::Length(STATE), Constraint::Length(REQUESTS)];
    let head = header([" URL", "Local service", "State", "Requests"], look);
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn traffic(frame: &mut Frame<'_>, model: &Model, look: Look, area: Rect) {
    let stats = &model.stats;
    let (rate_in, rate_out) = model.rates();
    let bars = usize::from(area.width.saturating_sub(36).min(BARS));
    let (down, up) = look.down_up();
    let line = |name: &str, rate, total, values: Vec<u64>, color| {
        Line::from(vec![
            Span::styled(format!(" {name:<4}"), look.fg(color)),
            Span::raw(format!("{:>10}/s {:>10} total ", bytes(rate), bytes(total))),
            Span::styled(look.spark(values.into_iter(), bars), look.fg(color)),
        ])
    };
    let (ins, outs) = model.seconds.iter().copied().unzip();
    let lines = vec![
        line(down, rate_in, stats.bytes_in, ins, Color::Blue),
        line(up, rate_out, stats.bytes_out, outs, Color::Magenta),
        Line::raw(format!(" {} requests, {} failed", stats.requests, stats.errors)),
        Line::raw(format!(" {} connections open, {} in all", stats.open_connections, stats.connections)),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn requests(frame: &mut Frame<'_>, model: &Model, look: Look, area: Rect, back: usize) {
    if model.shown().next().is_none() {
        let text = match (model.filter.is_empty(), model.tunnel()) {
            (false, _) => "No request matches. Esc clears the filter.".to_owned(),
            (true, Some(tunnel)) => {
                format!("No requests yet. Open {} in a browser (o), or copy it (c).", look.safe(&tunnel.url))
            }
            (true, None) => "No requests yet.".to_owned(),
        };
        return frame.render_widget(Paragraph::new(text).style(look.faint()).wrap(Wrap { trim: true }), area);
    }
    let several = model.tunnels.len() > 1 && area.width >= 90;
    let rows =
        model.shown().skip(back).take(area.height.into()).map(|(tunnel, request)| row(tunnel, request, several, look));
    let right = |text| Line::raw(text).alignment(Alignment::Right);
    let mut widths = vec![Constraint::Length(7), Constraint::Length(6), Constraint::Length(9), Constraint::Length(9)];
    let mut titles = vec![Line::raw("Method"), Line::raw("Status"), right("Time"), right("Size")];
    if several {
        widths.push(Constraint::Length(14));
        titles.push(Line::raw("Tunnel"));
    }
    widths.push(Constraint::Fill(1));
    titles.push(Line::raw("Path"));
    let head = Row::new(titles).style(look.faint().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn row(tunnel: &str, request: &RequestSummary, several: bool, look: Look) -> Row<'static> {
    let color = match request.status {
        0 => Color::Gray,
        100..400 => Color::Green,
        400..500 => Color::Yellow,
        _ => Color::Red,
    };
    let is_http = !request.method.is_empty();
    let (method, mut path) = if is_http {
        (look.safe(&request.method), look.safe(&request.path))
    } else {
        ("TCP".to_owned(), look.safe(&request.visitor))
    };
    if !request.error.is_empty() {
        path = format!("{path} [{}]", look.safe(&request.error));
    }
    let status = if request.status == 0 { "-".to_owned() } else { request.status.to_string() };
    let right = |text: String| Line::raw(text).alignment(Alignment::Right);
    let mut cells = vec![
        Line::raw(method),
        Line::styled(status, look.strong(color)),
        right(match request.duration_ms {
            0..10_000 => format!("{} ms", request.duration_ms),
            long => format!("{:.1} s", f64::from(long) / 1000.0),
        }),
        right(bytes(request.bytes_out)),
    ];
    if several {
        cells.push(Line::styled(look.safe(tunnel), look.faint()));
    }
    cells.push(Line::raw(path));
    Row::new(cells)
}

fn events(frame: &mut Frame<'_>, model: &Model, look: Look, area: Rect, back: usize) {
    let lines: Vec<Line<'_>> = model
        .notes
        .iter()
        .rev()
        .skip(back)
        .take(area.height.into())
        .map(|note| {
            let style = match note.weight {
                Weight::Good => look.fg(Color::Green),
                Weight::Note => Style::new(),
                Weight::Bad => look.fg(Color::Red),
            };
            let at = format!(" {:>10}  ", duration(note.at));
            Line::from(vec![Span::styled(at, look.faint()), Span::styled(look.safe(&note.text), style)])
        })
        .collect();
    let empty = Paragraph::new(" Nothing happened yet.").style(look.faint());
    frame.render_widget(if lines.is_empty() { empty } else { Paragraph::new(lines) }, area);
}

/// The keys that do something now, as many as fit.
fn keys(model: &Model, look: Look, width: u16) -> Line<'static> {
    let list: &[(&str, &str)] = if model.typing {
        &[("Enter", "keep filter"), ("Esc", "clear")]
    } else if model.qr {
        &[("r", "close"), ("q", "quit")]
    } else if model.inspector.is_some() {
        &[
            ("q", "quit"),
            ("c", "copy URL"),
            ("o", "open"),
            ("i", "inspector"),
            ("/", "filter"),
            ("Tab", "next"),
            ("r", "QR code"),
            ("Up/Down", "scroll"),
        ]
    } else {
        &[
            ("q", "quit"),
            ("c", "copy URL"),
            ("o", "open"),
            ("r", "QR code"),
            ("/", "filter"),
            ("Tab", "next"),
            ("Up/Down", "scroll"),
        ]
    };
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, what) in list {
        used += key.len() + what.len() + 4;
        if used > usize::from(width) {
            break;
        }
        spans.push(Span::styled(format!(" {key} "), Style::new().add_modifier(Modifier::REVERSED)));
        spans.push(Span::styled(format!(" {what} "), look.faint()));
    }
    spans.into()
}

/// The URL for a telephone's camera.
fn qr(frame: &mut Frame<'_>, model: &Model, look: Look) {
    let Some(url) = model.tunnel().map(|tunnel| tunnel.url.clone()) else { return };
    let Ok(code) = QrCode::with_error_correction_level(&url, EcLevel::L) else { return };
    let lines = squares(&code, look);
    let width = lines.first().map_or(0, |line| line.chars().count());
    let (width, height) = (u16::try_from(width).unwrap_or(u16::MAX), u16::try_from(lines.len()).unwrap_or(u16::MAX));
    let whole = frame.area();
    frame.render_widget(Clear, whole);
    if width > whole.width || height > whole.height {
        let text = format!(
            "The QR code needs a terminal of {width} x {height}; this one has {} x {}.\n\n{url}",
            whole.width, whole.height
        );
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), whole);
    }
    let [row] = Layout::vertical([Constraint::Length(height)]).flex(ratatui::layout::Flex::Center).areas(whole);
    let [place] = Layout::horizontal([Constraint::Length(width)]).flex(ratatui::layout::Flex::Center).areas(row);
    let style = if look.color { Style::new().fg(Color::White).bg(Color::Black) } else { Style::new() };
    frame.render_widget(Paragraph::new(lines.into_iter().map(Line::raw).collect::<Vec<_>>()).style(style), place);
    if height < whole.height {
        let text = Line::styled(format!(" {url}"), look.strong(Color::Cyan));
        frame.render_widget(text, Rect { height: 1, ..whole });
    }
}

/// Light modules are drawn, dark ones are the terminal's ground; two modules in each character where it can.
fn squares(code: &QrCode, look: Look) -> Vec<String> {
    /// Light modules around the code, so that cameras find it. Two are half of the norm and enough on a screen.
    const QUIET: usize = 2;
    let inner = code.width();
    let size = inner + 2 * QUIET;
    let is_light = |x: usize, y: usize| {
        let inside = |at: usize| (QUIET..QUIET + inner).contains(&at);
        !(inside(x) && inside(y)) || code[(x - QUIET, y - QUIET)] == qrcode::Color::Light
    };
    if !look.unicode {
        return (0..size).map(|y| (0..size).map(|x| if is_light(x, y) { "##" } else { "  " }).collect()).collect();
    }
    let pair = |x: usize, y: usize| match (is_light(x, y), y + 1 >= size || is_light(x, y + 1)) {
        (true, true) => '█',
        (true, false) => '▀',
        (false, true) => '▄',
        (false, false) => ' ',
    };
    (0..size).step_by(2).map(|y| (0..size).map(|x| pair(x, y)).collect()).collect()
}

#[cfg(test)]
mod tests;
