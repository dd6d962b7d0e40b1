//! One visitor's request as this side sees it, for dialects whose servers do not report.

use std::time::{SystemTime, UNIX_EPOCH};

use retunnel_proto::{PageCode, message::RequestSummary};
use tokio::time::Instant;

use crate::service::Service;

/// Bytes of a request's target that are kept.
const MAX_PATH: usize = 256;

/// A request under way. It is counted when it is dropped, however it ended.
pub(crate) struct Visit {
    pub(crate) served: Service,
    pub(crate) summary: RequestSummary,
    began: Instant,
}

impl Visit {
    /// A request begins. A TCP connection has neither method nor path.
    pub(crate) fn new(served: Service, method: &str, path: &str, visitor: &str) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shortened = |text: &str| text.chars().take(MAX_PATH).collect();
        let mut summary = RequestSummary::default();
        summary.method = shortened(method);
        summary.path = shortened(path);
        summary.visitor = shortened(visitor);
        summary.started_ms = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
        Self { served, summary, began: Instant::now() }
    }

    /// The local service did not answer it.
    pub(crate) fn failed(&mut self, status: u16, code: PageCode) {
        self.summary.status = status;
        self.summary.error = code.as_str().to_owned();
    }
}

/// The visitor's address as the server's headers name it.
pub(crate) fn visitor_in(headers: &[(String, String)]) -> Option<&str> {
    let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))?;
    value.split(',').next().map(str::trim)
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut summary = std::mem::take(&mut self.summary);
        summary.duration_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.served.request(summary);
    }
}
