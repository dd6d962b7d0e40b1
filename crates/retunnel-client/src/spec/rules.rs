//! Rules in short form: one line of text, given as a command-line option or as a key of a tunnels file.
//!
//! [`SHORT_RULES`] has everything that both need. A new rule with a short form is a new entry there.

use retunnel_proto::{
    message::{HttpAuth, TunnelProtocol},
    rules::{MAX_RESPONSE_TIMEOUT, Rule},
};

use crate::{target::LocalTarget, validation::ValidationError};

/// The short form of a rule.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShortRule {
    /// Key in a tunnels file, for example `host_header`.
    pub key: &'static str,
    /// Long command-line option, without the hyphens in front of it: the key with `-` for `_`.
    pub option: &'static str,
    /// One-letter option. `None`: there is none.
    pub short_option: Option<char>,
    /// Environment variable with the value for tunnels of the command line. `None`: there is none.
    pub variable: Option<&'static str>,
    /// What to write for the value in a help text.
    pub value_name: &'static str,
    /// Help text of the option.
    pub help: &'static str,
    /// A value for an example file.
    pub example: &'static str,
    /// What it is for, in an example file.
    pub purpose: &'static str,
    /// Tunnels that can have the rule.
    pub protocols: &'static [TunnelProtocol],
    /// Whether the rule restricts access. An empty value in a file is then an error, because without the rule the tunnel
    /// would be open to everyone. Otherwise an empty value means no rule.
    pub restricts_access: bool,
    /// Converts the text to a rule of a tunnel to this local service.
    parse: fn(&str, &LocalTarget) -> Result<Rule, ValidationError>,
}

/// Every short form, in the order in which help texts list them.
pub const SHORT_RULES: &[ShortRule] = &[AUTH, HOST_HEADER, RESPONSE_TIMEOUT, LOCAL_KEEP_ALIVE];

pub(super) const AUTH: ShortRule = ShortRule {
    key: "auth",
    option: "auth",
    short_option: Some('a'),
    variable: Some("RETUNNEL_BASIC_AUTH"),
    value_name: "USER:PASSWORD",
    help: "Require visitors to log in with HTTP basic authentication",
    example: "user:password",
    purpose: "optional, asked of visitors",
    protocols: &[TunnelProtocol::Http],
    restricts_access: true,
    parse: basic_auth,
};

pub(super) const HOST_HEADER: ShortRule = ShortRule {
    key: "host_header",
    option: "host-header",
    short_option: None,
    variable: None,
    value_name: "HOST",
    help: "Rewrite the Host header: `rewrite` uses the address of the local service (Vite, webpack, Django), \
           HOST sets a fixed value",
    example: "rewrite",
    purpose: "optional, for services that answer to localhost only (Vite, webpack, Django)",
    protocols: &[TunnelProtocol::Http],
    restricts_access: false,
    parse: local_origin,
};

const RESPONSE_TIMEOUT: ShortRule = ShortRule {
    key: "response_timeout",
    option: "response-timeout",
    short_option: None,
    variable: None,
    value_name: "TIME",
    help: "Answer 504 when the local service has not begun its answer after this time, for example `90s` or `5m`; \
           without it visitors wait as long as they want",
    example: "90s",
    purpose: "optional, how long visitors wait for an answer to begin",
    protocols: &[TunnelProtocol::Http],
    restricts_access: false,
    parse: response_timeout,
};

const LOCAL_KEEP_ALIVE: ShortRule = ShortRule {
    key: "local_keep_alive",
    option: "local-keep-alive",
    short_option: None,
    variable: None,
    value_name: "on|off",
    help: "`off` opens a new connection to the local service for each request, for services that serve one connection at \
           a time",
    example: "off",
    purpose: "optional, for services that serve one connection at a time",
    protocols: &[TunnelProtocol::Http],
    restricts_access: false,
    parse: local_keep_alive,
};

impl ShortRule {
    /// Converts a value to the rule for a tunnel to this local service.
    ///
    /// # Errors
    /// [`ValidationError`] when it is not valid.
    pub fn parse(&self, text: &str, target: &LocalTarget) -> Result<Rule, ValidationError> {
        (self.parse)(text, target)
    }
}

fn basic_auth(text: &str, _: &LocalTarget) -> Result<Rule, ValidationError> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => {
            Ok(Rule::basic_auth(HttpAuth(text.to_owned())))
        }
        _ => {
            let reason = "expected USER:PASSWORD, both not empty";
            Err(ValidationError { what: "credentials", value: "***".into(), reason })
        }
    }
}

fn response_timeout(text: &str, _: &LocalTarget) -> Result<Rule, ValidationError> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => match text.strip_suffix(['s', 'm', 'h']) {
            Some(number) if text.ends_with('m') => (number, 60.0),
            Some(number) if text.ends_with('h') => (number, 3600.0),
            Some(number) => (number, 1.0),
            None => (text, 1.0),
        },
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * unit);
    match seconds.filter(|seconds| *seconds > 0.0 && *seconds <= MAX_RESPONSE_TIMEOUT) {
        Some(seconds) => Ok(Rule::response_timeout(seconds)),
        None => {
            let reason = "expected a time such as `90s`, `5m` or `500ms`, at most 24h";
            Err(ValidationError { what: "response timeout", value: text.to_owned(), reason })
        }
    }
}

fn local_keep_alive(text: &str, _: &LocalTarget) -> Result<Rule, ValidationError> {
    match text {
        "on" | "true" => Ok(Rule::local_keep_alive(true)),
        "off" | "false" => Ok(Rule::local_keep_alive(false)),
        _ => {
            let reason = "expected `on` or `off`";
            Err(ValidationError { what: "local keep-alive", value: text.to_owned(), reason })
        }
    }
}

fn local_origin(text: &str, target: &LocalTarget) -> Result<Rule, ValidationError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if text.is_empty() || text.len() > 255 || !text.chars().all(valid) {
        let reason = "expected `rewrite`, HOST or HOST:PORT";
        return Err(ValidationError { what: "host header", value: text.to_owned(), reason });
    }
    let scheme = if target.tls { "https" } else { "http" };
    Ok(Rule::local_origin(match text {
        "rewrite" => format!("{scheme}://{}", target.authority()),
        host => format!("{scheme}://{host}"),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_its_option_and_a_valid_example() {
        let keys: BTreeSet<&str> = SHORT_RULES.iter().map(|short| short.key).collect();
        assert_eq!(keys.len(), SHORT_RULES.len(), "a key is given twice");
        for short in SHORT_RULES {
            assert_eq!(short.option, short.key.replace('_', "-"));
            short.parse(short.example, &80.into()).expect("a valid example");
            assert!(!short.protocols.is_empty(), "{short:?}");
            if short.restricts_access {
                short.parse("", &80.into()).expect_err("an empty value must not leave the tunnel open");
            }
        }
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90.0), ("5m", 300.0), ("24h", 86_400.0), ("500ms", 0.5), ("2", 2.0)] {
            assert_eq!(RESPONSE_TIMEOUT.parse(text, &80.into()).expect(text), Rule::response_timeout(seconds));
        }
        for text in ["", "0s", "-1s", "s", "25h", "1d", "NaN", "inf"] {
            RESPONSE_TIMEOUT.parse(text, &80.into()).expect_err(text);
        }
    }

    #[test]
    fn the_local_origin_is_the_targets_own_or_a_fixed_one() {
        for (text, target, origin) in [
            ("rewrite", "5173", "http://localhost:5173"),
            ("rewrite", "https://a.test", "https://a.test"),
            ("app.test", "https://a.test:8443", "https://app.test"),
        ] {
            let rule = HOST_HEADER.parse(text, &target.parse().expect("valid")).expect("valid");
            assert_eq!(rule, Rule::local_origin(origin));
        }
    }
}
