//! Who applies a tunnel's rules: the server, or the client where a published dialect's server does not. What neither can
//! apply is refused, never dropped.

use retunnel_proto::{
    message::{Refusal, RefusalCode, TunnelProtocol},
    rules::{BasicAuth, BasicAuthConfig, LocalKeepAliveConfig, LocalOrigin, LocalOriginConfig, Rule},
};

/// What the server of a session does about rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleSupport {
    /// It applies the whole list, and refuses a rule that it does not know.
    List,
    /// A native server of link version 1 ignores the list. The client relays bytes and cannot apply it either.
    LinkVersion1,
    /// It applies none. The client applies those it knows.
    Dialect3,
    /// A request has a field for one password. The client shows the local origin.
    Dialect2,
}

/// The rules that the client applies itself.
#[derive(Debug, Default)]
pub(crate) struct ClientRules {
    /// Visitors must present each of these.
    pub(crate) basic_auth: Vec<BasicAuth>,
    /// What the local service sees as its address.
    pub(crate) local_origin: Option<LocalOrigin>,
}

impl RuleSupport {
    const fn as_str(self) -> &'static str {
        match self {
            Self::List => "native",
            Self::LinkVersion1 => "link version 1",
            Self::Dialect3 => "dialect 3",
            Self::Dialect2 => "dialect 2",
        }
    }

    /// The rules of a tunnel that are left to the client.
    ///
    /// # Errors
    /// [`RefusalCode::DialectUnsupported`] for a rule that no side applies, [`RefusalCode::InvalidRequest`] for one with
    /// an invalid configuration. Both name it.
    pub(crate) fn client_rules(self, rules: &[Rule], protocol: TunnelProtocol) -> Result<ClientRules, Refusal> {
        let mut client = ClientRules::default();
        if self == Self::List {
            return Ok(client);
        }
        let mut carries_password = false;
        for rule in rules {
            match (self, protocol, rule.kind.as_str()) {
                (Self::Dialect3, TunnelProtocol::Http, Rule::BASIC_AUTH) => client.basic_auth.push(basic_auth(rule)?),
                (Self::Dialect2, TunnelProtocol::Http, Rule::BASIC_AUTH) if !carries_password => {
                    basic_auth(rule)?;
                    carries_password = true;
                }
                // Each request has a connection of its own in these dialects.
                (Self::Dialect3 | Self::Dialect2, TunnelProtocol::Http, Rule::LOCAL_KEEP_ALIVE) => {
                    rule.read::<LocalKeepAliveConfig>().map_err(invalid)?;
                }
                (Self::Dialect3 | Self::Dialect2, TunnelProtocol::Http, Rule::LOCAL_ORIGIN) => {
                    client.local_origin = Some(local_origin(rule)?);
                }
                _ => {
                    let message =
                        format!("the server speaks {}, which cannot carry the rule `{}`", self.as_str(), rule.kind);
                    return Err(Refusal::new(RefusalCode::DialectUnsupported, message));
                }
            }
        }
        Ok(client)
    }
}

fn invalid(reason: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidRequest, reason)
}

fn basic_auth(rule: &Rule) -> Result<BasicAuth, Refusal> {
    let config: BasicAuthConfig = rule.read().map_err(invalid)?;
    BasicAuth::new(&config.credentials).map_err(|error| invalid(error.to_string()))
}

fn local_origin(rule: &Rule) -> Result<LocalOrigin, Refusal> {
    let config: LocalOriginConfig = rule.read().map_err(invalid)?;
    LocalOrigin::parse(&config.origin).ok_or_else(|| invalid("the host for the local service is not HOST or HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use RuleSupport::{Dialect2, Dialect3, LinkVersion1, List};
    use TunnelProtocol::{Http, Tcp};
    use retunnel_proto::message::HttpAuth;
    use serde_json::json;

    use super::*;

    fn password() -> Rule {
        Rule::basic_auth(HttpAuth("me:secret".into()))
    }

    #[test]
    fn the_client_applies_what_the_server_does_not() {
        let rules = [password(), Rule::local_origin("http://localhost:80"), Rule::local_keep_alive(false)];
        for (support, passwords, origin) in [(List, 0, false), (Dialect3, 1, true), (Dialect2, 0, true)] {
            let client = support.client_rules(&rules, Http).expect("supported");
            assert_eq!((client.basic_auth.len(), client.local_origin.is_some()), (passwords, origin), "{support:?}");
        }
    }

    #[test]
    fn a_rule_that_no_side_applies_is_refused_by_name() {
        let other = Rule::new("teleport", json!({}));
        for (support, protocol, rules, name) in [
            (LinkVersion1, Http, vec![password()], "basic-auth"),
            (LinkVersion1, Http, vec![Rule::local_origin("http://a")], "local-origin"),
            (Dialect3, Http, vec![password(), other.clone()], "teleport"),
            (Dialect3, Tcp, vec![password()], "basic-auth"),
            (Dialect2, Http, vec![other.clone()], "teleport"),
            (Dialect2, Http, vec![password(), password()], "basic-auth"),
        ] {
            let refusal = support.client_rules(&rules, protocol).expect_err(name);
            assert_eq!(refusal.code, RefusalCode::DialectUnsupported);
            assert!(refusal.message.contains(name), "{refusal}");
        }
        assert!(List.client_rules(&[other], Tcp).is_ok(), "the server decides");
        assert!(LinkVersion1.client_rules(&[], Http).is_ok());
    }

    #[test]
    fn an_invalid_configuration_is_refused() {
        for rule in [
            Rule::new(Rule::BASIC_AUTH, json!({"credentials": "nocolon"})),
            Rule::new(Rule::BASIC_AUTH, json!({})),
            Rule::new(Rule::LOCAL_ORIGIN, json!({"origin": "localhost"})),
        ] {
            for support in [Dialect3, Dialect2] {
                let refusal = support.client_rules(std::slice::from_ref(&rule), Http).expect_err("not valid");
                assert_eq!(refusal.code, RefusalCode::InvalidRequest);
            }
        }
    }
}
