//! The one life of a session, whatever its client speaks: authentication and admission, opening and closing tunnels,
//! revocation, reports, and what becomes of the tunnels at the end. A dialect reads its wire, calls this, and maps the
//! results.

mod open;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use retunnel_proto::{
    TunnelId,
    message::{Refusal, Requests, Token},
};
use tokio::sync::{Notify, broadcast};
use tracing::info;

use super::Control;
use crate::{
    auth::{Account, Revoked},
    limits::{Pace, Peer},
    registry::SessionGuard,
    tunnel::Tunnel,
};

/// How a client identifies itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Credentials<'a> {
    /// By a token; without one it is refused.
    Token(Option<&'a Token>),
    /// Not at all: it gets an account of its own where anyone may register.
    Anonymous,
}

/// What a session has to react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Visitors did something, or a tunnel was closed by the server ([`Session::news`]).
    News,
    /// The session's token is not valid any more.
    Revoked,
    /// The server stops; running transfers may finish. Comes once.
    Draining,
    /// The server has stopped.
    Stopping,
}

/// What happened on a session's tunnels since the last time.
#[derive(Debug, Default)]
pub(super) struct News {
    /// What visitors did.
    pub(super) requests: Vec<Requests>,
    /// Tunnels that the server closed.
    pub(super) closed: Vec<(Arc<Tunnel>, Refusal)>,
}

/// One authenticated client and its tunnels. Dropping it loses the tunnels, so that a panic does, too: no visitor may be
/// sent to a client that is gone.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) control: Arc<Control>,
    pub(super) account: Account,
    peer: Peer,
    pace: Pace,
    tunnels: HashMap<TunnelId, Arc<Tunnel>>,
    changed: Arc<Notify>,
    revoked: broadcast::Receiver<Revoked>,
    /// A revocation may concern this session.
    must_check: bool,
    is_draining: bool,
    /// The client said goodbye: its addresses are free at once.
    is_clean: bool,
    _guard: SessionGuard,
}

impl Session {
    /// Authenticates a client and counts its session.
    ///
    /// # Errors
    /// The refusal to send.
    pub(super) async fn enter(
        control: &Arc<Control>,
        credentials: Credentials<'_>,
        peer: SocketAddr,
    ) -> Result<Self, Refusal> {
        // Taken before the token is checked, so that no revocation is missed.
        let revoked = control.auth.revocations();
        let entered = async {
            let account = match credentials {
                Credentials::Token(token) => control.authenticate(token, peer).await?,
                Credentials::Anonymous => control.anonymous(peer).await?,
            };
            let guard = control.registry.enter_session(account.id, Peer::of(peer.ip()))?;
            Ok((account, guard))
        };
        let (account, guard) = entered.await.inspect_err(|refusal: &Refusal| {
            info!(%peer, code = %refusal.code, "session refused");
        })?;
        Ok(Self {
            control: Arc::clone(control),
            account,
            peer: Peer::of(peer.ip()),
            pace: Pace::new(),
            tunnels: HashMap::new(),
            changed: Arc::default(),
            revoked,
            must_check: false,
            is_draining: false,
            is_clean: false,
            _guard: guard,
        })
    }

    /// Waits until the client may send its next message. A client that sends more is not read, and only it waits.
    pub(super) async fn turn(&mut self) {
        self.pace.turn().await;
    }

    /// Waits for what the session has to react to. Cancel-safe.
    pub(super) async fn event(&mut self) -> Event {
        let running = Arc::clone(&self.control.running);
        loop {
            if self.must_check {
                // Stays set when this is cancelled.
                let is_valid = self.control.auth.is_valid(&self.account).await;
                self.must_check = false;
                if !is_valid {
                    return Event::Revoked;
                }
            }
            // Every arm is cancel-safe.
            tokio::select! {
                () = self.changed.notified() => return Event::News,
                // A listener that missed some checks its own token.
                revoked = self.revoked.recv() => {
                    self.must_check = revoked.map_or(true, |revoked| revoked.concerns(&self.account));
                }
                () = running.draining.cancelled(), if !self.is_draining => {
                    self.is_draining = true;
                    return Event::Draining;
                }
                () = running.stopping.cancelled() => return Event::Stopping,
            }
        }
    }

    /// What happened on the tunnels since the last call. Tunnels that the server closed are forgotten.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::default();
        self.tunnels.retain(|id, tunnel| {
            news.requests.extend(tunnel.activity.take(id));
            let Some(refusal) = tunnel.refusal.get() else { return true };
            info!(tunnel = %tunnel.address, code = %refusal.code, "tunnel closed by the server");
            news.closed.push((Arc::clone(tunnel), refusal.clone()));
            false
        });
        news
    }

    /// The client closes a tunnel: its address is free at once.
    pub(super) fn close(&mut self, id: &TunnelId) {
        if let Some(tunnel) = self.tunnels.remove(id) {
            info!(tunnel = %tunnel.address, "tunnel closed");
            self.control.registry.release(&tunnel);
        }
    }

    /// Whether the client has said goodbye.
    pub(super) const fn set_clean(&mut self, is_clean: bool) {
        self.is_clean = is_clean;
    }

    /// Frees what was idle for too long. Called once a second where the dialect keeps something idle.
    pub(super) fn sweep(&self) {
        self.tunnels.values().for_each(|tunnel| tunnel.upstream.sweep());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for (_, tunnel) in self.tunnels.drain() {
            match self.is_clean {
                true => self.control.registry.release(&tunnel),
                false => self.control.registry.lose(&tunnel),
            }
        }
    }
}
