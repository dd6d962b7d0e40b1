//! The four panes: tunnels, traffic, requests and events.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Table, Wrap},
};
use retunnel_client::RequestSummary;

use super::super::{
    model::{Model, Severity, Status, Tab, TunnelRow},
    theme::Theme,
};
use crate::output::{bytes, duration};

/// Maximum width of a sparkline.
const SPARKLINE: u16 = 60;

/// Draws a pane with its border.
pub(super) fn pane(frame: &mut Frame<'_>, model: &Model, theme: Theme, tab: Tab, area: Rect, is_active: bool) {
    let mut title = format!(" {} ", tab.title());
    if tab == Tab::Requests && (model.typing || !model.filter.is_empty()) {
        let cursor = if model.typing { "_" } else { "" };
        title = format!(" Requests with `{}{cursor}` ", model.filter);
    }
    if is_active && model.back > 0 && matches!(tab, Tab::Requests | Tab::Events) {
        title = format!("{title}({} newer above) ", model.back);
    }
    let style = if is_active { theme.fg(Color::Cyan) } else { theme.faint() };
    let block = Block::bordered().border_set(theme.border()).border_style(style).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let back = if is_active { model.back } else { 0 };
    match tab {
        Tab::Tunnels => tunnels(frame, model, theme, inner, is_active),
        Tab::Traffic => traffic(frame, model, theme, inner),
        Tab::Requests => requests(frame, model, theme, inner, back),
        Tab::Events => events(frame, model, theme, inner, back),
    }
}

fn header(titles: impl IntoIterator<Item = &'static str>, theme: Theme) -> Row<'static> {
    Row::new(titles.into_iter().map(Line::raw)).style(theme.faint().add_modifier(Modifier::BOLD))
}

fn tunnels(frame: &mut Frame<'_>, model: &Model, theme: Theme, area: Rect, is_active: bool) {
    const STATE: u16 = 7;
    const REQUESTS: u16 = 8;
    let longest = |text: fn(&TunnelRow) -> &str| {
        let longest = model.tunnels.iter().map(|tunnel| text(tunnel).chars().count()).max().unwrap_or(0);
        u16::try_from(longest).unwrap_or(u16::MAX)
    };
    // Three spaces separate the columns. If both do not fit, the URL is cut: the headline shows it in full.
    let columns = area.width.saturating_sub(STATE + REQUESTS + 3);
    let target = longest(|tunnel| &tunnel.target)
        .clamp(13, (columns / 2).max(13))
        .max(columns.saturating_sub(longest(|tunnel| &tunnel.url).saturating_add(1)));
    let url = columns.saturating_sub(target);
    let room = usize::from(area.height.saturating_sub(1));
    let first = (model.selected + 1).saturating_sub(room);
    let online = model.status == Status::Online;
    let rows = model.tunnels.iter().enumerate().skip(first).map(|(index, tunnel)| {
        let (state, color) = match (&tunnel.trouble, online) {
            (Some(_), _) if tunnel.is_closed => ("closed", Color::Red),
            (Some(_), _) => ("trouble", Color::Red),
            (None, true) => ("open", Color::Green),
            (None, false) => ("waiting", Color::Yellow),
        };
        let mark = if index == model.selected && model.tunnels.len() > 1 { ">" } else { " " };
        let row = Row::new([
            Line::raw(theme.fitted(&format!("{mark}{}", theme.safe(&tunnel.url)), url.into())),
            Line::raw(theme.fitted(&theme.safe(&tunnel.target), target.into())),
            Line::styled(state, theme.fg(color)),
            Line::raw(tunnel.requests.to_string()).alignment(Alignment::Right),
        ]);
        if is_active && index == model.selected && model.tunnels.len() > 1 {
            row.style(Style::new().add_modifier(Modifier::BOLD))
        } else {
            row
        }
    });
    let widths =
        [Constraint::Length(url), Constraint::Length(target), Constraint::Length(STATE), Constraint::Length(REQUESTS)];
    let head = header([" URL", "Local service", "State", "Requests"], theme);
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn traffic(frame: &mut Frame<'_>, model: &Model, theme: Theme, area: Rect) {
    let stats = &model.stats;
    let (rate_in, rate_out) = model.rates();
    let sparkline = usize::from(area.width.saturating_sub(36).min(SPARKLINE));
    let (down, up) = theme.down_up();
    let line = |name: &str, rate, total, values: Vec<u64>, color| {
        Line::from(vec![
            Span::styled(format!(" {name:<4}"), theme.fg(color)),
            Span::raw(format!("{:>10}/s {:>10} total ", bytes(rate), bytes(total))),
            Span::styled(theme.spark(values.into_iter(), sparkline), theme.fg(color)),
        ])
    };
    let (ins, outs) = model.seconds.iter().copied().unzip();
    let lines = vec![
        line(down, rate_in, stats.bytes_in, ins, Color::Blue),
        line(up, rate_out, stats.bytes_out, outs, Color::Magenta),
        Line::raw(format!(" {} requests, {} failed", stats.requests, stats.errors)),
        Line::raw(format!(" {} connections open, {} total", stats.open_connections, stats.connections)),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn requests(frame: &mut Frame<'_>, model: &Model, theme: Theme, area: Rect, back: usize) {
    if model.shown().next().is_none() {
        let text = match (model.filter.is_empty(), model.tunnel()) {
            (false, _) => "No request matches. Esc clears the filter.".to_owned(),
            (true, Some(tunnel)) => {
                format!("No requests yet. Open {} in a browser (o), or copy it (c).", theme.safe(&tunnel.url))
            }
            (true, None) => "No requests yet.".to_owned(),
        };
        return frame.render_widget(Paragraph::new(text).style(theme.faint()).wrap(Wrap { trim: true }), area);
    }
    let several = model.tunnels.len() > 1 && area.width >= 90;
    let rows =
        model.shown().skip(back).take(area.height.into()).map(|(tunnel, request)| row(tunnel, request, several, theme));
    let right = |text| Line::raw(text).alignment(Alignment::Right);
    let mut widths = vec![Constraint::Length(7), Constraint::Length(6), Constraint::Length(9), Constraint::Length(9)];
    let mut titles = vec![Line::raw("Method"), Line::raw("Status"), right("Time"), right("Size")];
    if several {
        widths.push(Constraint::Length(14));
        titles.push(Line::raw("Tunnel"));
    }
    widths.push(Constraint::Fill(1));
    titles.push(Line::raw("Path"));
    let head = Row::new(titles).style(theme.faint().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn row(tunnel: &str, request: &RequestSummary, several: bool, theme: Theme) -> Row<'static> {
    let color = match request.status {
        0 => Color::Gray,
        100..400 => Color::Green,
        400..500 => Color::Yellow,
        _ => Color::Red,
    };
    let is_http = !request.method.is_empty();
    let (method, mut path) = if is_http {
        (theme.safe(&request.method), theme.safe(&request.path))
    } else {
        ("TCP".to_owned(), theme.safe(&request.visitor))
    };
    if !request.error.is_empty() {
        path = format!("{path} [{}]", theme.safe(&request.error));
    }
    let status = if request.status == 0 { "-".to_owned() } else { request.status.to_string() };
    let right = |text: String| Line::raw(text).alignment(Alignment::Right);
    let mut cells = vec![
        Line::raw(method),
        Line::styled(status, theme.strong(color)),
        right(match request.duration_ms {
            0..10_000 => format!("{} ms", request.duration_ms),
            long => format!("{:.1} s", f64::from(long) / 1000.0),
        }),
        right(bytes(request.bytes_out)),
    ];
    if several {
        cells.push(Line::styled(theme.safe(tunnel), theme.faint()));
    }
    cells.push(Line::raw(path));
    Row::new(cells)
}

fn events(frame: &mut Frame<'_>, model: &Model, theme: Theme, area: Rect, back: usize) {
    let lines: Vec<Line<'_>> = model
        .notes
        .iter()
        .rev()
        .skip(back)
        .take(area.height.into())
        .map(|note| {
            let style = match note.severity {
                Severity::Good => theme.fg(Color::Green),
                Severity::Info => Style::new(),
                Severity::Bad => theme.fg(Color::Red),
            };
            let at = format!(" {:>10}  ", duration(note.at));
            Line::from(vec![Span::styled(at, theme.faint()), Span::styled(theme.safe(&note.text), style)])
        })
        .collect();
    let empty = Paragraph::new(" No events yet.").style(theme.faint());
    frame.render_widget(if lines.is_empty() { empty } else { Paragraph::new(lines) }, area);
}
