//! Registers an account for a client without a token.

use retunnel_proto::message::Token;

use crate::{
    api::ApiClient,
    error::{ApiError, ConnectError},
    event::Event,
    state::Shared,
    transport::Dialer,
};

/// The token of a new account.
pub(super) async fn account(shared: &Shared, dialer: &Dialer) -> Result<Token, ConnectError> {
    let token = ApiClient::over(dialer.clone()).register(None, None).await.map_err(|source| match source {
        ApiError::Connect(cause) => *cause,
        source => ConnectError::Register { endpoint: dialer.endpoint.clone(), source },
    })?;
    shared.emit(Event::Registered { token: token.clone() });
    dialer.trust();
    Ok(token)
}
