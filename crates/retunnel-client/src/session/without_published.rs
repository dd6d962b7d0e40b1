//! Replaces `published.rs` in a build without the feature `dialects`.

use std::future::{Ready, ready};

use retunnel_link::LinkError;
use retunnel_proto::message::Auth;
use tokio::sync::mpsc;

use super::tunnels::Tunnels;
use crate::{dialect::Dialect, error::ConnectError, event::SessionInfo, state::Command, transport::Dialer};

/// No session can exist.
pub(super) enum Session {}

pub(super) fn establish(
    _dialer: &Dialer,
    _auth: Auth,
    dialect: Dialect,
) -> Ready<Result<(Session, SessionInfo), ConnectError>> {
    ready(Err(ConnectError::DialectNotIncluded(dialect)))
}

impl Session {
    pub(super) fn run(self, _tunnels: Tunnels, _commands: &mut mpsc::UnboundedReceiver<Command>) -> Ready<LinkError> {
        match self {}
    }
}
