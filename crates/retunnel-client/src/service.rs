//! The local service of a tunnel, as relays and exchanges see it.

pub(crate) mod rules;

use std::sync::Arc;

use retunnel_proto::message::{RequestSummary, TunnelProtocol};
use tokio::time::Instant;
use tracing::debug;

use self::rules::ClientRules;
use crate::{
    connection::Connection,
    error::RelayError,
    event::Event,
    state::Shared,
    stats::Stats,
    tap::{Observer, Side, Tap},
    target::LocalTarget,
};

/// What a relay or an exchange needs to know of its tunnel.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) target: LocalTarget,
    pub(crate) protocol: TunnelProtocol,
    pub(crate) stats: Arc<Stats>,
    /// Sees the tunnel's exchanges.
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// The rules that the client applies.
    pub(crate) rules: Arc<ClientRules>,
    pub(crate) shared: Arc<Shared>,
}

impl Service {
    /// Sees what passes on a new connection to the local service.
    fn tap(&self) -> Option<Box<Tap>> {
        Some(Box::new(Tap::new(Arc::clone(self.observer.as_ref()?), self.name.clone())))
    }

    /// A connection to the local service.
    ///
    /// # Errors
    /// [`RelayError::LocalUnreachable`].
    pub(crate) async fn connect(&self) -> Result<Connection, RelayError> {
        Connection::open(&self.target, Arc::clone(&self.stats), self.tap()).await
    }

    /// Whether someone sees the tunnel's exchanges.
    pub(crate) const fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Shows the observer the head of a request that the local service did not accept.
    pub(crate) fn show_failed(&self, head: &[u8], error: &RelayError) {
        if let Some(mut tap) = self.tap() {
            tap.seen(Side::Request, head, Instant::now());
            tap.failed(&error.to_string());
        }
    }

    /// Reports that the local service failed.
    pub(crate) fn report_failure(&self, error: &RelayError) {
        match error {
            RelayError::LocalUnreachable { .. } => {
                self.shared.emit(Event::LocalUnreachable { tunnel: self.name.clone(), reason: error.to_string() });
            }
            RelayError::OutOfDescriptors { .. } => {
                if let Some(refused) = self.shared.refusals.count() {
                    self.shared.emit(Event::OutOfDescriptors { refused });
                }
            }
            _ => debug!(tunnel = self.name, %error, "connection to the local service failed"),
        }
    }

    /// Counts a visitor's request that is done.
    pub(crate) fn count_request(&self, request: RequestSummary) {
        self.stats.request(request.clone());
        self.shared.emit(Event::Request { tunnel: self.name.clone(), request });
    }
}
