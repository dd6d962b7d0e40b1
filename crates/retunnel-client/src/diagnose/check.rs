//! What is checked, what can be wrong, and what a check found.

use std::time::Duration;

use retunnel_proto::stable_codes;
use serde_json::{Value, json};

/// Characters of a peer's text that are shown.
const MAX_TEXT: usize = 200;

/// The steps, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Options, variables and files. The program checks them.
    Configuration,
    /// Which proxy applies.
    Proxy,
    /// The addresses of the server, or of the proxy.
    Dns,
    /// The TCP connection.
    Tcp,
    /// Encryption and the certificate.
    Tls,
    /// The server's version.
    Api,
    /// Whether a session can open.
    Upgrade,
    /// The server's clock compared with ours.
    Clock,
    /// Whether the token is valid on the server.
    Token,
    /// Whether a local service accepts connections.
    Local,
}

impl Step {
    /// Steps that need a server.
    pub(super) const OF_SERVER: [Self; 8] =
        [Self::Proxy, Self::Dns, Self::Tcp, Self::Tls, Self::Api, Self::Upgrade, Self::Clock, Self::Token];

    /// The step's name in reports.
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
        /// The proxy cannot be reached, or does not connect to the server.
        ProxyFailed = "proxy_failed";
        /// The connection to the server is not encrypted.
        NotEncrypted = "not_encrypted";
        /// No trusted authority signed the certificate.
        CertificateUntrusted = "certificate_untrusted";
        /// The certificate has expired.
        CertificateExpired = "certificate_expired";
        /// The certificate expires soon.
        CertificateExpiresSoon = "certificate_expires_soon";
        /// The certificate is not valid yet.
        CertificateNotYetValid = "certificate_not_yet_valid";
        /// The certificate is for other names.
        CertificateWrongName = "certificate_wrong_name";
        /// Any certificate is accepted.
        CertificateNotChecked = "certificate_not_checked";
        /// The handshake failed for another reason.
        TlsFailed = "tls_failed";
        /// The server accepts TLS only, and the connection was without TLS.
        HttpsRequired = "https_required";
        /// Something other than a ReTunnel server answers.
        NotAServer = "not_a_server";
        /// The server redirects clients to another address.
        Redirected = "redirected";
        /// The server answers that it is unavailable.
        ServerUnavailable = "server_unavailable";
        /// The connection ended without an answer.
        NoAnswer = "no_answer";
        /// The server speaks a published dialect and does not report its version.
        VersionUnknown = "version_unknown";
        /// The server speaks another version of the link.
        VersionDiffers = "version_differs";
        /// A proxy removes the upgrade to a link, but passes WebSockets.
        UpgradeStripped = "upgrade_stripped";
        /// No session can open.
        UpgradeRefused = "upgrade_refused";
        /// The server speaks a published dialect, which must be chosen.
        DialectNotChosen = "dialect_not_chosen";
        /// Our clock and the server's differ.
        ClockDiffers = "clock_differs";
        /// The token is not valid on the server.
        TokenRefused = "token_refused";
        /// There is no token, and the server creates accounts by invitation only.
        TokenMissing = "token_missing";
        /// The server did not say whether the token is valid.
        TokenNotChecked = "token_not_checked";
        /// The local service accepts no connection.
        LocalUnreachable = "local_unreachable";
        /// The check did not finish in time.
        TooSlow = "too_slow";
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No problem.
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
#[non_exhaustive]
pub struct Check {
    /// The step.
    pub step: Step,
    /// The result.
    pub outcome: Outcome,
    /// How long the check took.
    pub took: Duration,
    /// What was found, for people.
    pub found: String,
    /// The same for programs; an object.
    pub details: Value,
}

impl Check {
    /// A check that was done elsewhere, for example by the program that shows the others. `details` is an object.
    #[must_use]
    pub fn new(step: Step, outcome: Outcome, took: Duration, found: impl Into<String>, details: Value) -> Self {
        Self { step, outcome, took, found: found.into(), details }
    }
}

/// What a check found, without its duration.
pub(super) struct Finding {
    pub(super) outcome: Outcome,
    pub(super) found: String,
    pub(super) details: Value,
}

impl Finding {
    pub(super) fn new(outcome: Outcome, found: impl Into<String>) -> Self {
        Self { outcome, found: found.into(), details: json!({}) }
    }

    pub(super) fn fine(found: impl Into<String>) -> Self {
        Self::new(Outcome::Fine, found)
    }

    pub(super) fn warning(problem: Problem, found: impl Into<String>) -> Self {
        Self::new(Outcome::Warning(problem), found)
    }

    pub(super) fn failed(problem: Problem, found: impl Into<String>) -> Self {
        Self::new(Outcome::Failed(problem), found)
    }

    pub(super) fn with(self, details: Value) -> Self {
        Self { details, ..self }
    }
}

/// A peer's text, short and on one line.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}
