//! The harness of the end-to-end scenarios: the built program as server and client, local services, visitors.
//!
//! Nothing here replaces a part of the system: programs are processes, connections are sockets. Whatever is started
//! ends with its handle, and every wait is for a condition, with a deadline that a loaded machine meets.

#![expect(
    clippy::unwrap_used,
    clippy::unused_async,
    reason = "a failed test says where; whatever starts something is async"
)]

pub mod apps;
pub mod authority;
pub mod foreign;
pub mod gateway;
pub mod nginx;
pub mod process;
pub mod proxy;
pub mod published_3;
pub mod service;
pub mod terminal;
pub mod visitor;
pub mod web_front;

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// Longest wait for any condition. A loaded machine is slow; a broken system never meets the condition.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `check` gives something.
///
/// # Panics
/// If it does not within [`TIMEOUT`].
pub async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {TIMEOUT:?} for: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// SHA-256 as hexadecimal text.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}
