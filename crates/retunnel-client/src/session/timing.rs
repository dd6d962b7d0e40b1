//! How long the parts of a session may take.

use std::time::Duration;

/// How long the server may take to answer `Auth`.
pub(super) const AUTH_WITHIN: Duration = Duration::from_secs(10);
/// Time between checks whether the server is alive, where the transport has none.
pub(super) const TICK: Duration = Duration::from_secs(3);
/// A server that sends nothing for this long is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(9);
