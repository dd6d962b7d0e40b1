//! Rates and counts that protect the server from single peers. A peer is an IPv4 address or an IPv6 /64.

pub(crate) mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;

/// The key of a peer: its IPv4 address, or the IPv6 /64 that it can choose addresses from.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let bits = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
    }
}

/// How often one address may fail to authenticate, and register.
#[derive(Debug)]
pub struct RateLimits {
    failures: DefaultKeyedRateLimiter<IpAddr>,
    registrations: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

impl RateLimits {
    /// Limits with the configured rates.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let at_least_one = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        Self {
            failures: RateLimiter::keyed(Quota::per_minute(at_least_one(limits.failed_authentications_per_minute))),
            registrations: RateLimiter::keyed(Quota::per_hour(at_least_one(limits.registrations_per_hour))),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a failed authentication.
    ///
    /// # Errors
    /// Seconds to wait, when the address has failed too often.
    pub fn failed_authentication(&self, address: IpAddr) -> Result<(), u32> {
        Self::check(&self.failures, &self.clock, address)
    }

    /// Counts a registration.
    ///
    /// # Errors
    /// Seconds to wait, when the address has registered too often.
    pub fn registration(&self, address: IpAddr) -> Result<(), u32> {
        Self::check(&self.registrations, &self.clock, address)
    }

    fn check(limiter: &DefaultKeyedRateLimiter<IpAddr>, clock: &DefaultClock, address: IpAddr) -> Result<(), u32> {
        limiter.check_key(&peer_of(address)).map_err(|denied| {
            let seconds = denied.wait_time_from(clock.now()).as_secs_f64().ceil();
            seconds.clamp(1.0, 3600.0) as u32
        })
    }

    /// Forgets addresses that have their full rate again.
    pub fn sweep(&self) {
        for limiter in [&self.failures, &self.registrations] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

#[derive(Debug, Default)]
struct Entered {
    /// Number of the newest connection; older ones have smaller numbers.
    newest: u64,
    all: BTreeMap<u64, (IpAddr, CancellationToken)>,
    by_peer: HashMap<IpAddr, BTreeSet<u64>>,
}

impl Entered {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (peer, evicted) = self.all.remove(&number)?;
        if let Some(numbers) = self.by_peer.get_mut(&peer) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        Some(evicted)
    }
}

/// Bounds the connections that have not authenticated yet. When there are too many, the oldest gives way: an honest client
/// authenticates in a moment, so that silent ones cannot keep it out.
#[derive(Debug, Clone)]
pub struct ConnectionGate {
    entered: Arc<Mutex<Entered>>,
    max: usize,
    max_per_peer: usize,
}

impl ConnectionGate {
    /// A gate with the configured bounds.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            entered: Arc::default(),
            max: limits.max_unauthenticated.max(1),
            max_per_peer: limits.max_unauthenticated_per_address.max(1),
        }
    }

    /// Lets a connection in.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> UnauthenticatedPermit {
        let peer = peer_of(address);
        let mut entered = self.lock();
        let of_peer = entered.by_peer.get(&peer).filter(|numbers| numbers.len() >= self.max_per_peer);
        let oldest = match of_peer {
            Some(numbers) => numbers.first().copied(),
            None if entered.all.len() >= self.max => entered.all.keys().next().copied(),
            None => None,
        };
        if let Some(evicted) = oldest.and_then(|number| entered.remove(number)) {
            evicted.cancel();
        }
        entered.newest += 1;
        let (number, evicted) = (entered.newest, CancellationToken::new());
        entered.all.insert(number, (peer, evicted.clone()));
        entered.by_peer.entry(peer).or_default().insert(number);
        drop(entered);
        UnauthenticatedPermit { gate: self.clone(), number, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, Entered> {
        self.entered.lock().expect("no code panics while it holds the counts")
    }
}

/// One connection that has not authenticated yet; dropped when it has, or when it is gone.
#[derive(Debug)]
pub struct UnauthenticatedPermit {
    gate: ConnectionGate,
    number: u64,
    evicted: CancellationToken,
}

impl UnauthenticatedPermit {
    /// Waits for the peer at most for `limit`, and no longer once newer connections need the place.
    pub async fn within<T>(&self, limit: Duration, said: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            said = timeout(limit, said) => said.ok(),
            () = self.evicted.cancelled() => None,
        }
    }
}

impl Drop for UnauthenticatedPermit {
    fn drop(&mut self) {
        self.gate.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_oldest_of_too_many_gives_way() {
        let limits = Limits { max_unauthenticated: 3, max_unauthenticated_per_address: 2, ..Limits::default() };
        let gate = ConnectionGate::new(&limits);
        let enter = |address: &str| gate.enter(address.parse().expect("an address"));
        let gone = |permit: &UnauthenticatedPermit| permit.evicted.is_cancelled();
        let (other, first, second) = (enter("10.0.0.1"), gate.enter(HOST), gate.enter(HOST));
        let third = gate.enter(HOST);
        assert!(gone(&first) && !gone(&other) && !gone(&second), "too many of one address: its own oldest");
        let fourth = enter("10.0.0.2");
        assert!(gone(&other) && !gone(&second) && !gone(&third), "too many of all");
        drop((second, first, other));
        let fifth = enter("10.0.0.3");
        assert!(![&third, &fourth, &fifth].into_iter().any(gone), "places are returned");
        drop((third, fourth, fifth));
        assert!(gate.lock().all.is_empty() && gate.lock().by_peer.is_empty());
    }

    #[test]
    fn row_41_an_address_that_fails_too_often_has_to_wait() {
        let rates = RateLimits::new(&Limits { failed_authentications_per_minute: 3, ..Limits::default() });
        for _ in 0..3 {
            assert_eq!(rates.failed_authentication(HOST), Ok(()));
        }
        assert!(rates.failed_authentication(HOST).is_err_and(|seconds| (1..=60).contains(&seconds)));
        let (one, same) = ("2001:db8::1", "2001:db8::ffff");
        for _ in 0..3 {
            assert_eq!(rates.failed_authentication(one.parse().expect("an address")), Ok(()));
        }
        assert!(rates.failed_authentication(same.parse().expect("an address")).is_err(), "one /64 is one peer");
        rates.sweep();
    }
}
