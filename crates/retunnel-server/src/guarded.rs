//! A panic in one connection's handler ends that connection, and nothing else.

use std::{any::Any, net::SocketAddr, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use tracing::error;

/// Runs the handler of one connection. What it owns is dropped when it panics: its socket is closed, its place given back,
/// its tunnels are lost as with a lost link. What is shared is behind locks that no code panics under.
///
/// No `async` block: it would hold the handler twice, before and while it runs, and that is what an idle visitor costs.
pub(crate) fn guarded(
    what: &'static str,
    peer: SocketAddr,
    handler: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    AssertUnwindSafe(handler).catch_unwind().map(move |result| {
        if let Err(panic) = result {
            error!(code = "handler_panicked", what, %peer, panic = text(&*panic), "a connection was given up: this is a bug");
        }
    })
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
