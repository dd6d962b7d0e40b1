//! Why a client ended.

use retunnel_client::Client;

/// The reason why a client ended, as an error that has an exit code.
pub(super) async fn end_error(client: &Client, cause: String) -> anyhow::Error {
    match client.connected().await {
        Err(error) => error.into(),
        Ok(_) => anyhow::anyhow!(cause),
    }
}
