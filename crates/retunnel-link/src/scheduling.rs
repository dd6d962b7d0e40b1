//! How a busy task lets other tasks run.

use std::{future::Future, pin::pin, task::Context};

/// Lets others go first, those whose bytes arrived meanwhile as well: a task that merely wakes itself is polled again and
/// again (61 times with tokio's defaults) before the runtime looks at its sockets.
pub(crate) fn take_turns(cx: &mut Context<'_>) {
    // The first poll only registers the task to be woken after that look.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
