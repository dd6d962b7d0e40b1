//! `local-origin`: the local service sees its own origin instead of the public one.

use std::net::IpAddr;

use retunnel_proto::{
    http1::request::RequestHead,
    message::TunnelProtocol,
    rules::{LocalOrigin, LocalOriginConfig, Rule},
};

use super::Evaluate;
use crate::tunnel::policy::{Denied, Rewrite};

pub(super) fn compile(rule: &Rule, protocol: TunnelProtocol) -> Result<Box<dyn Evaluate>, String> {
    if protocol == TunnelProtocol::Tcp {
        return Err("a TCP tunnel has no Host header to rewrite".into());
    }
    let config: LocalOriginConfig = rule.read()?;
    let origin = LocalOrigin::parse(&config.origin).ok_or("the host for the local service is not HOST or HOST:PORT")?;
    Ok(Box::new(origin))
}

impl Evaluate for LocalOrigin {
    fn on_http_request<'a>(
        &'a self,
        _: &RequestHead,
        _: IpAddr,
        rewrite: &mut Rewrite<'a>,
    ) -> Result<(), &'static Denied> {
        rewrite.local_origin = Some(self);
        Ok(())
    }
}
