//! What the handlers of the local API work on.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use retunnel_client::{Client, LocalTarget, Tunnel};
use serde::Deserialize;
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    failure::{Failure, FailureCode},
    guard::Guard,
    mask::Mask,
    replay::{Edits, MAX_TIMES, Prepared},
    store::{Entry, Store},
    view::View,
};

/// What the handlers of the local API work on.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) store: Arc<Store>,
    pub(crate) mask: Mask,
    pub(crate) guard: Arc<Guard>,
    pub(crate) client: Arc<Client>,
    /// Tunnels that were opened through the API.
    pub(crate) opened: Mutex<Vec<Tunnel>>,
    /// Held while one piece of an answer is made.
    pub(crate) worker: Arc<Semaphore>,
}

pub(crate) type SharedContext = Arc<Context>;

/// Query parameters that say how exchanges are shown.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct ViewOptions {
    reveal: String,
    raw: String,
}

impl ViewOptions {
    /// Whether secrets are shown.
    pub(crate) fn reveal(&self) -> bool {
        is_set(&self.reveal)
    }

    /// Whether a body is sent without decoding. Masking needs the decoded body, so secrets must be shown too.
    pub(crate) fn raw(&self) -> bool {
        is_set(&self.raw) && self.reveal()
    }
}

/// Whether a query parameter is on.
fn is_set(text: &str) -> bool {
    matches!(text, "1" | "true")
}

impl Context {
    pub(crate) fn view(&self, options: &ViewOptions) -> View<'_> {
        View::new(&self.mask, options.reveal())
    }

    /// Does work that takes time (decoding, masking) beside the threads that move visitors' bytes. One piece at a time, so
    /// that the memory of one piece is the memory of all.
    pub(crate) async fn work<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let permit = Arc::clone(&self.worker).acquire_owned().await.expect("nothing closes it");
        let context = Arc::clone(self);
        let done = spawn_blocking(move || {
            // Held by the work itself: a caller may have gone.
            let _permit = permit;
            work(&context)
        });
        match done.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime stops.
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) fn entry(&self, id: u64) -> Result<Arc<Entry>, Failure> {
        self.store.find(id).ok_or_else(|| Failure::not_found("exchange"))
    }

    /// The local service of a tunnel.
    fn target(&self, name: &str) -> Result<LocalTarget, Failure> {
        let mut tunnels = self.client.tunnels().into_iter().map(|(info, _)| info);
        tunnels.find(|info| info.name == name).map(|info| info.target).ok_or_else(|| Failure::not_found("tunnel"))
    }

    /// Sends a request again, several times in sequence if asked. Returns the ids of the new exchanges.
    pub(crate) async fn replay(&self, id: u64, edits: &Edits) -> Result<Vec<u64>, Failure> {
        let times = edits.times.unwrap_or(1);
        if times == 0 || times > MAX_TIMES {
            let detail = format!("times: expected a number from 1 to {MAX_TIMES} (got `{times}`)");
            return Err(Failure::new(StatusCode::BAD_REQUEST, FailureCode::ReplayInvalid, detail));
        }
        let entry = self.entry(id)?;
        let (prepared, tunnel) = {
            let record = entry.record();
            (Prepared::new(&record, edits, &self.mask)?, record.tunnel.clone())
        };
        let target = self.target(&tunnel)?;
        let mut ids = Vec::new();
        for _ in 0..times {
            ids.extend(prepared.send(&self.store, &target, &tunnel, id).await?);
        }
        Ok(ids)
    }
}
