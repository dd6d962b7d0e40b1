//! MessagePack maps as the published dialects write them: one map for each message, with fields by name. Memory is allocated
//! for bytes that have arrived, never for a length that a peer announces.

use bytes::Bytes;
use rmpv::ValueRef;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    DecodeError,
    limits::{MAX_DEPTH, MAX_HEADERS, MAX_TEXT},
};

/// The fields of one map.
pub(super) struct Fields<'a>(Vec<(ValueRef<'a>, ValueRef<'a>)>);

impl<'a> Fields<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = message;
        let value = rmpv::decode::read_value_ref_with_max_depth(&mut rest, MAX_DEPTH)
            .map_err(|error| DecodeError::MessagePack(error.to_string()))?;
        match value {
            ValueRef::Map(fields) if rest.is_empty() => Ok(Self(fields)),
            ValueRef::Map(_) => Err(DecodeError::MessagePack("bytes after the message".into())),
            _ => Err(DecodeError::MessagePack("not a map".into())),
        }
    }

    /// The last field of this name, as Python's dictionaries keep it.
    pub(super) fn find(&self, name: &str) -> Option<&ValueRef<'a>> {
        self.0.iter().rev().find(|(key, _)| text_of(key) == Some(name)).map(|(_, value)| value)
    }

    /// The same, where nil counts as missing.
    pub(super) fn given(&self, name: &str) -> Option<&ValueRef<'a>> {
        self.find(name).filter(|value| !matches!(value, ValueRef::Nil))
    }

    /// A text; empty when it is missing or nil.
    pub(super) fn text(&self, name: &'static str) -> Result<&'a str, DecodeError> {
        let text = self.long_text(name, "")?;
        if text.len() > MAX_TEXT { Err(DecodeError::Field(name)) } else { Ok(text) }
    }

    /// A text of any length, such as a request target.
    pub(super) fn long_text(&self, name: &'static str, default: &'a str) -> Result<&'a str, DecodeError> {
        self.given(name).map_or(Ok(default), |value| text_of(value).ok_or(DecodeError::Field(name)))
    }

    /// A text; an empty one counts as missing.
    pub(super) fn optional(&self, name: &'static str) -> Result<Option<String>, DecodeError> {
        Ok(Some(self.text(name)?).filter(|text| !text.is_empty()).map(str::to_owned))
    }

    pub(super) fn type_name(&self) -> Result<&'a str, DecodeError> {
        match self.find("Type").or_else(|| self.find("type")) {
            Some(value) => text_of(value).ok_or(DecodeError::Field("Type")),
            None => Err(DecodeError::MissingType),
        }
    }

    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, DecodeError> {
        match self.given(name) {
            None => Ok(None),
            Some(ValueRef::Integer(number)) => number.as_u64().map(Some).ok_or(DecodeError::Field(name)),
            Some(_) => Err(DecodeError::Field(name)),
        }
    }

    /// A port; 0 counts as missing.
    pub(super) fn port(&self, name: &'static str) -> Result<Option<u16>, DecodeError> {
        let port = self.number(name)?.filter(|port| *port != 0);
        port.map(|port| u16::try_from(port).map_err(|_| DecodeError::Field(name))).transpose()
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, DecodeError> {
        match self.given(name) {
            None => Ok(None),
            Some(ValueRef::Boolean(flag)) => Ok(Some(*flag)),
            Some(_) => Err(DecodeError::Field(name)),
        }
    }

    /// Headers as a map or as a list of pairs.
    pub(super) fn headers(&self) -> Result<Vec<(String, String)>, DecodeError> {
        let bad = DecodeError::Field("headers");
        let pair = |name: &ValueRef<'_>, value: &ValueRef<'_>| match (text_of(name), text_of(value)) {
            (Some(name), Some(value)) => Ok((name.to_owned(), value.to_owned())),
            _ => Err(bad.clone()),
        };
        match self.given("headers") {
            None => Ok(Vec::new()),
            Some(ValueRef::Map(entries)) if entries.len() <= MAX_HEADERS => {
                entries.iter().map(|(name, value)| pair(name, value)).collect()
            }
            Some(ValueRef::Array(entries)) if entries.len() <= MAX_HEADERS => entries
                .iter()
                .map(|entry| match entry {
                    ValueRef::Array(both) if both.len() == 2 => pair(&both[0], &both[1]),
                    _ => Err(bad.clone()),
                })
                .collect(),
            Some(_) => Err(bad),
        }
    }

    /// Bytes inside `whole`, whose memory they share; empty when they are missing.
    pub(super) fn bytes(&self, name: &'static str, whole: &Bytes) -> Result<Bytes, DecodeError> {
        match self.given(name) {
            None => Ok(Bytes::new()),
            Some(ValueRef::Binary(bytes)) => Ok(whole.slice_ref(bytes)),
            Some(ValueRef::String(text)) => Ok(whole.slice_ref(text.as_bytes())),
            Some(_) => Err(DecodeError::Field(name)),
        }
    }
}

pub(super) fn text_of<'a>(value: &ValueRef<'a>) -> Option<&'a str> {
    match value {
        ValueRef::String(text) => text.into_str(),
        _ => None,
    }
}

pub(super) fn unknown(name: &str) -> DecodeError {
    DecodeError::UnknownType(name.chars().take(64).collect())
}

/// A byte string.
pub(super) struct Bin<'a>(pub(super) &'a [u8]);

impl Serialize for Bin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Pairs as a map, in their order.
pub(super) struct Map<'a>(pub(super) &'a [(String, String)]);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
