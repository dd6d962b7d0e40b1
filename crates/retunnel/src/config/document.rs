//! YAML text as a tree that knows where each value is written, so that every diagnostic has a position. What a file may
//! contain is up to its reader, for example [`super::tunnels`].

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// Least similarity (Jaro) for suggesting a known key, as in the command line.
const LIKENESS: f64 = 0.75;

/// A position in a file. Both numbers count from 1; both are 0 for the file as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

/// One error in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnostic {
    /// Line, from 1; 0 when the file as a whole is wrong.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "{line}:{}: {}", self.column, self.message),
        }
    }
}

/// The diagnostics of a file, collected while it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Adds a diagnostic. At each position only the first is kept, because the others follow from it.
    pub fn add(&mut self, position: Position, message: impl Into<String>) {
        if self.0.iter().any(|earlier| (earlier.line, earlier.column) == (position.line, position.column)) {
            return;
        }
        self.0.push(Diagnostic { line: position.line, column: position.column, message: message.into() });
    }

    /// All diagnostics.
    #[must_use]
    pub fn list(&self) -> &[Diagnostic] {
        &self.0
    }

    /// Returns what was read if there are no diagnostics.
    ///
    /// # Errors
    /// The diagnostics, in the order of the file.
    pub fn into_result<T>(mut self, read: T) -> Result<T, Self> {
        self.0.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        if self.0.is_empty() { Ok(read) } else { Err(self) }
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, diagnostic) in self.0.iter().enumerate() {
            write!(f, "{}{diagnostic}", if number == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// Keys may come twice.
    Map(Vec<(Key, Node)>),
}

/// A value and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub position: Position,
    /// Whether it comes from a variable. Then text may also stand for a number or a Boolean.
    pub from_variable: bool,
}

/// A key and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Key {
    pub name: String,
    pub position: Position,
}

impl Node {
    /// Parses a text. An empty one is null.
    ///
    /// # Errors
    /// The first position that is not valid YAML. Nothing after it can be parsed.
    pub fn parse(text: &str) -> Result<Self, Diagnostics> {
        if text.trim().is_empty() {
            return Ok(Self { value: Value::Null, position: Position::default(), from_variable: false });
        }
        let options = serde_saphyr::options! {
            // YAML 1.1 reads names such as `y` and `on` as Booleans.
            strict_booleans: true,
            // Reported with all the other diagnostics.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let position = error.location().map_or(Position::default(), position_of);
            let message = error.without_snippet().to_string();
            // The position is already in the diagnostic.
            let repeated = format!(" at line {}, column {}", position.line, position.column);
            let mut diagnostics = Diagnostics::default();
            diagnostics.add(position, format!("not valid YAML: {}", message.replace(&repeated, "").trim()));
            diagnostics
        })
    }

    /// Converts the value to JSON, to be read with serde.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::Text(value) => value.as_str().into(),
            Value::List(values) => values.iter().map(Self::to_json).collect(),
            Value::Map(fields) => fields.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }

    /// The fields of a map with known keys. Null has none.
    pub fn fields<'a>(&'a self, known: &'a [&'a str], what: &str, diagnostics: &mut Diagnostics) -> Fields<'a> {
        let mut fields = Fields { what: what.to_owned(), found: Vec::new() };
        let entries = match &self.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => {
                diagnostics.add(self.position, format!("{what}expected keys with values, such as `{}: …`", known[0]));
                &[]
            }
        };
        for (key, node) in entries {
            if !known.contains(&key.name.as_str()) {
                diagnostics
                    .add(key.position, format!("{what}unknown key `{}`{}", key.name, suggestion(&key.name, known)));
            } else if let Some((first, _)) = fields.found.iter().find(|(earlier, _)| earlier.name == key.name) {
                let line = first.position.line;
                diagnostics
                    .add(key.position, format!("{what}`{}` is given twice, first in line {line}; keep one", key.name));
            } else {
                fields.found.push((key, node));
            }
        }
        fields
    }

    /// The value in a few words, for a message.
    fn shown(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(value) => format!("`{value}`"),
            Value::Number(value) => format!("`{value}`"),
            Value::Text(value) => format!("`{value}`"),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "keys with values".into(),
        }
    }
}

/// The known fields of a map, each once.
#[derive(Debug)]
pub struct Fields<'a> {
    /// Prefix of every message, for example `tunnel `web`: `.
    pub what: String,
    found: Vec<(&'a Key, &'a Node)>,
}

impl<'a> Fields<'a> {
    /// A field; `None` if it is missing or null.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&'a Node> {
        let (_, node) = self.found.iter().find(|(key, _)| key.name == name)?;
        (node.value != Value::Null).then_some(*node)
    }

    /// Where a field's value is.
    #[must_use]
    pub fn position(&self, name: &str) -> Position {
        self.find(name).map_or(Position::default(), |node| node.position)
    }

    /// Adds a diagnostic for a field.
    pub fn wrong(&self, name: &str, message: &str, diagnostics: &mut Diagnostics) {
        diagnostics.add(self.position(name), format!("{}`{name}`: {message}", self.what));
    }

    fn expected(&self, name: &str, what: &str, node: &Node, diagnostics: &mut Diagnostics) {
        self.wrong(name, &format!("expected {what} (got {})", node.shown()), diagnostics);
    }

    /// A field that is text.
    pub fn text(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<String> {
        let node = self.find(name)?;
        match &node.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => self.expected(name, "text; put it in quotes", node, diagnostics),
            _ => self.expected(name, "text", node, diagnostics),
        }
        None
    }

    /// A field that is one of several words. A number may stand for the word that spells it.
    pub fn word(&self, name: &str, words: &[&str], diagnostics: &mut Diagnostics) -> Option<String> {
        let node = self.find(name)?;
        let text = match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        if let Some(word) = text.filter(|text| words.iter().any(|word| word.eq_ignore_ascii_case(text))) {
            return Some(word);
        }
        let (last, others) = words.split_last()?;
        self.expected(name, &format!("{} or {last}", others.join(", ")), node, diagnostics);
        None
    }

    /// A field that is a port. `zero` allows 0, which stands for any port.
    pub fn port(&self, name: &str, zero: bool, diagnostics: &mut Diagnostics) -> Option<u16> {
        let node = self.find(name)?;
        let number = match &node.value {
            Value::Number(number) => number.as_u64(),
            Value::Text(text) if node.from_variable => text.parse().ok(),
            _ => None,
        };
        let port = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0 || zero);
        if port.is_none() {
            let is_quoted = matches!(&node.value, Value::Text(text) if text.parse::<u16>().is_ok());
            let how = if is_quoted { ", without quotes" } else { "" };
            self.expected(name, &format!("a number from 1 to 65535{how}"), node, diagnostics);
        }
        port
    }

    /// A field that is a Boolean.
    pub fn flag(&self, name: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
        let node = self.find(name)?;
        match &node.value {
            Value::Bool(value) => return Some(*value),
            Value::Text(text) if node.from_variable && text == "true" => return Some(true),
            Value::Text(text) if node.from_variable && text == "false" => return Some(false),
            _ => self.expected(name, "true or false", node, diagnostics),
        }
        None
    }
}

/// `; did you mean …?` and the known keys, for the end of a message about an unknown key.
#[must_use]
pub fn suggestion(unknown: &str, known: &[&str]) -> String {
    let likeness = |known: &str| strsim::jaro(known, &unknown.to_ascii_lowercase());
    let best = known.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    let meant = best.filter(|best| likeness(best) >= LIKENESS);
    let question = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    let end = if question.is_empty() { ";" } else { "" };
    format!("{question}{end} known keys: {}", known.join(", "))
}

fn position_of(location: serde_saphyr::Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { value, position: position_of(referenced), from_variable: false })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { name: value, position: position_of(referenced) })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Value::Map(fields))
    }
}
