//! `.env`: lines `NAME=VALUE`, shared with other programs. Lines that do not have this form are passed over. Values are taken as they
//! are: nothing of the environment is inserted, because the file may come from somebody else.

use std::collections::HashMap;

use crate::text;

/// The variables of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dotenv {
    values: HashMap<String, String>,
    /// Variables whose value has no clear end.
    unclear: Vec<String>,
}

impl Dotenv {
    /// Reads the bytes of a file. Those that are neither UTF-8 nor UTF-16 are read as Latin-1.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let text = text::decode(bytes).unwrap_or_else(|| bytes.iter().copied().map(char::from).collect());
        let mut parsed = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let name = name.trim();
            let name = name.strip_prefix("export ").map_or(name, str::trim_start);
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                continue;
            }
            // The last one counts, as in a shell.
            parsed.unclear.retain(|unclear| unclear != name);
            parsed.values.remove(name);
            match value_of(value.trim()) {
                Some(value) => drop(parsed.values.insert(name.to_owned(), value)),
                None => parsed.unclear.push(name.to_owned()),
            }
        }
        parsed
    }

    /// The value of a variable, which may be empty.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Variables that need quotes, or lack the closing one.
    #[must_use]
    pub fn unclear(&self) -> &[String] {
        &self.unclear
    }
}

/// The value in a text without space around it; `None` when it is not clear where the value ends.
fn value_of(text: &str) -> Option<String> {
    let is_end = |rest: &str| rest.is_empty() || rest.trim_start().starts_with('#');
    if let Some(quoted) = text.strip_prefix('\'') {
        let (value, rest) = quoted.split_once('\'')?;
        return is_end(rest).then(|| value.to_owned());
    }
    if let Some(quoted) = text.strip_prefix('"') {
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next()? {
                '"' => return is_end(characters.as_str()).then_some(value),
                '\\' => match characters.next()? {
                    'n' => value.push('\n'),
                    escaped @ ('"' | '\\' | '$') => value.push(escaped),
                    other => value.extend(['\\', other]),
                },
                character => value.push(character),
            }
        }
    }
    let value = text.split_once(" #").map_or(text, |(value, _)| value.trim_end());
    let value = if value.starts_with('#') { "" } else { value };
    (!value.contains([' ', '\t', '\'', '"'])).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_forms_of_other_programs() {
        for (line, value) in [
            ("A=1", "1"),
            ("export A=1", "1"),
            ("  A = 1  ", "1"),
            ("A='1 # 2'  # comment", "1 # 2"),
            (r#"A="a \"b\" \\ \$C ${D}"#, ""),
            (r#"A="a \"b\" \\ \$C ${D}" # x"#, r#"a "b" \ $C ${D}"#),
            ("A=a#b # c", "a#b"),
            ("A=#c", ""),
            ("A=$HOME", "$HOME"),
            ("A=\r", ""),
            ("A=1\nA=2", "2"),
            ("A=a=b", "a=b"),
        ] {
            assert_eq!(Dotenv::parse(line.as_bytes()).value("A").unwrap_or_default(), value, "{line}");
        }
        assert_eq!(Dotenv::parse(b"A='it\nB=a 'b\nC=\"x\" y").unclear(), ["A", "B", "C"]);
    }

    #[test]
    fn lines_of_other_programs_stop_nothing() {
        let text = b"\xef\xbb\xbf# x\r\nKEY=\"-----BEGIN\nabc==\n-----END\"\nnonsense\n=\nA B=1\nDB=caf\xe9\nPASSWORD='it's\nA=1\r\n";
        let parsed = Dotenv::parse(text);
        assert_eq!(parsed.value("A"), Some("1"));
        assert_eq!(parsed.value("DB"), Some("café"));
    }
}
