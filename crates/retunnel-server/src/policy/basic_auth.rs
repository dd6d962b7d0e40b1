//! `basic-auth`: visitors must present credentials.

use std::net::IpAddr;

use retunnel_proto::{
    PageCode,
    http1::request::RequestHead,
    message::TunnelProtocol,
    rules::{BasicAuth, BasicAuthConfig, Rule},
};

use super::Evaluate;
use crate::tunnel::policy::{Denied, Rewrite};

const UNAUTHORIZED: Denied = Denied {
    status: 401,
    code: PageCode::Unauthorized,
    heading: "This tunnel requires a password",
    detail: "Enter the user name and password that the owner gave you.",
    challenge: Some("Basic realm=\"tunnel\", charset=\"UTF-8\""),
};

pub(super) fn compile(rule: &Rule, protocol: TunnelProtocol) -> Result<Box<dyn Evaluate>, String> {
    if protocol == TunnelProtocol::Tcp {
        return Err("a TCP tunnel cannot ask visitors for a password".into());
    }
    let config: BasicAuthConfig = rule.read()?;
    BasicAuth::new(&config.credentials)
        .map(|auth| Box::new(auth) as Box<dyn Evaluate>)
        .map_err(|error| error.to_string())
}

impl Evaluate for BasicAuth {
    fn on_http_request<'a>(
        &'a self,
        request: &RequestHead,
        _: IpAddr,
        rewrite: &mut Rewrite<'a>,
    ) -> Result<(), &'static Denied> {
        if !self.admits(request.headers.all("authorization")) {
            return Err(&UNAUTHORIZED);
        }
        rewrite.strip_authorization = true;
        Ok(())
    }
}
