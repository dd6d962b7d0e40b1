//! Text from visitors, servers and local services without what a terminal would act on: control characters (also C1) and
//! characters that change the direction of the text.

use std::fmt::{self, Write};

/// Whether a terminal only shows this character.
pub(crate) fn is_printable(c: char) -> bool {
    let is_direction = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !c.is_control() && !is_direction
}

/// Text as one line.
pub(crate) fn line(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) { c } else { '?' }).collect()
}

/// Text whose line ends and tabs are meant.
pub(crate) fn lines(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) || matches!(c, '\n' | '\t') { c } else { '?' }).collect()
}

/// JSON with such characters escaped. They occur in strings only.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) || c == '\n' {
            out.push(c);
        } else {
            write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes everything");
        }
    }
    out
}

/// Escapes such characters in what is written.
pub(crate) struct Escaping<W>(pub(crate) W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                c if is_printable(c) => self.0.write_char(c)?,
                c => write!(self.0, "{}", c.escape_default())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACK: &str = "a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}b\r\nc\u{2028}é";

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        assert_eq!(line(ATTACK), "a?[2J?31m??b??c?é");
        assert_eq!(lines(ATTACK), "a?[2J?31m??b?\nc?é");
        let mut escaped = Escaping(String::new());
        write!(escaped, "{ATTACK}").expect("memory");
        assert_eq!(escaped.0, r"a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}b\r\nc\u{2028}é");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "path": ATTACK });
        let text = json(&value.to_string());
        assert!(text.chars().all(is_printable), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }
}
