//! `local-keep-alive`: whether connections to the local service serve further requests.

use std::net::IpAddr;

use retunnel_proto::{
    http1::request::RequestHead,
    message::TunnelProtocol,
    rules::{LocalKeepAliveConfig, Rule},
};

use super::Evaluate;
use crate::tunnel::policy::{Denied, Rewrite};

#[derive(Debug)]
struct LocalKeepAlive {
    is_enabled: bool,
}

pub(super) fn compile(rule: &Rule, protocol: TunnelProtocol) -> Result<Box<dyn Evaluate>, String> {
    if protocol == TunnelProtocol::Tcp {
        return Err("a TCP tunnel keeps no connections to the local service".into());
    }
    let LocalKeepAliveConfig { enabled } = rule.read()?;
    Ok(Box::new(LocalKeepAlive { is_enabled: enabled }))
}

impl Evaluate for LocalKeepAlive {
    fn on_http_request<'a>(
        &'a self,
        _: &RequestHead,
        _: IpAddr,
        rewrite: &mut Rewrite<'a>,
    ) -> Result<(), &'static Denied> {
        rewrite.close_local = !self.is_enabled;
        Ok(())
    }
}
