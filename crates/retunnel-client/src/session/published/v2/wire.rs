//! What the control socket and the data sockets have in common.

use std::sync::Arc;

use retunnel_link::LinkError;
use retunnel_proto::{
    ClientId,
    dialect::v2,
    message::{ClientMessage, Token},
};
use tokio::sync::Semaphore;
use tokio_websockets::Message;

use crate::transport::{
    Dialer,
    websocket::{self, WebSocket},
};

/// What is needed to open a data socket.
pub(super) struct Opener {
    pub(super) dialer: Dialer,
    pub(super) token: Option<Token>,
    pub(super) client_id: ClientId,
    pub(super) answers: Arc<Semaphore>,
}

/// Sends a message on either.
pub(super) async fn send(socket: &mut WebSocket, message: &ClientMessage) -> Result<(), LinkError> {
    let Some(bytes) = v2::encode_client(message) else { return Ok(()) };
    websocket::send(socket, Message::binary(bytes)).await
}
