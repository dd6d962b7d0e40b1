//! The rules of a tunnel, compiled from the list that its client sent and evaluated in one place.
//!
//! A new rule is a file of its own that has a function to compile it, and a line in [`KNOWN`].

mod basic_auth;
mod local_keep_alive;
mod local_origin;
mod response_timeout;

use std::{fmt, net::IpAddr};

use retunnel_proto::{
    http1::request::RequestHead,
    message::{Refusal, RefusalCode, TunnelProtocol},
    rules::{MAX_RULES, Rule},
};

use crate::tunnel::policy::{Denied, Policy, Rewrite};

/// Makes a rule of its configuration.
///
/// # Errors
/// What is wrong with it, for people.
type Compile = fn(&Rule, TunnelProtocol) -> Result<Box<dyn Evaluate>, String>;

/// Every rule that this server knows, by its type.
const KNOWN: &[(&str, Compile)] = &[
    (Rule::BASIC_AUTH, basic_auth::compile),
    (Rule::LOCAL_ORIGIN, local_origin::compile),
    (Rule::RESPONSE_TIMEOUT, response_timeout::compile),
    (Rule::LOCAL_KEEP_ALIVE, local_keep_alive::compile),
];

/// One compiled rule.
trait Evaluate: fmt::Debug + Send + Sync {
    /// Decides about a request, and adds to what is changed on its way.
    fn on_http_request<'a>(
        &'a self,
        _request: &RequestHead,
        _visitor: IpAddr,
        _rewrite: &mut Rewrite<'a>,
    ) -> Result<(), &'static Denied> {
        Ok(())
    }

    /// Decides about a connection of a TCP tunnel.
    fn on_tcp_connect(&self, _visitor: IpAddr) -> Result<(), &'static Denied> {
        Ok(())
    }
}

/// The rules of one tunnel, in the order of their list.
#[derive(Debug)]
pub(crate) struct Rules(Vec<Box<dyn Evaluate>>);

impl Rules {
    /// Compiles a list of rules.
    ///
    /// # Errors
    /// [`RefusalCode::InvalidRequest`], naming the rule that is unknown or not valid.
    pub(crate) fn compile(rules: &[Rule], protocol: TunnelProtocol) -> Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(RefusalCode::InvalidRequest, message);
        if rules.len() > MAX_RULES {
            return Err(invalid(format!("a tunnel has at most {MAX_RULES} rules; this one asks for {}", rules.len())));
        }
        let compile = |rule: &Rule| {
            let (_, compile) = KNOWN.iter().find(|(kind, _)| *kind == rule.kind).ok_or_else(|| {
                let known: Vec<&str> = KNOWN.iter().map(|(kind, _)| *kind).collect();
                invalid(format!("this server has no rule `{}`; it has: {}", rule.kind, known.join(", ")))
            })?;
            compile(rule, protocol).map_err(invalid)
        };
        rules.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }
}

impl Policy for Rules {
    fn on_http_request(&self, request: &RequestHead, visitor: IpAddr) -> Result<Rewrite<'_>, &'static Denied> {
        let mut rewrite = Rewrite::default();
        for rule in &self.0 {
            rule.on_http_request(request, visitor, &mut rewrite)?;
        }
        Ok(rewrite)
    }

    fn on_tcp_connect(&self, visitor: IpAddr) -> Result<(), &'static Denied> {
        self.0.iter().try_for_each(|rule| rule.on_tcp_connect(visitor))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_rule_is_refused_by_name() {
        let refusal = Rules::compile(&[Rule::new("teleport", json!({}))], TunnelProtocol::Http).expect_err("unknown");
        assert_eq!(refusal.code, RefusalCode::InvalidRequest);
        assert!(refusal.message.contains("`teleport`") && refusal.message.contains("basic-auth"), "{refusal}");
    }

    #[test]
    fn rules_of_http_are_refused_for_tcp() {
        for rule in [
            Rule::basic_auth(retunnel_proto::message::HttpAuth("a:b".into())),
            Rule::local_origin("http://a"),
            Rule::response_timeout(1.5),
            Rule::local_keep_alive(false),
        ] {
            assert!(Rules::compile(std::slice::from_ref(&rule), TunnelProtocol::Http).is_ok());
            let refusal = Rules::compile(&[rule], TunnelProtocol::Tcp).expect_err("not for TCP");
            assert_eq!(refusal.code, RefusalCode::InvalidRequest);
        }
    }

    #[test]
    fn a_response_timeout_is_a_time_that_can_be_waited_for() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 86_401.0] {
            let rule = Rule::response_timeout(seconds);
            assert!(Rules::compile(&[rule], TunnelProtocol::Http).is_err(), "{seconds}");
        }
    }

    #[test]
    fn there_are_only_so_many_rules() {
        let many = vec![Rule::local_origin("http://a"); MAX_RULES + 1];
        assert!(Rules::compile(&many, TunnelProtocol::Http).is_err());
    }
}
