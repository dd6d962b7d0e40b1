//! Values that a caller gave and that cannot be right.

use thiserror::Error;

/// A value that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} `{value}`: {reason}")]
pub struct ValidationError {
    /// What was given.
    pub what: &'static str,
    /// Its value.
    pub value: String,
    /// What is expected.
    pub reason: &'static str,
}
