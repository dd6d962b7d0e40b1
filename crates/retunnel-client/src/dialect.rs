//! The protocols that a session can speak.

use std::{fmt, str::FromStr};

use crate::validation::ValidationError;

/// The protocol between client and server. Unless one is chosen, a client tries them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// Streams over one link: all features, with the least overhead.
    Native,
    /// The published protocol 3.x: HTTP, WebSocket and TCP over one WebSocket, without half-close; no reports of visitors.
    V3,
    /// The published protocol 2.x: whole HTTP requests and answers up to 64 MiB; neither WebSocket nor TCP.
    V2,
}

impl Dialect {
    /// The dialects that this build speaks, best first. Without the feature `dialects` it is the native one only.
    pub const ALL: &[Self] =
        if cfg!(feature = "dialects") { &[Self::Native, Self::V3, Self::V2] } else { &[Self::Native] };

    /// `native`, `3` or `2`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::V3 => "3",
            Self::V2 => "2",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let error = || ValidationError {
            what: "dialect",
            value: text.to_owned(),
            reason: "expected native, 3 or 2 (or auto, for the best that the server speaks)",
        };
        Self::ALL.iter().copied().find(|dialect| dialect.as_str() == text).ok_or_else(error)
    }
}
