//! Replaces `websocket.rs` in a build without the feature `websocket`: links need the upgrade.

use std::future::{Ready, ready};

use retunnel_proto::message::Token;

use super::{dialer::Dialer, socket::Socket};
use crate::error::ConnectError;

impl Dialer {
    pub(super) fn in_messages(&self, _nonce: Option<&Token>) -> Ready<Result<Socket, ConnectError>> {
        let answer = "no upgrade, and this build has no WebSockets".into();
        ready(Err(ConnectError::NotAServer { endpoint: self.endpoint.clone(), answer }))
    }
}
