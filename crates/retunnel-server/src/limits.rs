//! Rates and counts that protect the server from single peers. A peer is an IPv4 address or an IPv6 /64.

mod places;
pub(crate) mod waiting;

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::{Instant, sleep};

pub(crate) use self::places::{Place, Places};
use crate::config::Limits;

/// A peer: its IPv4 address, or the IPv6 /64 that it can choose addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl Peer {
    /// The peer with this address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(IpAddr::V4(address)),
            IpAddr::V6(address) => Self(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !(u64::MAX as u128)))),
        }
    }
}

/// How often one address may fail to authenticate, and register.
#[derive(Debug)]
pub struct RateLimits {
    failures: DefaultKeyedRateLimiter<Peer>,
    registrations: DefaultKeyedRateLimiter<Peer>,
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

    fn check(limiter: &DefaultKeyedRateLimiter<Peer>, clock: &DefaultClock, address: IpAddr) -> Result<(), u32> {
        limiter.check_key(&Peer::of(address)).map_err(|denied| {
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

/// Messages that a session may send at once.
const BURST: f64 = 500.0;
/// Messages that it may send each second afterwards.
const PER_SECOND: f64 = 50.0;

/// How fast the control messages of one session are taken. Each may cost a lease, an answer and a line of the log.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Messages that may be taken without waiting.
    left: f64,
    at: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { left: BURST, at: Instant::now() }
    }

    /// Waits until the next message may be taken.
    pub(crate) async fn turn(&mut self) {
        let now = Instant::now();
        self.left = (self.left + (now - self.at).as_secs_f64() * PER_SECOND).min(BURST) - 1.0;
        self.at = now;
        if self.left < 0.0 {
            sleep(Duration::from_secs_f64(-self.left / PER_SECOND)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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
