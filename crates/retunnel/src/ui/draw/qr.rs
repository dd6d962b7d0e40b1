//! The public URL as a QR code.

use qrcode::{EcLevel, QrCode};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style},
    text::Line,
    widgets::{Clear, Paragraph, Wrap},
};

use super::super::{model::Model, theme::Theme};

/// Covers the screen with the URL of the selected tunnel, for a phone's camera.
pub(super) fn qr(frame: &mut Frame<'_>, model: &Model, theme: Theme) {
    let Some(url) = model.tunnel().map(|tunnel| tunnel.url.clone()) else { return };
    let Ok(code) = QrCode::with_error_correction_level(&url, EcLevel::L) else { return };
    let lines = squares(&code, theme);
    let width = lines.first().map_or(0, |line| line.chars().count());
    let (width, height) = (u16::try_from(width).unwrap_or(u16::MAX), u16::try_from(lines.len()).unwrap_or(u16::MAX));
    let screen = frame.area();
    frame.render_widget(Clear, screen);
    if width > screen.width || height > screen.height {
        let text = format!(
            "The QR code needs a terminal of {width} x {height}; this one has {} x {}.\n\n{url}",
            screen.width, screen.height
        );
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), screen);
    }
    let [row] = Layout::vertical([Constraint::Length(height)]).flex(ratatui::layout::Flex::Center).areas(screen);
    let [code_area] = Layout::horizontal([Constraint::Length(width)]).flex(ratatui::layout::Flex::Center).areas(row);
    let style = if theme.color { Style::new().fg(Color::White).bg(Color::Black) } else { Style::new() };
    frame.render_widget(Paragraph::new(lines.into_iter().map(Line::raw).collect::<Vec<_>>()).style(style), code_area);
    if height < screen.height {
        let text = Line::styled(format!(" {url}"), theme.strong(Color::Cyan));
        frame.render_widget(text, Rect { height: 1, ..screen });
    }
}

/// Light modules are drawn, dark ones are the background. With Unicode each character holds two modules.
pub(super) fn squares(code: &QrCode, theme: Theme) -> Vec<String> {
    /// Light modules around the code, so that cameras find it. Two are half of the standard and enough on a screen.
    const QUIET: usize = 2;
    let inner = code.width();
    let size = inner + 2 * QUIET;
    let is_light = |x: usize, y: usize| {
        let inside = |at: usize| (QUIET..QUIET + inner).contains(&at);
        !(inside(x) && inside(y)) || code[(x - QUIET, y - QUIET)] == qrcode::Color::Light
    };
    if !theme.unicode {
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
