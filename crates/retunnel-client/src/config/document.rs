//! A YAML text as a tree that knows where each value is written, so that every mistake is shown at its place. What a file
//! may say is the matter of its reader, as [`super::yaml`].

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// How much a key may differ from a known one to be taken for it, as in the command line.
const LIKENESS: f64 = 0.75;

/// Where something is written; both count from 1, and are 0 when it is about the file as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mistake {
    /// Line, from 1; 0 when the file as a whole is wrong.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "{line}:{}: {}", self.column, self.message),
        }
    }
}

/// The mistakes of a file, gathered while it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Notes one more. Of several at the same place only the first: the others follow from it.
    pub fn add(&mut self, place: Place, message: impl Into<String>) {
        if self.0.iter().any(|earlier| (earlier.line, earlier.column) == (place.line, place.column)) {
            return;
        }
        self.0.push(Mistake { line: place.line, column: place.column, message: message.into() });
    }

    /// All of them, in the order of the file.
    #[must_use]
    pub fn list(&self) -> &[Mistake] {
        &self.0
    }

    /// What was read, when nothing is wrong with it.
    ///
    /// # Errors
    /// The mistakes, in the order of the file.
    pub fn or<T>(mut self, read: T) -> Result<T, Self> {
        self.0.sort_by_key(|mistake| (mistake.line, mistake.column));
        if self.0.is_empty() { Ok(read) } else { Err(self) }
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if number == 0 { "" } else { "\n" })?;
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
    pub place: Place,
    /// Variables were put into it, so that it may stand for a number or truth value too.
    pub from_variable: bool,
}

/// A key and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Key {
    pub name: String,
    pub place: Place,
}

impl Node {
    /// Reads a text. An empty one is null.
    ///
    /// # Errors
    /// The first place where it is not YAML; what comes behind cannot be understood.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        if text.trim().is_empty() {
            return Ok(Self { value: Value::Null, place: Place::default(), from_variable: false });
        }
        let options = serde_saphyr::options! {
            // YAML 1.1 reads names such as `y` and `on` as truth values.
            strict_booleans: true,
            // Reported with all the other mistakes.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let place = error.location().map_or(Place::default(), place_of);
            let message = error.without_snippet().to_string();
            // The place is told once.
            let told = format!(" at line {}, column {}", place.line, place.column);
            let mut mistakes = Mistakes::default();
            mistakes.add(place, format!("not valid YAML: {}", message.replace(&told, "").trim()));
            mistakes
        })
    }

    /// As JSON, for what is read with serde.
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

    /// The fields of a map whose keys are known; null has none.
    pub fn fields<'a>(&'a self, known: &'a [&'a str], what: &str, mistakes: &mut Mistakes) -> Fields<'a> {
        let mut fields = Fields { what: what.to_owned(), found: Vec::new() };
        let entries = match &self.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => {
                mistakes.add(self.place, format!("{what}expected keys with values, as `{}: …`", known[0]));
                &[]
            }
        };
        for (key, node) in entries {
            if !known.contains(&key.name.as_str()) {
                mistakes.add(key.place, format!("{what}unknown key `{}`{}", key.name, suggestion(&key.name, known)));
            } else if let Some((first, _)) = fields.found.iter().find(|(earlier, _)| earlier.name == key.name) {
                let line = first.place.line;
                mistakes.add(key.place, format!("{what}`{}` is given twice, first in line {line}; keep one", key.name));
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
    /// What begins every message, as `tunnel `web`: `.
    pub what: String,
    found: Vec<(&'a Key, &'a Node)>,
}

impl<'a> Fields<'a> {
    /// A field, unless it is missing or null.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&'a Node> {
        let (_, node) = self.found.iter().find(|(key, _)| key.name == name)?;
        (node.value != Value::Null).then_some(*node)
    }

    /// Where a field's value is.
    #[must_use]
    pub fn place(&self, name: &str) -> Place {
        self.find(name).map_or(Place::default(), |node| node.place)
    }

    /// Notes what is wrong with a field.
    pub fn wrong(&self, name: &str, message: &str, mistakes: &mut Mistakes) {
        mistakes.add(self.place(name), format!("{}`{name}`: {message}", self.what));
    }

    fn expected(&self, name: &str, what: &str, node: &Node, mistakes: &mut Mistakes) {
        self.wrong(name, &format!("expected {what} (got {})", node.shown()), mistakes);
    }

    /// A field that is text.
    pub fn text(&self, name: &str, mistakes: &mut Mistakes) -> Option<String> {
        let node = self.find(name)?;
        match &node.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => self.expected(name, "text; put it in quotes", node, mistakes),
            _ => self.expected(name, "text", node, mistakes),
        }
        None
    }

    /// A field that is one of some words; a number may stand for the word that spells it.
    pub fn word(&self, name: &str, words: &[&str], mistakes: &mut Mistakes) -> Option<String> {
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
        self.expected(name, &format!("{} or {last}", others.join(", ")), node, mistakes);
        None
    }

    /// A field that is a port; `zero` when 0 stands for any.
    pub fn port(&self, name: &str, zero: bool, mistakes: &mut Mistakes) -> Option<u16> {
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
            self.expected(name, &format!("a number from 1 to 65535{how}"), node, mistakes);
        }
        port
    }

    /// A field that is a truth value.
    pub fn flag(&self, name: &str, mistakes: &mut Mistakes) -> Option<bool> {
        let node = self.find(name)?;
        match &node.value {
            Value::Bool(value) => return Some(*value),
            Value::Text(text) if node.from_variable && text == "true" => return Some(true),
            Value::Text(text) if node.from_variable && text == "false" => return Some(false),
            _ => self.expected(name, "true or false", node, mistakes),
        }
        None
    }
}

/// `; did you mean …?` and the known keys, to put behind a message about an unknown one.
#[must_use]
pub fn suggestion(unknown: &str, known: &[&str]) -> String {
    let likeness = |known: &str| strsim::jaro(known, &unknown.to_ascii_lowercase());
    let best = known.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    let meant = best.filter(|best| likeness(best) >= LIKENESS);
    let question = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    let end = if question.is_empty() { ";" } else { "" };
    format!("{question}{end} known are {}", known.join(", "))
}

fn place_of(location: serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { value, place: place_of(referenced), from_variable: false })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { name: value, place: place_of(referenced) })
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
