//! What is checked, what can be wrong, and what a check found.

use std::time::Duration;

use retunnel_proto::stable_codes;
use serde_json::{Value, json};

/// Characters of a peer's text that are shown.
const MAX_TEXT: usize = 200;

/// The checks, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Options, variables and files; checked by the program.
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
    pub(super) const OF_SERVER: [Self; 8] =
        [Self::Proxy, Self::Dns, Self::Tcp, Self::Tls, Self::Api, Self::Upgrade, Self::Clock, Self::Token];

    /// Its stable name.
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
        /// There is no token, and the server requires an invitation to register.
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
#[non_exhaustive]
pub struct Check {
    /// What was checked.
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

impl Check {
    /// A check that was done elsewhere, for example by the program that shows the others. `details` is an object.
    #[must_use]
    pub fn new(step: Step, outcome: Outcome, took: Duration, found: impl Into<String>, details: Value) -> Self {
        Self { step, outcome, took, found: found.into(), details }
    }
}

/// What a check found, before its duration is known.
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
