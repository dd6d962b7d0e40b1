//! `response-timeout`: a request is given up when its answer has not begun in time.

use std::{net::IpAddr, time::Duration};

use retunnel_proto::{
    http1::request::RequestHead,
    message::TunnelProtocol,
    rules::{MAX_RESPONSE_TIMEOUT, ResponseTimeoutConfig, Rule},
};

use super::Evaluate;
use crate::tunnel::policy::{Denied, Rewrite};

#[derive(Debug)]
struct ResponseTimeout(Duration);

pub(super) fn compile(rule: &Rule, protocol: TunnelProtocol) -> Result<Box<dyn Evaluate>, String> {
    if protocol == TunnelProtocol::Tcp {
        return Err("a TCP tunnel has no answers to wait for".into());
    }
    let ResponseTimeoutConfig { seconds } = rule.read()?;
    let limit = Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero());
    let limit = limit.filter(|_| seconds <= MAX_RESPONSE_TIMEOUT);
    let limit =
        limit.ok_or_else(|| format!("a response timeout is more than 0 and at most {MAX_RESPONSE_TIMEOUT} seconds"))?;
    Ok(Box::new(ResponseTimeout(limit)))
}

impl Evaluate for ResponseTimeout {
    fn on_http_request<'a>(
        &'a self,
        _: &RequestHead,
        _: IpAddr,
        rewrite: &mut Rewrite<'a>,
    ) -> Result<(), &'static Denied> {
        rewrite.response_timeout = Some(self.0);
        Ok(())
    }
}
