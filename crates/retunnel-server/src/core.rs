//! What every part of a running server shares: configuration, accounts, live tunnels, budgets, and the two stop signals.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

use retunnel_link::Budget;
use retunnel_proto::message::{Refusal, RefusalCode, Token};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

use crate::{
    auth::{Account, Auth, AuthError},
    config::{Registration, ServerConfig},
    control::{lanes::LaneDesk, v3::Waiting},
    edge::tls::Tls,
    hostnames::Hostnames,
    limits::{ConnectionGate, RateLimits},
    registry::Registry,
};

/// Unit of [`Core::whole_bodies`] in bytes.
pub(crate) const BODY_PIECE: usize = 64 * 1024;

/// Shared by every task of one server.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: ServerConfig,
    /// Where the server really listens.
    pub(crate) address: SocketAddr,
    /// The certificate, when there is one.
    pub(crate) tls: Option<Tls>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) auth: Auth,
    pub(crate) hostnames: Arc<Hostnames>,
    pub(crate) rates: Arc<RateLimits>,
    pub(crate) gate: ConnectionGate,
    /// Connections that sessions wait for.
    pub(crate) lanes: LaneDesk,
    /// Visitors' connections that may still be accepted.
    pub(crate) visitors: Arc<Semaphore>,
    /// Received bytes that wait for their readers, over all links.
    pub(crate) budget: Arc<Budget>,
    /// The same over all 3.x sessions.
    pub(crate) waiting: Arc<Waiting>,
    /// Request bodies that are kept whole for 2.x clients, in pieces of [`BODY_PIECE`].
    pub(crate) whole_bodies: Arc<Semaphore>,
    /// The REST API.
    pub(crate) rest: axum::Router,
    pub(crate) ready: Arc<AtomicBool>,
    /// Visitors' connections and relays: what a drain waits for.
    pub(crate) relays: TaskTracker,
    /// Sessions, listeners and upkeep.
    pub(crate) tasks: TaskTracker,
    /// No new work; what runs may finish.
    pub(crate) draining: CancellationToken,
    /// Everything ends now.
    pub(crate) stopping: CancellationToken,
}

impl Core {
    /// The account behind a token, counting failures against the peer's address.
    ///
    /// # Errors
    /// The refusal to send.
    pub(crate) async fn authenticate(&self, token: Option<&Token>, peer: SocketAddr) -> Result<Account, Refusal> {
        let Some(token) = token else {
            let message = "this server wants a token: register, or save one with `retunnel authtoken`";
            return Err(Refusal::new(RefusalCode::AuthRequired, message));
        };
        match self.auth.authenticate(token).await {
            Ok(account) => Ok(account),
            Err(AuthError::Invalid) => {
                if let Err(seconds) = self.rates.failed_authentication(peer.ip()) {
                    let message = "too many failed authentications from this address; wait before the next try";
                    return Err(Refusal {
                        code: RefusalCode::RateLimited,
                        message: message.into(),
                        retry_after: Some(seconds),
                    });
                }
                let message = "the token is unknown, revoked or expired; get a new one with `retunnel authtoken`";
                Err(Refusal::new(RefusalCode::Unauthorized, message))
            }
            Err(cause) => {
                error!(%cause, "accounts cannot be read");
                Err(Refusal {
                    code: RefusalCode::Internal,
                    message: "the server cannot read its accounts now".into(),
                    retry_after: Some(2),
                })
            }
        }
    }

    /// An account for a client that has no token and cannot ask for one, as the published 3.0.0 and 3.0.1: only where
    /// anybody may register, and counted as a registration.
    ///
    /// # Errors
    /// The refusal to send.
    pub(crate) async fn anonymous(&self, peer: SocketAddr) -> Result<Account, Refusal> {
        if self.config.registration != Registration::Open {
            return self.authenticate(None, peer).await;
        }
        if let Err(seconds) = self.rates.registration(peer.ip()) {
            let message = "too many registrations from this address";
            return Err(Refusal {
                code: RefusalCode::RateLimited,
                message: message.into(),
                retry_after: Some(seconds),
            });
        }
        let email = format!("anon-{}@retunnel.com", retunnel_proto::random_text(12));
        match self.auth.register(&email, None).await {
            Ok((_, token)) => self.authenticate(Some(&token), peer).await,
            Err(cause) => {
                error!(%cause, "account not made");
                let message = "the server cannot make an account now";
                Err(Refusal { code: RefusalCode::Internal, message: message.into(), retry_after: Some(2) })
            }
        }
    }
}
