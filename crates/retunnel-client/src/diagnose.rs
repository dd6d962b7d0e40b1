//! Checks the path to a server step by step, as sessions take it. Creates neither an account nor a session.

mod certificate;
mod check;
mod network;
mod server;

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use self::check::Finding;
pub use self::check::{Check, Outcome, Problem, Step};
use crate::{
    connection,
    credentials::Credentials,
    dialect::Dialect,
    target::LocalTarget,
    transport::{Dialer, proxy::Proxies},
};

/// How long one check may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// How long all checks together may take.
const ALL_WITHIN: Duration = Duration::from_secs(25);
/// The client whose connection is checked.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) dialer: Dialer,
    pub(crate) proxies: &'a Proxies,
    /// The dialects to try, best first.
    pub(crate) dialects: Vec<Dialect>,
    pub(crate) credentials: &'a Credentials,
}

impl Subject<'_> {
    /// Reports each check as soon as it is done.
    pub(crate) async fn diagnose(self, report: impl FnMut(Check)) {
        let mut walk = Walk { end: Instant::now() + ALL_WITHIN, report };
        let last = walk.run(&self).await;
        for step in Step::OF_SERVER.into_iter().filter(|step| *step > last) {
            (walk.report)(Check {
                step,
                outcome: Outcome::NotChecked,
                took: Duration::ZERO,
                found: format!("not checked: `{}` failed", last.as_str()),
                details: json!({}),
            });
        }
    }
}

/// Whether a local service accepts connections.
pub(crate) async fn local(target: &LocalTarget) -> Check {
    let mut result = None;
    let mut walk = Walk { end: Instant::now() + STEP_WITHIN, report: |check| result = Some(check) };
    walk.check(Step::Local, async {
        let finding = match connection::reach(target).await {
            Ok(_) => Finding::fine(format!("{target} accepts connections")),
            Err(error) => Finding::failed(Problem::LocalUnreachable, error.to_string()),
        };
        (finding.with(json!({ "target": target.to_string() })), None::<()>)
    })
    .await;
    result.expect("every check is reported")
}

/// A series of checks.
struct Walk<F> {
    end: Instant,
    report: F,
}

impl<F: FnMut(Check)> Walk<F> {
    /// Does one check and reports it. The value is for the next check; `None` when that one cannot be done.
    async fn check<T>(&mut self, step: Step, work: impl Future<Output = (Finding, Option<T>)>) -> Option<T> {
        let began = Instant::now();
        let limit = STEP_WITHIN.min(self.end.duration_since(began));
        let (finding, value) = timeout(limit, work).await.unwrap_or_else(|_| {
            let found = format!("no result within {:.0} s", limit.as_secs_f64());
            (Finding::failed(Problem::TooSlow, found), None)
        });
        let Finding { outcome, found, details } = finding;
        (self.report)(Check { step, outcome, took: began.elapsed(), found, details });
        value
    }

    /// Checks as far as possible; returns the last step that was checked.
    async fn run(&mut self, subject: &Subject<'_>) -> Step {
        let mut dialer = subject.dialer.clone();
        let watched = dialer.trust.watched();
        self.check(Step::Proxy, async { (network::proxy(&dialer.endpoint, subject.proxies), Some(())) }).await;
        let Some(addresses) = self.check(Step::Dns, network::look_up(&dialer)).await else { return Step::Dns };
        let Some(socket) = self.check(Step::Tcp, network::connect(&dialer, &addresses)).await else { return Step::Tcp };
        let socket = match watched {
            Ok((trust, watch)) => {
                dialer = dialer.with_trust(trust);
                self.check(Step::Tls, network::secure(&dialer, socket, &watch)).await
            }
            Err(error) => {
                let finding =
                    Finding::failed(Problem::TlsFailed, format!("the trusted authorities cannot be read: {error}"));
                self.check(Step::Tls, async { (finding, None) }).await
            }
        };
        let Some(socket) = socket else { return Step::Tls };
        let Some(server) = self.check(Step::Api, server::api(&dialer, socket)).await else { return Step::Api };
        self.check(Step::Upgrade, server::upgrade(&dialer, &subject.dialects, &server)).await;
        self.check(Step::Clock, async { (server.clock(), Some(())) }).await;
        self.check(Step::Token, server::token(&dialer, subject.credentials, &server)).await;
        Step::Token
    }
}
