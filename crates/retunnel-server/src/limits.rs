//! Rates and counts that protect the server from single peers. Peers are told apart by IPv4 address or IPv6 /64.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

use crate::config::Limits;

/// What one peer is: an IPv4 address, or the /64 an IPv6 peer can choose addresses from.
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
    /// With the rates of the configuration.
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
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Bounds the connections that have not authenticated yet.
#[derive(Debug, Clone)]
pub struct ConnectionGate {
    entered: Arc<Mutex<Entered>>,
    max: usize,
    max_per_peer: usize,
}

impl ConnectionGate {
    /// With the bounds of the configuration.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            entered: Arc::default(),
            max: limits.max_unauthenticated,
            max_per_peer: limits.max_unauthenticated_per_address,
        }
    }

    /// Lets a connection in, unless there are too many.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<UnauthenticatedPermit> {
        let peer = peer_of(address);
        let mut entered = self.lock();
        let of_peer = entered.by_peer.get(&peer).copied().unwrap_or(0);
        if entered.total >= self.max || of_peer >= self.max_per_peer {
            return None;
        }
        entered.total += 1;
        entered.by_peer.insert(peer, of_peer + 1);
        drop(entered);
        Some(UnauthenticatedPermit { gate: self.clone(), peer })
    }

    fn lock(&self) -> MutexGuard<'_, Entered> {
        self.entered.lock().expect("no code panics while it holds the counts")
    }
}

/// One connection that has not authenticated yet; dropped when it has, or when it is gone.
#[derive(Debug)]
pub struct UnauthenticatedPermit {
    gate: ConnectionGate,
    peer: IpAddr,
}

impl Drop for UnauthenticatedPermit {
    fn drop(&mut self) {
        let mut entered = self.gate.lock();
        entered.total -= 1;
        if let Some(count) = entered.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                entered.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_gate_gives_places_back() {
        let limits = Limits { max_unauthenticated: 3, max_unauthenticated_per_address: 2, ..Limits::default() };
        let gate = ConnectionGate::new(&limits);
        let (first, _second) = (gate.enter(HOST), gate.enter(HOST));
        assert!(gate.enter(HOST).is_none(), "too many of one address");
        let _other = gate.enter("10.0.0.1".parse().expect("an address")).expect("another address");
        assert!(gate.enter("10.0.0.2".parse().expect("an address")).is_none(), "too many");
        drop(first);
        assert!(gate.enter(HOST).is_some());
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
