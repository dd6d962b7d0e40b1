//! One visitor's request as this side sees it, for dialects whose servers do not report requests.

use std::time::{SystemTime, UNIX_EPOCH};

use retunnel_proto::{PageCode, message::RequestSummary};
use tokio::time::Instant;

use crate::{error::RelayError, service::Service};

/// Characters of a request's target that are kept.
const MAX_PATH: usize = 256;

/// A request in progress. It is counted when it is dropped, however it ended.
pub(crate) struct Visit {
    pub(crate) service: Service,
    pub(crate) summary: RequestSummary,
    began: Instant,
}

impl Visit {
    /// A request begins. A TCP connection has neither method nor path.
    pub(crate) fn new(service: Service, method: &str, path: &str, visitor: &str) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shortened = |text: &str| text.chars().take(MAX_PATH).collect();
        let mut summary = RequestSummary::default();
        summary.method = shortened(method);
        summary.path = shortened(path);
        summary.visitor = shortened(visitor);
        summary.started_ms = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
        Self { service, summary, began: Instant::now() }
    }

    /// The request got no valid answer from the local service.
    pub(crate) fn failed(&mut self, status: u16, code: PageCode) {
        self.summary.status = status;
        self.summary.error = code.as_str().to_owned();
    }

    /// The local service failed. Returns the failure for the dialect.
    pub(crate) fn local_failed(&mut self, error: RelayError) -> RelayError {
        self.service.report_failure(&error);
        self.failed(error.status(), error.code());
        error
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut summary = std::mem::take(&mut self.summary);
        summary.duration_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.service.count_request(summary);
    }
}
