//! Draws the model: all panes on one page if they fit, otherwise one pane at a time with tabs.

mod panes;
mod qr;

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};
use tokio::time::Instant;

use self::{panes::pane, qr::qr};
use super::{
    model::{Model, Status, Tab},
    theme::Theme,
};
use crate::output::duration;

/// The smallest size that shows everything on one page.
const PAGE: (u16, u16) = (100, 30);

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme) {
    let area = frame.area();
    let is_page = area.width >= PAGE.0 && area.height >= PAGE.1;
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(3), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(Paragraph::new(headline(model, theme, area.width)), head);
    if is_page {
        let tunnels = u16::try_from(model.tunnels.len()).unwrap_or(u16::MAX).clamp(1, 8) + 3;
        let [top, requests, events] =
            Layout::vertical([Constraint::Length(tunnels.max(7)), Constraint::Min(8), Constraint::Length(8)])
                .areas(body);
        let [left, right] = Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(top);
        for (tab, area) in
            [(Tab::Tunnels, left), (Tab::Traffic, right), (Tab::Requests, requests), (Tab::Events, events)]
        {
            pane(frame, model, theme, tab, area, tab == model.tab);
        }
    } else {
        let [tabs, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(body);
        frame.render_widget(tab_bar(model, theme), tabs);
        pane(frame, model, theme, model.tab, rest, true);
    }
    frame.render_widget(keys(model, theme, area.width), foot);
    if model.qr {
        qr(frame, model, theme);
    }
}

fn headline(model: &Model, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let between = theme.between();
    let mut first = vec![Span::styled(" ReTunnel ", theme.strong(Color::Cyan)), Span::raw(" ")];
    let mut trouble = None;
    match &model.status {
        Status::Online => {
            first.push(Span::styled(format!("{} online", theme.dot()), theme.strong(Color::Green)));
            let latency =
                model.latency.map_or(String::new(), |rtt| format!("{between}{:.1} ms", rtt.as_secs_f64() * 1000.0));
            let up = duration(model.stats.uptime);
            first.push(Span::raw(format!("{between}{}{latency}{between}up {up}", theme.safe(&model.server))));
        }
        Status::Waiting(cause, next) => {
            let left = next.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
            first.push(Span::styled(format!("{} reconnecting", theme.dot()), theme.strong(Color::Yellow)));
            first.push(Span::raw(format!("{between}retrying in {left:.0} s{between}your address is reserved")));
            trouble = Some(cause.clone());
        }
        Status::Connecting(cause) => {
            first.push(Span::styled(format!("{} reconnecting", theme.dot()), theme.strong(Color::Yellow)));
            first.push(Span::raw(format!("{between}retrying now{between}your address is reserved")));
            trouble = Some(cause.clone());
        }
    }
    let mut second = vec![Span::raw(" ")];
    if let Some(tunnel) = model.tunnel() {
        second
            .push(Span::styled(theme.safe(&tunnel.url), theme.strong(Color::Cyan).add_modifier(Modifier::UNDERLINED)));
        second.push(Span::styled(format!(" {} {}", theme.arrow(), theme.safe(&tunnel.target)), theme.faint()));
        if model.tunnels.len() > 1 {
            second.push(Span::styled(format!("  ({} of {})", model.selected + 1, model.tunnels.len()), theme.faint()));
        }
        trouble = trouble.or_else(|| tunnel.trouble.clone());
    }
    trouble = trouble.or_else(|| model.file_trouble.clone());
    let third = match (model.flashed(), trouble, &model.inspector) {
        (Some(text), ..) => Line::styled(format!(" {text}"), theme.fg(Color::Cyan)),
        (None, Some(text), _) => Line::styled(
            format!(" {}", theme.fitted(&theme.safe(&text), usize::from(width).saturating_sub(2))),
            theme.fg(Color::Red),
        ),
        (None, None, Some(url)) => Line::styled(format!(" Inspector {url}"), theme.faint()),
        (None, None, None) => Line::raw(""),
    };
    vec![first.into(), second.into(), third]
}

fn tab_bar(model: &Model, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (number, tab) in Tab::ALL.iter().enumerate() {
        let text = format!(" {} {} ", number + 1, tab.title());
        let style = if *tab == model.tab {
            theme.fg(Color::Cyan).add_modifier(Modifier::REVERSED | Modifier::BOLD)
        } else {
            theme.faint()
        };
        spans.extend([Span::styled(text, style), Span::raw(" ")]);
    }
    spans.into()
}

/// The keys that work now, as many as fit.
fn keys(model: &Model, theme: Theme, width: u16) -> Line<'static> {
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
        spans.push(Span::styled(format!(" {what} "), theme.faint()));
    }
    spans.into()
}

#[cfg(test)]
mod tests;
