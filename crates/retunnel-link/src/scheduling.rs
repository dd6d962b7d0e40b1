//! How a busy task lets other tasks run.

use std::{future::Future, pin::pin, task::Context};

/// Lets other tasks run first, including those whose bytes have arrived meanwhile. A task that only wakes itself is polled
/// many times (61 with tokio's defaults) before the runtime checks its sockets.
pub(crate) fn take_turns(cx: &mut Context<'_>) {
    // The first poll only registers the task to be woken after that check.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
