//! Goes the way to a server step by step, as sessions go it, and tells what is there. Makes neither an account nor a session.

mod certificate;
mod server;
mod way;

use std::time::Duration;

use retunnel_proto::stable_codes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{ClientBuilder, LocalTarget, relay, stats::Stats, transport::Dialer};

/// How long one check may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// How long all checks together may take.
const ALL_WITHIN: Duration = Duration::from_secs(25);
/// Characters of a peer's text that are shown.
const MAX_TEXT: usize = 200;

/// What is looked at, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Options, variables and files; looked at by the program.
    Configuration,
    /// Which proxy applies.
    Proxy,
    /// The addresses of the server, or of the proxy.
    Dns,
    /// A connection.
    Tcp,
    /// Encryption and the certificate.
    Tls,
    /// What answers, and its version.
    Api,
    /// Whether a session can open.
    Upgrade,
    /// The server's clock and ours.
    Clock,
    /// Whether the server knows the token.
    Token,
    /// Whether a local service takes connections.
    Local,
}

impl Step {
    /// Those that need a server.
    const OF_SERVER: [Self; 8] =
        [Self::Proxy, Self::Dns, Self::Tcp, Self::Tls, Self::Api, Self::Upgrade, Self::Clock, Self::Token];

    /// A word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Proxy => "proxy",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Api => "api",
            Self::Upgrade => "upgrade",
            Self::Clock => "clock",
            Self::Token => "token",
            Self::Local => "local",
        }
    }
}

stable_codes! {
    /// What can be wrong.
    pub enum Problem {
        /// Options, variables or files cannot be understood.
        ConfigurationInvalid = "configuration_invalid";
        /// The server's name has no address.
        NameNotFound = "name_not_found";
        /// Nothing listens at the address.
        ConnectionRefused = "connection_refused";
        /// No address answers.
        Unreachable = "unreachable";
        /// Some addresses of the server answer and others do not.
        PartlyUnreachable = "partly_unreachable";
        /// The proxy is not there, or does not open the way.
        ProxyFailed = "proxy_failed";
        /// What is said to the server can be read on the way.
        NotEncrypted = "not_encrypted";
        /// No authority that is trusted vouches for the certificate.
        CertificateUntrusted = "certificate_untrusted";
        /// The certificate's time is over.
        CertificateExpired = "certificate_expired";
        /// The certificate's time is nearly over.
        CertificateExpiresSoon = "certificate_expires_soon";
        /// The certificate's time has not come.
        CertificateNotYetValid = "certificate_not_yet_valid";
        /// The certificate is for other names.
        CertificateWrongName = "certificate_wrong_name";
        /// Any certificate is accepted.
        CertificateNotChecked = "certificate_not_checked";
        /// The handshake failed for another reason.
        TlsFailed = "tls_failed";
        /// The server speaks TLS only, and was asked without.
        HttpsRequired = "https_required";
        /// Something else than a ReTunnel server answers.
        NotAServer = "not_a_server";
        /// It sends clients elsewhere.
        Redirected = "redirected";
        /// It answers that it cannot serve now.
        ServerUnavailable = "server_unavailable";
        /// The connection ended without an answer.
        NoAnswer = "no_answer";
        /// A server of a published dialect, which does not tell its version.
        VersionUnknown = "version_unknown";
        /// The server speaks another version of the link.
        VersionDiffers = "version_differs";
        /// Something in between does not pass the upgrade of links on, but WebSockets.
        UpgradeStripped = "upgrade_stripped";
        /// No kind of session can open.
        UpgradeRefused = "upgrade_refused";
        /// Our clock and the server's differ.
        ClockDiffers = "clock_differs";
        /// The server does not know the token.
        TokenRefused = "token_refused";
        /// There is no token, and the server registers nobody without an invitation.
        TokenMissing = "token_missing";
        /// The server did not say whether it knows the token.
        TokenNotChecked = "token_not_checked";
        /// The local service takes no connection.
        LocalUnreachable = "local_unreachable";
        /// There was no result in time.
        TooSlow = "too_slow";
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Fine,
    /// Tunnels work, but something could be better.
    Warning(Problem),
    /// Tunnels do not work.
    Failed(Problem),
    /// An earlier check failed that this one needs.
    NotChecked,
}

impl Outcome {
    /// The problem, if there is one.
    #[must_use]
    pub const fn problem(self) -> Option<Problem> {
        match self {
            Self::Warning(problem) | Self::Failed(problem) => Some(problem),
            Self::Fine | Self::NotChecked => None,
        }
    }
}

/// One check and what it found.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was looked at.
    pub step: Step,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// What is there, in words.
    pub found: String,
    /// The same for programs; an object.
    pub details: Value,
}

/// What a check found, while nobody knows how long it took.
struct Finding {
    outcome: Outcome,
    found: String,
    details: Value,
}

impl Finding {
    fn new(outcome: Outcome, found: impl Into<String>) -> Self {
        Self { outcome, found: found.into(), details: json!({}) }
    }

    fn fine(found: impl Into<String>) -> Self {
        Self::new(Outcome::Fine, found)
    }

    fn warning(problem: Problem, found: impl Into<String>) -> Self {
        Self::new(Outcome::Warning(problem), found)
    }

    fn failed(problem: Problem, found: impl Into<String>) -> Self {
        Self::new(Outcome::Failed(problem), found)
    }

    fn with(self, details: Value) -> Self {
        Self { details, ..self }
    }
}

/// A peer's text, short and on one line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

impl ClientBuilder {
    /// Checks the way to the server and tells of each check as soon as it is done; all end within 25 s. Nothing is changed:
    /// no account is made, no session opened. Dropping the future stops it.
    pub async fn diagnose(&self, tell: impl FnMut(Check)) {
        let began = Instant::now();
        let mut walk = Walk { end: began + ALL_WITHIN, tell };
        let last = walk.go(self).await;
        for step in Step::OF_SERVER.into_iter().filter(|step| *step > last) {
            (walk.tell)(Check {
                step,
                outcome: Outcome::NotChecked,
                took: Duration::ZERO,
                found: format!("not checked: `{}` failed", last.as_str()),
                details: json!({}),
            });
        }
    }

    /// Whether a local service takes connections.
    pub async fn diagnose_local(&self, target: &LocalTarget) -> Check {
        let mut target = target.clone();
        target.trust.get_or_insert_with(|| self.local_trust.clone());
        let mut result = None;
        let mut walk = Walk { end: Instant::now() + STEP_WITHIN, tell: |check| result = Some(check) };
        walk.check(Step::Local, async {
            let finding = match relay::reach(&target, &Stats::default()).await {
                Ok(_) => Finding::fine(format!("{target} takes connections")),
                Err(error) => Finding::failed(Problem::LocalUnreachable, error.to_string()),
            };
            (finding.with(json!({ "target": target.to_string() })), None::<()>)
        })
        .await;
        result.expect("a check is always told")
    }
}

/// The checks under way.
struct Walk<F> {
    end: Instant,
    tell: F,
}

impl<F: FnMut(Check)> Walk<F> {
    /// Does one check and tells of it. What it hands on is for the next one; `None` when that cannot be done.
    async fn check<T>(&mut self, step: Step, work: impl Future<Output = (Finding, Option<T>)>) -> Option<T> {
        let began = Instant::now();
        let patience = STEP_WITHIN.min(self.end.duration_since(began));
        let (finding, handed_on) = timeout(patience, work).await.unwrap_or_else(|_| {
            let found = format!("no result within {:.0} s", patience.as_secs_f64());
            (Finding::failed(Problem::TooSlow, found), None)
        });
        let Finding { outcome, found, details } = finding;
        (self.tell)(Check { step, outcome, took: began.elapsed(), found, details });
        handed_on
    }

    /// Goes as far as it can; gives the last step that was checked.
    async fn go(&mut self, client: &ClientBuilder) -> Step {
        let mut dialer = client.dialer();
        let watched = dialer.trust.watched();
        self.check(Step::Proxy, async { (way::proxy(client), Some(())) }).await;
        let Some(addresses) = self.check(Step::Dns, way::look_up(&dialer)).await else { return Step::Dns };
        let Some(socket) = self.check(Step::Tcp, way::connect(&dialer, &addresses)).await else { return Step::Tcp };
        let socket = match watched {
            Ok((trust, watch)) => {
                dialer = Dialer { trust, ..dialer };
                self.check(Step::Tls, way::secure(&dialer, socket, &watch)).await
            }
            Err(error) => {
                let finding = Finding::failed(Problem::TlsFailed, format!("no authorities to trust: {error}"));
                self.check(Step::Tls, async { (finding, None) }).await
            }
        };
        let Some(socket) = socket else { return Step::Tls };
        let Some(server) = self.check(Step::Api, server::api(&dialer, socket)).await else { return Step::Api };
        self.check(Step::Upgrade, server::upgrade(&dialer, client.dialect, &server)).await;
        self.check(Step::Clock, async { (server.clock(), Some(())) }).await;
        self.check(Step::Token, server::token(client, &dialer, &server)).await;
        Step::Token
    }
}
