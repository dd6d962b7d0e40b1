//! Registers an account for a client without a token.

use std::sync::Arc;

use retunnel_proto::message::Token;
use tokio::task::spawn_blocking;

use super::Registration;
use crate::{
    account::LockedAccount,
    api::ApiClient,
    error::{ApiError, ConnectError},
    event::Event,
    state::Shared,
    transport::Dialer,
};

/// The token of a new account, or of one that another program registered in the meantime. `refused` is the token that the
/// server does not accept any more.
pub(super) async fn account(
    shared: &Shared,
    dialer: &Dialer,
    registration: &Registration,
    refused: Option<&Token>,
) -> Result<Token, ConnectError> {
    // Held until the new token is saved.
    let mut kept = locked(registration).await;
    let token = match kept.as_ref().and_then(|kept| kept.token()).filter(|token| Some(token) != refused) {
        Some(token) => token,
        None => {
            let registered = ApiClient::over(dialer.clone()).register(None, registration.invite.as_deref()).await;
            let token = registered.map_err(|source| match source {
                ApiError::Connect(cause) => *cause,
                source => ConnectError::Register { endpoint: dialer.endpoint.clone(), source },
            })?;
            let not_saved = kept.as_mut().and_then(|kept| kept.save(&token).err());
            shared.emit(Event::Registered { token: token.clone(), replaces: refused.cloned(), not_saved });
            token
        }
    };
    dialer.trust();
    Ok(token)
}

async fn locked(registration: &Registration) -> Option<Box<dyn LockedAccount>> {
    let accounts = Arc::clone(registration.accounts.as_ref()?);
    spawn_blocking(move || accounts.lock()).await.ok()
}
