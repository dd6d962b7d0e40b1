//! Which tunnel is live here: the one place where sessions (which bring tunnels) and the edge (which looks them up) meet.

mod lease;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use retunnel_proto::{
    ClientId,
    message::{Refusal, RefusalCode},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{auth::AccountId, control::v2::V2Session, tunnel::Tunnel};

use lease::Leases;
pub(crate) use lease::{Found, Key};

/// A tunnel as the holder of a lease: the same only when it is the very same tunnel.
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
}

#[derive(Debug, Default)]
struct Usage {
    sessions: usize,
    tunnels: usize,
}

#[derive(Debug)]
struct Inner {
    leases: Leases<AccountId, Holder>,
    usage: HashMap<AccountId, Usage>,
    /// Visitors that wait for an address to come back.
    waiting: HashMap<Key, Arc<Notify>>,
    /// The listeners of leased TCP ports; they stay open while a port is held.
    listeners: HashMap<u16, CancellationToken>,
    /// 2.x sessions by the id their data sockets present.
    v2_sessions: HashMap<ClientId, Arc<V2Session>>,
    /// Addresses whose stored lease is out of date.
    unsaved: HashSet<Key>,
}

/// Live tunnels, leases, and how much each account uses.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    quota: Quota,
    unsaved: Notify,
}

impl Registry {
    /// An empty registry. Lost addresses are held for `grace`.
    pub(crate) fn new(grace: Duration, quota: Quota) -> Self {
        let inner = Inner {
            leases: Leases::new(grace),
            usage: HashMap::new(),
            waiting: HashMap::new(),
            listeners: HashMap::new(),
            v2_sessions: HashMap::new(),
            unsaved: HashSet::new(),
        };
        Self { inner: Mutex::new(inner), quota, unsaved: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds the registry")
    }

    /// Puts the leases of an earlier run back, held for the grace time.
    pub(crate) fn restore(&self, leases: impl IntoIterator<Item = (Key, AccountId)>) {
        let now = Instant::now();
        let mut inner = self.lock();
        for (key, account) in leases {
            inner.leases.restore(key, account, now);
        }
    }

    // --- sessions --------------------------------------------------------------------------------------------

    /// Counts a session of an account; dropping the guard gives it back.
    ///
    /// # Errors
    /// [`RefusalCode::SessionLimit`].
    pub(crate) fn enter_session(self: &Arc<Self>, account: AccountId) -> Result<SessionGuard, Refusal> {
        let mut inner = self.lock();
        let usage = inner.usage.entry(account).or_default();
        if usage.sessions >= self.quota.sessions {
            let message = format!("this account has {} sessions, as many as it may have; end one", usage.sessions);
            return Err(Refusal { code: RefusalCode::SessionLimit, message, retry_after: Some(5) });
        }
        usage.sessions += 1;
        drop(inner);
        Ok(SessionGuard { registry: Arc::clone(self), account })
    }

    /// Makes a 2.x session reachable for its data sockets.
    pub(crate) fn add_v2_session(&self, client_id: ClientId, session: Arc<V2Session>) {
        self.lock().v2_sessions.insert(client_id, session);
    }

    pub(crate) fn remove_v2_session(&self, client_id: &ClientId) {
        self.lock().v2_sessions.remove(client_id);
    }

    pub(crate) fn v2_session(&self, client_id: &ClientId) -> Option<Arc<V2Session>> {
        self.lock().v2_sessions.get(client_id).cloned()
    }

    // --- tunnels ---------------------------------------------------------------------------------------------

    /// Makes a tunnel the one that serves its address.
    ///
    /// # Errors
    /// [`RefusalCode::TunnelLimit`]; [`RefusalCode::NameUnavailable`] or [`RefusalCode::PortUnavailable`] when the
    /// address belongs to another account.
    pub(crate) fn claim(&self, tunnel: &Arc<Tunnel>) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut inner = self.lock();
        self.expire(&mut inner, now);
        let used = inner.usage.get(&tunnel.account).map_or(0, |usage| usage.tunnels);
        let replaces = matches!(inner.leases.find(&tunnel.key, now), Found::Live(_));
        if used >= self.quota.tunnels && !replaces {
            let message = format!("this account has {used} tunnels, as many as it may have; close one");
            return Err(Refusal::new(RefusalCode::TunnelLimit, message));
        }
        let Ok(claimed) = inner.leases.claim(&tunnel.key, &tunnel.account, Holder(Arc::clone(tunnel)), now) else {
            return Err(taken(&tunnel.key));
        };
        if claimed.is_new {
            self.changed(&mut inner, tunnel.key.clone());
        }
        inner.usage.entry(tunnel.account).or_default().tunnels += 1;
        if let Some(Holder(old)) = claimed.evicted {
            inner.tunnel_gone(old.account);
            let message = format!("a newer session of this account took {} over", old.key);
            old.close(Refusal::new(RefusalCode::Superseded, message));
        }
        if let Some(waiting) = inner.waiting.remove(&tunnel.key) {
            waiting.notify_waiters();
        }
        Ok(())
    }

    /// The session of these tunnels was lost: their addresses are held for the account.
    pub(crate) fn lose(&self, tunnel: &Arc<Tunnel>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let holder = Holder(Arc::clone(tunnel));
        if inner.leases.find(&tunnel.key, now) == Found::Live(holder.clone()) {
            inner.leases.lose(&tunnel.key, &holder, now);
            inner.tunnel_gone(tunnel.account);
            for key in inner.leases.trim(&tunnel.account, self.quota.tunnels) {
                self.freed(&mut inner, key);
            }
        }
        drop(inner);
        tunnel.closed.cancel();
    }

    /// The client gave this tunnel up: its address is free at once.
    pub(crate) fn release(&self, tunnel: &Arc<Tunnel>) {
        let mut inner = self.lock();
        if inner.leases.release(&tunnel.key, &Holder(Arc::clone(tunnel))) {
            inner.tunnel_gone(tunnel.account);
            self.freed(&mut inner, tunnel.key.clone());
        }
        drop(inner);
        tunnel.closed.cancel();
    }

    /// Takes an address from its owner, who has no right to it any more.
    pub(crate) fn withdraw(&self, key: &Key, account: AccountId, refusal: Refusal) {
        let mut inner = self.lock();
        let Some(live) = inner.leases.withdraw(key, &account) else { return };
        self.freed(&mut inner, key.clone());
        if let Some(Holder(tunnel)) = live {
            inner.tunnel_gone(account);
            drop(inner);
            tunnel.close(refusal);
        }
    }

    /// The tunnel that serves an address, waiting up to `patience` from `now` on for its owner to come back.
    pub(crate) async fn find(&self, key: &Key, mut now: Instant, patience: Duration) -> Found<Arc<Tunnel>> {
        let deadline = now + patience;
        loop {
            let (found, waiting) = {
                let mut inner = self.lock();
                match inner.leases.find(key, now) {
                    Found::Live(Holder(tunnel)) => return Found::Live(tunnel),
                    Found::Free => return Found::Free,
                    Found::Held(until) => {
                        let notify = Arc::clone(inner.waiting.entry(key.clone()).or_default());
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

    /// Whether an address is nobody's.
    pub(crate) fn is_free(&self, key: &Key) -> bool {
        self.lock().leases.owner(key).is_none()
    }

    /// Hands over the listener of a leased port: `true` when there was none before.
    pub(crate) fn has_listener(&self, port: u16) -> bool {
        self.lock().listeners.contains_key(&port)
    }

    /// The listener of a leased port, cancelled when the port is free again.
    pub(crate) fn add_listener(&self, port: u16, listener: CancellationToken) {
        self.lock().listeners.insert(port, listener);
    }

    // --- upkeep ----------------------------------------------------------------------------------------------

    /// Frees what was held long enough. Called once a second.
    pub(crate) fn sweep(&self) {
        let mut inner = self.lock();
        self.expire(&mut inner, Instant::now());
        inner.usage.retain(|_, usage| usage.sessions > 0 || usage.tunnels > 0);
        inner.waiting.retain(|_, notify| Arc::strong_count(notify) > 1);
    }

    /// Waits until stored leases are out of date and gives each such address with its present owner.
    pub(crate) async fn unsaved(&self) -> Vec<(Key, Option<AccountId>)> {
        loop {
            let changed = {
                let mut inner = self.lock();
                let keys = std::mem::take(&mut inner.unsaved);
                keys.into_iter().map(|key| (key.clone(), inner.leases.owner(&key).copied())).collect::<Vec<_>>()
            };
            if !changed.is_empty() {
                return changed;
            }
            self.unsaved.notified().await;
        }
    }

    /// Puts an address back whose lease could not be stored.
    pub(crate) fn not_saved(&self, key: Key) {
        self.changed(&mut self.lock(), key);
    }

    fn changed(&self, inner: &mut Inner, key: Key) {
        inner.unsaved.insert(key);
        self.unsaved.notify_one();
    }

    fn expire(&self, inner: &mut Inner, now: Instant) {
        for key in inner.leases.expire(now) {
            self.freed(inner, key);
        }
    }

    fn freed(&self, inner: &mut Inner, key: Key) {
        if let Key::Port(port) = key
            && let Some(listener) = inner.listeners.remove(&port)
        {
            listener.cancel();
        }
        if let Some(waiting) = inner.waiting.remove(&key) {
            waiting.notify_waiters();
        }
        self.changed(inner, key);
    }
}

impl Inner {
    fn tunnel_gone(&mut self, account: AccountId) {
        if let Some(usage) = self.usage.get_mut(&account) {
            usage.tunnels = usage.tunnels.saturating_sub(1);
        }
    }
}

/// The refusal of an address that belongs to another account. The same for a live and a held one.
fn taken(key: &Key) -> Refusal {
    match key {
        Key::Name(name) => {
            Refusal::new(RefusalCode::NameUnavailable, format!("the name `{name}` is taken; choose another one"))
        }
        Key::Host(hostname) => Refusal::new(
            RefusalCode::HostnameTaken,
            format!("the host name `{hostname}` is served for another account"),
        ),
        Key::Port(port) => {
            Refusal::new(RefusalCode::PortUnavailable, format!("port {port} is taken; choose another one"))
        }
    }
}

/// One counted session of an account.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    registry: Arc<Registry>,
    account: AccountId,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(usage) = self.registry.lock().usage.get_mut(&self.account) {
            usage.sessions = usage.sessions.saturating_sub(1);
        }
    }
}
