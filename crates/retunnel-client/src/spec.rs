//! Tunnels as values: what a caller requests, and facts about an open tunnel.

mod rules;

use retunnel_proto::{
    RequestId,
    message::{ReqTunnel, TunnelProtocol},
    rules::Rule,
};

pub use self::rules::{SHORT_RULES, ShortRule};

use crate::{target::LocalTarget, trust::Trust, validation::ValidationError};

/// A tunnel to open.
#[doc(alias = "TunnelDefinition")]
#[doc(alias = "TunnelConfig")]
#[derive(Debug, Clone)]
pub struct TunnelSpec {
    pub(crate) name: Option<String>,
    pub(crate) protocol: TunnelProtocol,
    pub(crate) target: LocalTarget,
    pub(crate) subdomain: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) remote_port: Option<u16>,
    /// Rules, with the key of those in short form.
    rules: Vec<(Option<&'static str>, Rule)>,
    inspect: bool,
}

impl TunnelSpec {
    fn new(protocol: TunnelProtocol, target: LocalTarget) -> Self {
        Self {
            name: None,
            protocol,
            target,
            subdomain: None,
            hostname: None,
            remote_port: None,
            rules: Vec::new(),
            inspect: true,
        }
    }

    /// A tunnel for an HTTP service.
    #[must_use]
    pub fn http(target: impl Into<LocalTarget>) -> Self {
        Self::new(TunnelProtocol::Http, target.into())
    }

    /// A tunnel for a TCP service.
    #[must_use]
    pub fn tcp(target: impl Into<LocalTarget>) -> Self {
        Self::new(TunnelProtocol::Tcp, target.into())
    }

    /// Address of the local service.
    #[must_use]
    pub const fn target(&self) -> &LocalTarget {
        &self.target
    }

    /// A name for events and statistics. Default: a part of the public address.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Asks for this name below the server's domain.
    ///
    /// # Errors
    /// [`ValidationError`] when it cannot be a name.
    pub fn subdomain(mut self, subdomain: impl Into<String>) -> Result<Self, ValidationError> {
        let subdomain = subdomain.into();
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if subdomain.is_empty()
            || subdomain.len() > 63
            || !subdomain.chars().all(valid)
            || subdomain.starts_with('-')
            || subdomain.ends_with('-')
        {
            let reason = "expected 1 to 63 letters, digits and hyphens, no hyphen first or last";
            return Err(ValidationError { what: "subdomain", value: subdomain, reason });
        }
        self.subdomain = Some(subdomain.to_ascii_lowercase());
        Ok(self)
    }

    /// Asks for a custom host name.
    #[must_use]
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Asks for this public port.
    #[must_use]
    pub const fn remote_port(mut self, port: u16) -> Self {
        self.remote_port = Some(port);
        self
    }

    /// Asks visitors for `user:password`.
    ///
    /// # Errors
    /// [`ValidationError`] when one of both is missing.
    pub fn auth(self, credentials: impl Into<String>) -> Result<Self, ValidationError> {
        self.short_rule(&rules::AUTH, &credentials.into())
    }

    /// Adds a rule of any type, after those that the tunnel has. A server refuses the tunnel if it does not know the type.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push((None, rule));
        self
    }

    /// Adds a rule in short form. It replaces an earlier one with the same key.
    ///
    /// # Errors
    /// [`ValidationError`] when the text is not valid.
    pub fn short_rule(mut self, short: &ShortRule, text: &str) -> Result<Self, ValidationError> {
        let rule = short.parse(text, &self.target)?;
        match self.rules.iter_mut().find(|(key, _)| *key == Some(short.key)) {
            Some((_, earlier)) => *earlier = rule,
            None => self.rules.push((Some(short.key), rule)),
        }
        Ok(self)
    }

    /// The rules in the order in which they are applied.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|(_, rule)| rule)
    }

    /// Whether an observer sees the exchanges. Default yes.
    #[must_use]
    pub const fn inspect(mut self, inspect: bool) -> Self {
        self.inspect = inspect;
        self
    }

    pub(crate) fn is_inspected(&self) -> bool {
        self.inspect && self.protocol == TunnelProtocol::Http
    }

    /// What the local service sees as `Host`, `Origin`, `X-Forwarded-Host` and `X-Forwarded-Proto` instead of the public
    /// address: `rewrite` is its own address, other values are used as they are, for example `app.test`. Default: the public one.
    /// Redirects to it are turned back; the public address is in `X-Original-Host` and `X-Original-Proto`.
    ///
    /// # Errors
    /// [`ValidationError`] when it cannot be a host.
    pub fn host_header(self, value: impl Into<String>) -> Result<Self, ValidationError> {
        self.short_rule(&rules::HOST_HEADER, &value.into())
    }

    /// Accepts any certificate of a local service reached by TLS. Default: only on this machine's loopback addresses;
    /// others need one that the system or [`crate::ClientBuilder::extra_roots`] trusts.
    #[must_use]
    pub fn local_insecure(mut self) -> Self {
        self.target.trust = Some(Trust::everything());
        self
    }

    /// The name of this tunnel while it has no public address.
    #[must_use]
    pub fn shown_name(&self) -> String {
        self.name.clone().or_else(|| self.subdomain.clone()).unwrap_or_else(|| self.target.to_string())
    }

    /// The request for the server. After a reconnect it asks for the address that the tunnel had.
    pub(crate) fn request(&self, before: Option<&TunnelInfo>) -> ReqTunnel {
        ReqTunnel {
            request_id: RequestId::random(),
            protocol: self.protocol,
            subdomain: match before {
                Some(info) if self.protocol == TunnelProtocol::Http => Some(info.subdomain.clone()),
                _ => self.subdomain.clone(),
            },
            hostname: self.hostname.clone(),
            remote_port: before.and_then(|info| info.remote_port).or(self.remote_port),
            rules: self.rules().cloned().collect(),
        }
    }
}

/// Facts about an open tunnel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TunnelInfo {
    /// Name in this client.
    pub name: String,
    /// Public address.
    pub url: String,
    /// The protocol.
    pub protocol: TunnelProtocol,
    /// Name below the server's domain; empty for TCP.
    pub subdomain: String,
    /// Public port of a TCP tunnel.
    pub remote_port: Option<u16>,
    /// Address of the local service.
    pub target: LocalTarget,
}

/// The name of a tunnel in events.
pub(crate) fn name_of(spec: &TunnelSpec, subdomain: &str, remote_port: Option<u16>) -> String {
    match (&spec.name, spec.protocol, remote_port) {
        (Some(name), ..) => name.clone(),
        (None, TunnelProtocol::Tcp, Some(port)) => format!("tcp-{port}"),
        _ => subdomain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_rule_replaces_the_earlier_one_and_others_are_added() {
        let other = Rule::new("teleport", json!({"to": "moon"}));
        let spec = TunnelSpec::http(80)
            .auth("me:old")
            .map(|spec| spec.rule(other.clone()).rule(other.clone()))
            .and_then(|spec| spec.auth("me:new"));
        let expected = [Rule::basic_auth(retunnel_proto::message::HttpAuth("me:new".into())), other.clone(), other];
        assert_eq!(spec.expect("valid").request(None).rules, expected);
    }
}
