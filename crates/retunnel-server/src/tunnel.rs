//! The ground that everything else stands on: a live tunnel, its public address, what visitors did on it, and what its
//! upstream and its policy must be able to do. Knows no dialect, no connection and no rule.

pub(crate) mod activity;
pub(crate) mod address;
pub(crate) mod name;
pub(crate) mod policy;
pub(crate) mod upstream;

use std::{fmt, sync::OnceLock};

use retunnel_proto::{
    TunnelId,
    message::{Refusal, TunnelProtocol},
};
use tokio_util::sync::CancellationToken;

use crate::{account::AccountId, limits::Peer};

use activity::Activity;
use address::PublicAddress;
use policy::Policy;
use upstream::Upstream;

/// One public address while a session serves it.
pub(crate) struct Tunnel {
    /// Stable over reconnects.
    pub(crate) id: TunnelId,
    /// The leased address.
    pub(crate) address: PublicAddress,
    pub(crate) protocol: TunnelProtocol,
    pub(crate) account: AccountId,
    /// Where its client comes from.
    pub(crate) peer: Peer,
    /// The public address as a URL.
    pub(crate) url: String,
    /// What holds for its visitors and their requests.
    pub(crate) policy: Box<dyn Policy>,
    /// What carries its visitors to the client.
    pub(crate) upstream: Box<dyn Upstream>,
    pub(crate) activity: Activity,
    /// Ends the tunnel's relays. Also cancelled when the server stops.
    pub(crate) closed: CancellationToken,
    /// Why the server closed it.
    pub(crate) refusal: OnceLock<Refusal>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Closes the tunnel on the server's side; its session notifies the client.
    pub(crate) fn close(&self, refusal: Refusal) {
        let _ = self.refusal.set(refusal);
        self.closed.cancel();
        self.activity.wake();
    }
}
