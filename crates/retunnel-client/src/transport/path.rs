//! What is known about the path to the server.

use std::{io, time::Duration};

use tokio::time::Instant;

use crate::error::ConnectError;

/// How long a refusal of the upgrade is remembered. Then, when the link is lost, it is tried again: machines move between
/// networks, and proxies get fixed.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What is known about the way to the server.
#[derive(Debug, Default)]
pub(crate) struct PathState {
    /// The upgrade has passed. Who ends a connection without an answer then is a server that restarts.
    pub(super) passed: bool,
    /// Only a WebSocket passed, at this time.
    pub(super) refused: Option<Instant>,
    /// The peer may see the token before it has answered: by TLS it is the server, or the token is its own.
    pub(super) trusted: bool,
    /// An intermediary rejected or lost what came after a request.
    pub(super) minds_early: bool,
}

/// How the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Upgrade,
    WebSocket,
}

impl PathState {
    pub(super) fn new(trusted: bool) -> Self {
        Self { trusted, ..Self::default() }
    }

    /// Whether what a client says first may follow its request at once.
    pub(super) const fn may_be_early(&self) -> bool {
        (self.trusted || self.passed) && !self.minds_early
    }

    pub(super) fn next(&self) -> By {
        match self.refused {
            Some(at) if at.elapsed() < REMEMBERED => By::WebSocket,
            _ => By::Upgrade,
        }
    }

    /// Whether a failed upgrade is caused by an intermediary, or of a server that has no links at all.
    pub(super) fn is_refusal(&self, error: &ConnectError) -> bool {
        matches!(error, ConnectError::NotAServer { .. }) || (is_silent(error) && !self.passed)
    }
}

/// Whether the connection ended without an answer.
pub(super) fn is_silent(error: &ConnectError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ends = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    matches!(error, ConnectError::Unreachable { source, .. } if ends.contains(&source.kind()))
}
