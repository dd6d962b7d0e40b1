//! The local service of a tunnel, as relays and exchanges see it.

pub(crate) mod rules;

use std::sync::Arc;

use retunnel_proto::message::{RequestSummary, TunnelProtocol};

use self::rules::ClientRules;
use crate::{
    connection::Connection,
    error::RelayError,
    event::Event,
    state::Shared,
    stats::Stats,
    tap::{Observer, Tap},
    target::LocalTarget,
};

/// What a relay needs of its tunnel.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) target: LocalTarget,
    pub(crate) stats: Arc<Stats>,
    /// Observes the tunnel's exchanges.
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) protocol: TunnelProtocol,
    /// The rules that the client applies.
    pub(crate) rules: Arc<ClientRules>,
    pub(crate) shared: Arc<Shared>,
}

impl Service {
    /// What observes a new connection to the local service.
    pub(crate) fn tap(&self) -> Option<Box<Tap>> {
        Some(Box::new(Tap::new(Arc::clone(self.observer.as_ref()?), self.name.clone())))
    }

    /// A connection to the local service.
    ///
    /// # Errors
    /// [`RelayError::LocalUnreachable`].
    pub(crate) async fn connect(&self) -> Result<Connection, RelayError> {
        Connection::open(&self.target, Arc::clone(&self.stats), self.tap()).await
    }

    /// A visitor's request is done.
    pub(crate) fn request(&self, request: RequestSummary) {
        self.stats.request(request.clone());
        self.shared.emit(Event::Request { tunnel: self.name.clone(), request });
    }

    /// The local service did not take a connection.
    pub(crate) fn unreachable(&self, error: &RelayError) {
        self.shared.emit(Event::LocalUnreachable { tunnel: self.name.clone(), reason: error.to_string() });
    }
}
