//! What may be asked of a tunnel beyond an address: rules for its visitors and their requests.
//!
//! On the wire a tunnel's policy is one list of [`Rule`]s. A server refuses a rule that it does not know by its name, so
//! that a client never believes itself protected by something that is not there. The rules that both ends can apply
//! (a client applies them where a published dialect's server does not) are here once: [`BasicAuth`], [`LocalOrigin`].

mod basic_auth;
mod local_origin;

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use basic_auth::{BadCredentials, BasicAuth};
pub use local_origin::{LocalOrigin, RESTORED, TRANSLATED, host_refused};

use crate::message::HttpAuth;

/// Longest time in a `response-timeout`, in seconds: a day.
pub const MAX_RESPONSE_TIMEOUT: f64 = 24.0 * 3600.0;
/// Most rules of one tunnel.
pub const MAX_RULES: usize = 64;

/// One rule of a tunnel: its type and its configuration. `Debug` hides the configuration, which may hold secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rule {
    /// The rule's type, for example `basic-auth`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the type's own documentation asks for.
    #[serde(default)]
    pub config: Value,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Configuration of `basic-auth`: credentials that visitors must present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicAuthConfig {
    /// `user:password`.
    pub credentials: HttpAuth,
}

/// Configuration of `local-origin`: what an HTTP service sees as its own address instead of the public one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalOriginConfig {
    /// Scheme and authority, for example `http://localhost:5173`.
    pub origin: String,
}

/// Configuration of `response-timeout`: how long the local service may take to begin its answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseTimeoutConfig {
    /// Seconds, more than 0 and at most [`MAX_RESPONSE_TIMEOUT`].
    pub seconds: f64,
}

/// Configuration of `local-keep-alive`: whether connections to the local service serve further requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalKeepAliveConfig {
    /// Without it each request has a new connection.
    pub enabled: bool,
}

impl Rule {
    /// Type of the rule with [`BasicAuthConfig`].
    pub const BASIC_AUTH: &'static str = "basic-auth";
    /// Type of the rule with [`LocalOriginConfig`].
    pub const LOCAL_ORIGIN: &'static str = "local-origin";
    /// Type of the rule with [`ResponseTimeoutConfig`].
    pub const RESPONSE_TIMEOUT: &'static str = "response-timeout";
    /// Type of the rule with [`LocalKeepAliveConfig`].
    pub const LOCAL_KEEP_ALIVE: &'static str = "local-keep-alive";

    /// A rule of any type.
    #[must_use]
    pub fn new(kind: impl Into<String>, config: Value) -> Self {
        Self { kind: kind.into(), config }
    }

    fn of(kind: &str, config: impl Serialize) -> Self {
        Self::new(kind, serde_json::to_value(config).expect("own configurations have text keys and plain values"))
    }

    /// Asks visitors for `user:password`.
    #[must_use]
    pub fn basic_auth(credentials: HttpAuth) -> Self {
        Self::of(Self::BASIC_AUTH, BasicAuthConfig { credentials })
    }

    /// Shows the local service another origin than the public one.
    #[must_use]
    pub fn local_origin(origin: impl Into<String>) -> Self {
        Self::of(Self::LOCAL_ORIGIN, LocalOriginConfig { origin: origin.into() })
    }

    /// Gives a request up whose answer has not begun after so many seconds.
    #[must_use]
    pub fn response_timeout(seconds: f64) -> Self {
        Self::of(Self::RESPONSE_TIMEOUT, ResponseTimeoutConfig { seconds })
    }

    /// Keeps connections to the local service for further requests, or does not.
    #[must_use]
    pub fn local_keep_alive(enabled: bool) -> Self {
        Self::of(Self::LOCAL_KEEP_ALIVE, LocalKeepAliveConfig { enabled })
    }

    /// The configuration as the type's own values.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        T::deserialize(&self.config).map_err(|error| format!("the rule `{}` is not valid: {error}", self.kind))
    }
}

/// The rules that a published dialect asks for with fields of their own.
#[must_use]
pub fn of_fields(http_auth: Option<HttpAuth>, local_origin: Option<String>) -> Vec<Rule> {
    http_auth.map(Rule::basic_auth).into_iter().chain(local_origin.map(Rule::local_origin)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_survive_a_round_trip_and_are_hidden() {
        let rule = Rule::basic_auth(HttpAuth("me:secret".into()));
        assert_eq!(rule.read(), Ok(BasicAuthConfig { credentials: HttpAuth("me:secret".into()) }));
        assert!(!format!("{rule:?}").contains("secret"));
        let bytes = rmp_serde::to_vec_named(&rule).expect("encodes");
        assert_eq!(rmp_serde::from_slice::<Rule>(&bytes).expect("decodes"), rule);
    }

    #[test]
    fn a_configuration_with_an_unknown_field_is_refused_by_name() {
        let rule = Rule::new(Rule::LOCAL_ORIGIN, serde_json::json!({"origin": "http://a", "orgin": 1}));
        let error = rule.read::<LocalOriginConfig>().expect_err("a typo");
        assert!(error.contains("local-origin") && error.contains("orgin"), "{error}");
    }
}
