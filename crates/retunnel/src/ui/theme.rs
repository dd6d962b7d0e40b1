//! What the terminal can show: colours or none, Unicode or ASCII.

use ratatui::{
    style::{Color, Modifier, Style},
    symbols::border,
};

use crate::printable::is_printable;

/// Borders that every terminal can show.
const ASCII: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

/// How to draw on this terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theme {
    pub(crate) color: bool,
    pub(crate) unicode: bool,
}

impl Theme {
    /// From the environment: `NO_COLOR` and the character set of the locale.
    pub(crate) fn from_environment() -> Self {
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { color: value("NO_COLOR").is_none(), unicode: is_unicode(value) }
    }

    pub(crate) fn fg(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    /// Less important than the text around it.
    pub(crate) fn faint(self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    pub(crate) fn strong(self, color: Color) -> Style {
        self.fg(color).add_modifier(Modifier::BOLD)
    }

    pub(crate) const fn border(self) -> border::Set<'static> {
        if self.unicode { border::ROUNDED } else { ASCII }
    }

    pub(crate) const fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    pub(crate) const fn dot(self) -> &'static str {
        if self.unicode { "●" } else { "*" }
    }

    pub(crate) const fn between(self) -> &'static str {
        if self.unicode { " · " } else { " | " }
    }

    pub(crate) const fn down_up(self) -> (&'static str, &'static str) {
        if self.unicode { ("↓", "↑") } else { ("in", "out") }
    }

    /// A frame of the spinner.
    pub(crate) const fn spinner(self, frame: usize) -> char {
        const UNICODE: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
        const ASCII: [char; 4] = ['|', '/', '-', '\\'];
        if self.unicode { UNICODE[frame % UNICODE.len()] } else { ASCII[frame % ASCII.len()] }
    }

    /// Text shortened to a number of columns, with an ellipsis if it was too long.
    pub(crate) fn fitted(self, text: &str, columns: usize) -> String {
        if text.chars().count() <= columns {
            return text.to_owned();
        }
        let ellipsis = if self.unicode { "…" } else { "..." };
        let kept: String = text.chars().take(columns.saturating_sub(ellipsis.chars().count())).collect();
        kept + ellipsis
    }

    /// A sparkline, the newest value on the right.
    pub(crate) fn spark(self, values: impl DoubleEndedIterator<Item = u64> + Clone, width: usize) -> String {
        let levels: &[char] = if self.unicode {
            &[' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            &[' ', '.', ':', '-', '=', '+', '*', '#', '@']
        };
        let newest: Vec<u64> = values.rev().take(width).collect();
        let highest = newest.iter().copied().max().unwrap_or(0).max(1);
        let steps = levels.len() as u64 - 1;
        let bar = |value: u64| levels[usize::try_from((value * steps).div_ceil(highest)).unwrap_or(0)];
        let drawn: String = newest.into_iter().rev().map(bar).collect();
        format!("{drawn:>width$}")
    }

    /// Text from peers without characters that move the cursor, change the text direction, or cannot be shown.
    pub(crate) fn safe(self, text: &str) -> String {
        let is_shown = |c: char| is_printable(c) && (self.unicode || c.is_ascii());
        text.chars().map(|c| if is_shown(c) { c } else { '?' }).collect()
    }
}

/// The first of these variables that is set decides, as in the C library. Windows and macOS show Unicode anyway.
fn is_unicode(value: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| value(name));
    match locale.map(|locale| locale.to_ascii_lowercase().replace('-', "")) {
        Some(locale) => locale.contains("utf8"),
        None => cfg!(any(windows, target_os = "macos")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_decides_about_unicode() {
        let with = |pairs: &'static [(&str, &str)]| {
            is_unicode(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(with(&[("LANG", "C.UTF-8")]));
        assert!(with(&[("LC_ALL", "de_DE.utf8"), ("LANG", "C")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!with(&[("LANG", "en_US.ISO-8859-1")]));
    }

    #[test]
    fn bars_grow_with_their_values() {
        let theme = Theme { color: false, unicode: true };
        assert_eq!(theme.spark([0, 1, 4, 8].into_iter(), 6), "   ▁▄█");
        assert_eq!(theme.spark([0, 1, 4, 8].into_iter(), 2), "▄█");
        assert_eq!(theme.spark([0, 0].into_iter(), 2), "  ");
    }

    #[test]
    fn text_from_peers_is_harmless() {
        let theme = Theme { color: true, unicode: true };
        assert_eq!(theme.safe("/a\u{1b}[2J\u{202e}é"), "/a?[2J?é");
        assert_eq!(Theme { unicode: false, ..theme }.safe("é"), "?");
    }
}
