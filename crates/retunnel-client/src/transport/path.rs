//! What is known about the path to the server.

use std::{io, time::Duration};

use tokio::time::Instant;

use crate::error::ConnectError;

/// How long a refusal of the upgrade is remembered. After that a lost link tries the upgrade again: machines move between
/// networks, and proxies are fixed.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What is known about the way to the server.
#[derive(Debug, Default)]
pub(crate) struct PathState {
    /// The upgrade has passed. If a connection ends without an answer, the server is restarting.
    pub(super) passed: bool,
    /// When only a WebSocket passed.
    pub(super) refused: Option<Instant>,
    /// The token may be sent before the server has answered: it was saved for this very server, or just issued by it.
    pub(super) trusted: bool,
    /// A proxy on the path rejected, or lost, early data.
    pub(super) loses_early_data: bool,
}

/// How a link is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Upgrade,
    WebSocket,
}

impl PathState {
    /// Whether early data may follow the request.
    pub(super) const fn may_be_early(&self) -> bool {
        (self.trusted || self.passed) && !self.loses_early_data
    }

    pub(super) fn next(&self) -> By {
        match self.refused {
            Some(at) if at.elapsed() < REMEMBERED => By::WebSocket,
            _ => By::Upgrade,
        }
    }

    /// Whether a failed upgrade was refused by a proxy on the path, or by a server that does not support links.
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
