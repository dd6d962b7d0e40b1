//! How long the parts of a session may take.

use std::time::Duration;

/// How long the server may take to answer `Auth`.
pub(super) const AUTH_WITHIN: Duration = Duration::from_secs(10);
/// Time between questions whether the server is there, where the transport does not ask by itself.
pub(super) const TICK: Duration = Duration::from_secs(3);
/// After this silence the server is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(9);
