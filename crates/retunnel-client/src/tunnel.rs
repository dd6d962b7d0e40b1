//! An open tunnel, as its caller holds it.

use std::sync::Arc;

use retunnel_proto::message::Refusal;
use tokio::sync::watch;

use crate::{
    error::TunnelError,
    spec::TunnelInfo,
    state::{Command, Shared},
    stats::{Stats, StatsSnapshot},
};

/// An open tunnel. It survives reconnects; dropping it closes it.
#[derive(Debug)]
pub struct Tunnel {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: u64,
    pub(crate) info: TunnelInfo,
    pub(crate) stats: Arc<Stats>,
    /// Why the server closed it. The sender is dropped when it ends in another way.
    pub(crate) closed: watch::Receiver<Option<Refusal>>,
}

impl Tunnel {
    /// Public address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.info.url
    }

    /// Name in this client.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Facts about the tunnel.
    #[must_use]
    pub const fn info(&self) -> &TunnelInfo {
        &self.info
    }

    /// Its statistics.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }

    /// Waits until the tunnel is closed for good, by the server or through [`crate::Client::close_tunnel`], and returns the
    /// cause. Cancel-safe.
    pub async fn closed(&self) -> TunnelError {
        match self.closed.clone().wait_for(Option::is_some).await {
            Ok(refusal) => refusal.clone().map_or(TunnelError::Closed, TunnelError::Refused),
            // The supervisor ended, or the tunnel was removed.
            Err(_) => self.shared.lock().ended.clone().map_or(TunnelError::Closed, TunnelError::SessionEnded),
        }
    }

    /// Whether it is closed for good.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.has_changed().is_err() || self.closed.borrow().is_some()
    }

    /// Closes the tunnel. The server frees its address.
    pub fn close(self) {}
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.remove(self.key);
        // A supervisor that has ended has closed it already.
        let _ = self.shared.commands.send(Command::Close(self.key));
    }
}
