//! Values from a caller that are not valid.

use thiserror::Error;

/// A value that is not valid.
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
