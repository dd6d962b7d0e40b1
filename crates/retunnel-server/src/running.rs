//! What runs: the tasks of a server, and the two signals that end them.

use std::{
    any::Any,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::FutureExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

/// The tasks of a server and how they end.
#[derive(Debug)]
pub(crate) struct Running {
    /// Visitors' connections and relays: a drain waits for these.
    pub(crate) relays: TaskTracker,
    /// Sessions, listeners and upkeep.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server begins to stop: no new work, running transfers may finish.
    pub(crate) draining: CancellationToken,
    /// Cancelled when everything ends.
    pub(crate) stopping: CancellationToken,
    is_ready: AtomicBool,
}

impl Running {
    pub(crate) fn new() -> Self {
        Self {
            relays: TaskTracker::new(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            is_ready: AtomicBool::new(true),
        }
    }

    /// Whether health checks should send visitors here.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Begins to stop.
    pub(crate) fn drain(&self) {
        self.is_ready.store(false, Ordering::Relaxed);
        self.draining.cancel();
    }
}

/// Runs the handler of one connection and contains its panics. What the handler owns is dropped: its socket is closed, its
/// place is returned, its tunnels are lost as with a lost link. Shared state is behind locks that no code panics under.
///
/// Not an `async` block: that would hold the handler twice, before and while it runs, and its size is the cost of an idle
/// visitor.
pub(crate) fn guarded(
    what: &'static str,
    peer: SocketAddr,
    handler: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    AssertUnwindSafe(handler).catch_unwind().map(move |result| {
        if let Err(panic) = result {
            error!(code = "handler_panicked", what, %peer, panic = text(&*panic), "connection handler panicked; this is a bug");
        }
    })
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
