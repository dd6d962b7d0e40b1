//! Which tunnel is live here: the one place where sessions, which bring tunnels, and the edge, which finds them, meet.

mod claims;
mod lease;

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use retunnel_proto::message::{Refusal, RefusalCode};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{
    account::AccountId,
    limits::Peer,
    tunnel::{Tunnel, address::PublicAddress},
};

pub(crate) use claims::{Claims, SingleNode};
pub(crate) use lease::Found;
use lease::Leases;

/// Opens and closes the public ports of TCP tunnels. A port stays open while its lease is held, so that visitors wait for
/// the owner instead of being refused.
pub(crate) trait Ports: fmt::Debug + Send + Sync {
    /// The port was leased: opens it, unless it is open.
    ///
    /// # Errors
    /// When the port cannot be bound.
    fn leased(&self, port: u16) -> io::Result<()>;

    /// The lease has ended: closes the port. Called under the registry's lock; must not call back.
    fn freed(&self, port: u16);
}

/// A tunnel as the holder of a lease. Equal only to itself.
#[derive(Debug, Clone)]
struct Holder(Arc<Tunnel>);

impl PartialEq for Holder {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// How much one account may have at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub(crate) sessions: usize,
    pub(crate) tunnels: usize,
    pub(crate) ports: usize,
    /// Ports of all clients of one address.
    pub(crate) ports_per_address: usize,
    /// Sessions of all clients of one address.
    pub(crate) sessions_per_address: usize,
}

#[derive(Debug, Default)]
struct Usage {
    sessions: usize,
    tunnels: usize,
}

/// What the clients of one address have.
#[derive(Debug, Default)]
struct PeerUsage {
    sessions: usize,
    ports: usize,
}

#[derive(Debug)]
struct Inner {
    leases: Leases<AccountId, Holder>,
    usage: HashMap<AccountId, Usage>,
    /// The same for each address that clients come from.
    usage_of_peer: HashMap<Peer, PeerUsage>,
    /// Visitors that wait for the owner of an address to come back.
    waiting: HashMap<PublicAddress, Arc<Notify>>,
    /// Addresses whose stored lease is out of date.
    unsaved: HashSet<PublicAddress>,
}

/// Live tunnels, leases, and how much each account uses.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    quota: Quota,
    claims: Box<dyn Claims>,
    ports: Box<dyn Ports>,
    unsaved: Notify,
}

impl Registry {
    /// An empty registry. Lost addresses are held for `grace`.
    pub(crate) fn new(grace: Duration, quota: Quota, claims: Box<dyn Claims>, ports: Box<dyn Ports>) -> Self {
        let inner = Inner {
            leases: Leases::new(grace),
            usage: HashMap::new(),
            usage_of_peer: HashMap::new(),
            waiting: HashMap::new(),
            unsaved: HashSet::new(),
        };
        Self { inner: Mutex::new(inner), quota, claims, ports, unsaved: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds the registry")
    }

    /// Restores the leases of an earlier run, held for the grace time.
    pub(crate) fn restore(&self, leases: impl IntoIterator<Item = (PublicAddress, AccountId)>) {
        let now = Instant::now();
        let mut inner = self.lock();
        for (address, account) in leases {
            inner.leases.restore(address, account, now);
        }
    }

    // --- sessions --------------------------------------------------------------------------------------------

    /// Counts a session of an account, and of the address that it comes from, until the guard is dropped.
    ///
    /// # Errors
    /// [`RefusalCode::SessionLimit`].
    pub(crate) fn enter_session(self: &Arc<Self>, account: AccountId, peer: Peer) -> Result<SessionGuard, Refusal> {
        let mut inner = self.lock();
        let used = inner.usage.get(&account).map_or(0, |usage| usage.sessions);
        let used_by_peer = inner.usage_of_peer.get(&peer).map_or(0, |usage| usage.sessions);
        let message = if used >= self.quota.sessions {
            format!("this account has reached its limit of {used} sessions; end one")
        } else if used_by_peer >= self.quota.sessions_per_address {
            format!("the clients of your address have reached their limit of {used_by_peer} sessions; end one")
        } else {
            inner.usage.entry(account).or_default().sessions += 1;
            inner.usage_of_peer.entry(peer).or_default().sessions += 1;
            drop(inner);
            return Ok(SessionGuard { registry: Arc::clone(self), account, peer });
        };
        Err(Refusal::new(RefusalCode::SessionLimit, message).after(5))
    }

    // --- tunnels ---------------------------------------------------------------------------------------------

    /// Makes a tunnel the one that serves its address, and opens its port if it has one.
    ///
    /// # Errors
    /// [`RefusalCode::TunnelLimit`]; [`RefusalCode::NameUnavailable`], [`RefusalCode::HostnameTaken`] or
    /// [`RefusalCode::PortUnavailable`] when the address belongs to another account or the port cannot be bound; the
    /// refusal of [`Claims`]. Nothing is left of the claim then.
    pub(crate) async fn claim(&self, tunnel: &Arc<Tunnel>) -> Result<(), Refusal> {
        self.claims.claim(&tunnel.address, tunnel.account).await?;
        self.lease(tunnel)?;
        let Some(port) = tunnel.address.port() else { return Ok(()) };
        self.ports.leased(port).map_err(|error| {
            self.release(tunnel);
            let message = format!("port {port} cannot be opened on the server: {error}");
            Refusal::new(RefusalCode::PortUnavailable, message)
        })
    }

    fn lease(&self, tunnel: &Arc<Tunnel>) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut inner = self.lock();
        self.expire(&mut inner, now);
        let used = inner.usage.get(&tunnel.account).map_or(0, |usage| usage.tunnels);
        let replaces = matches!(inner.leases.find(&tunnel.address, now), Found::Live(_));
        if used >= self.quota.tunnels && !replaces {
            let message = format!("this account has reached its limit of {used} tunnels; close one");
            return Err(Refusal::new(RefusalCode::TunnelLimit, message));
        }
        if let Some(port) = tunnel.address.port() {
            self.check_ports(&inner, tunnel, port)?;
        }
        let Ok(claimed) = inner.leases.claim(&tunnel.address, &tunnel.account, Holder(Arc::clone(tunnel)), now) else {
            return Err(taken(&tunnel.address));
        };
        if claimed.is_new {
            self.changed(&mut inner, tunnel.address.clone());
        }
        inner.usage.entry(tunnel.account).or_default().tunnels += 1;
        if tunnel.address.port().is_some() {
            inner.usage_of_peer.entry(tunnel.peer).or_default().ports += 1;
        }
        if let Some(Holder(old)) = claimed.evicted {
            inner.tunnel_gone(&old);
            let message = format!("a newer session of this account took over {}", old.address);
            old.close(Refusal::new(RefusalCode::Superseded, message));
        }
        if let Some(waiting) = inner.waiting.remove(&tunnel.address) {
            waiting.notify_waiters();
        }
        Ok(())
    }

    /// Whether an account, and the address that it comes from, may have another port.
    fn check_ports(&self, inner: &Inner, tunnel: &Tunnel, port: u16) -> Result<(), Refusal> {
        if inner.leases.owner(&PublicAddress::Port(port)) == Some(&tunnel.account) {
            return Ok(());
        }
        let used = inner.leases.ports_of(&tunnel.account);
        let used_by_peer = inner.usage_of_peer.get(&tunnel.peer).map_or(0, |usage| usage.ports);
        let message = if used >= self.quota.ports {
            format!("this account has reached its limit of {used} TCP ports; close a tunnel")
        } else if used_by_peer >= self.quota.ports_per_address {
            format!("the clients of your address have reached their limit of {used_by_peer} TCP ports; close a tunnel")
        } else {
            return Ok(());
        };
        Err(Refusal::new(RefusalCode::TunnelLimit, message))
    }

    /// The session of these tunnels was lost: their addresses are held for the account.
    pub(crate) fn lose(&self, tunnel: &Arc<Tunnel>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let holder = Holder(Arc::clone(tunnel));
        if inner.leases.find(&tunnel.address, now) == Found::Live(holder.clone()) {
            inner.leases.lose(&tunnel.address, &holder, now);
            inner.tunnel_gone(tunnel);
            for address in inner.leases.trim(&tunnel.account, self.quota.tunnels) {
                self.freed(&mut inner, address);
            }
        }
        drop(inner);
        tunnel.closed.cancel();
    }

    /// The client closed this tunnel: its address is free at once.
    pub(crate) fn release(&self, tunnel: &Arc<Tunnel>) {
        let mut inner = self.lock();
        if inner.leases.release(&tunnel.address, &Holder(Arc::clone(tunnel))) {
            inner.tunnel_gone(tunnel);
            self.freed(&mut inner, tunnel.address.clone());
        }
        drop(inner);
        tunnel.closed.cancel();
    }

    /// Takes an address from an owner that has no right to it any more.
    pub(crate) fn withdraw(&self, address: &PublicAddress, account: AccountId, refusal: Refusal) {
        let mut inner = self.lock();
        let Some(live) = inner.leases.withdraw(address, &account) else { return };
        self.freed(&mut inner, address.clone());
        if let Some(Holder(tunnel)) = live {
            inner.tunnel_gone(&tunnel);
            drop(inner);
            tunnel.close(refusal);
        }
    }

    /// What an address stands for, without waiting.
    pub(crate) fn find_now(&self, address: &PublicAddress, now: Instant) -> Found<Arc<Tunnel>> {
        match self.lock().leases.find(address, now) {
            Found::Live(Holder(tunnel)) => Found::Live(tunnel),
            Found::Held(until) => Found::Held(until),
            Found::Free => Found::Free,
        }
    }

    /// The tunnel that serves an address. Waits up to `hold` from `now` for a lost owner to come back.
    pub(crate) async fn find(&self, address: &PublicAddress, mut now: Instant, hold: Duration) -> Found<Arc<Tunnel>> {
        let deadline = now + hold;
        loop {
            let (found, waiting) = {
                let mut inner = self.lock();
                match inner.leases.find(address, now) {
                    Found::Live(Holder(tunnel)) => return Found::Live(tunnel),
                    Found::Free => return Found::Free,
                    Found::Held(until) => {
                        let notify = Arc::clone(inner.waiting.entry(address.clone()).or_default());
                        // Registered under the lock: a claim after it cannot be missed.
                        (Found::Held(until), notify.notified_owned())
                    }
                }
            };
            if timeout_at(deadline, waiting).await.is_err() {
                return found;
            }
            now = Instant::now();
        }
    }

    /// Whether no one owns an address.
    pub(crate) fn is_free(&self, address: &PublicAddress) -> bool {
        self.lock().leases.owner(address).is_none()
    }

    // --- upkeep ----------------------------------------------------------------------------------------------

    /// Frees what was held long enough. Called once a second.
    pub(crate) fn sweep(&self) {
        let mut inner = self.lock();
        self.expire(&mut inner, Instant::now());
        inner.usage.retain(|_, usage| usage.sessions > 0 || usage.tunnels > 0);
        inner.usage_of_peer.retain(|_, usage| usage.sessions > 0 || usage.ports > 0);
        inner.waiting.retain(|_, notify| Arc::strong_count(notify) > 1);
    }

    /// Waits until stored leases are out of date and returns their addresses with their present owners.
    pub(crate) async fn unsaved(&self) -> Vec<(PublicAddress, Option<AccountId>)> {
        loop {
            let changed = {
                let mut inner = self.lock();
                let addresses = std::mem::take(&mut inner.unsaved);
                addresses
                    .into_iter()
                    .map(|address| (address.clone(), inner.leases.owner(&address).copied()))
                    .collect::<Vec<_>>()
            };
            if !changed.is_empty() {
                return changed;
            }
            self.unsaved.notified().await;
        }
    }

    /// Marks an address again whose lease could not be stored.
    pub(crate) fn not_saved(&self, address: PublicAddress) {
        self.changed(&mut self.lock(), address);
    }

    fn changed(&self, inner: &mut Inner, address: PublicAddress) {
        inner.unsaved.insert(address);
        self.unsaved.notify_one();
    }

    fn expire(&self, inner: &mut Inner, now: Instant) {
        for address in inner.leases.expire(now) {
            self.freed(inner, address);
        }
    }

    fn freed(&self, inner: &mut Inner, address: PublicAddress) {
        if let PublicAddress::Port(port) = address {
            self.ports.freed(port);
        }
        if let Some(waiting) = inner.waiting.remove(&address) {
            waiting.notify_waiters();
        }
        self.changed(inner, address);
    }
}

impl Inner {
    fn tunnel_gone(&mut self, tunnel: &Tunnel) {
        if let Some(usage) = self.usage.get_mut(&tunnel.account) {
            usage.tunnels = usage.tunnels.saturating_sub(1);
        }
        if tunnel.address.port().is_some()
            && let Some(usage) = self.usage_of_peer.get_mut(&tunnel.peer)
        {
            usage.ports = usage.ports.saturating_sub(1);
        }
    }
}

/// The refusal of an address that belongs to another account. The same for a live and a held one.
fn taken(address: &PublicAddress) -> Refusal {
    match address {
        PublicAddress::Name(name) => {
            Refusal::new(RefusalCode::NameUnavailable, format!("the name `{name}` is taken; choose another one"))
        }
        PublicAddress::Host(hostname) => Refusal::new(
            RefusalCode::HostnameTaken,
            format!("the host name `{hostname}` is served for another account"),
        ),
        PublicAddress::Port(port) => {
            Refusal::new(RefusalCode::PortUnavailable, format!("port {port} is taken; choose another one"))
        }
    }
}

/// One counted session of an account.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    registry: Arc<Registry>,
    account: AccountId,
    peer: Peer,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(usage) = inner.usage.get_mut(&self.account) {
            usage.sessions = usage.sessions.saturating_sub(1);
        }
        if let Some(usage) = inner.usage_of_peer.get_mut(&self.peer) {
            usage.sessions = usage.sessions.saturating_sub(1);
        }
    }
}
