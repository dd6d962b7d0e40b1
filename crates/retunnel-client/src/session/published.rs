//! Sessions with servers that speak only the published dialects.

mod v2;
mod v3;

use retunnel_link::LinkError;
use retunnel_proto::message::Auth;
use tokio::sync::mpsc;

use super::tunnels::Tunnels;
use crate::{dialect::Dialect, error::ConnectError, event::SessionInfo, state::Command, transport::Dialer};

/// A session in one of the published dialects.
pub(super) enum Session {
    V3(Box<v3::Session>),
    V2(Box<v2::Session>),
}

/// Connects and authenticates.
pub(super) async fn establish(
    dialer: &Dialer,
    auth: Auth,
    dialect: Dialect,
) -> Result<(Session, SessionInfo), ConnectError> {
    match dialect {
        Dialect::V2 => v2::establish(dialer, auth).await.map(|(session, info)| (Session::V2(Box::new(session)), info)),
        _ => v3::establish(dialer, auth).await.map(|(session, info)| (Session::V3(Box::new(session)), info)),
    }
}

impl Session {
    /// Serves until the session ends and returns why it ended.
    pub(super) async fn run(self, tunnels: Tunnels, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        match self {
            Self::V3(session) => session.run(tunnels, commands).await,
            Self::V2(session) => session.run(tunnels, commands).await,
        }
    }
}
