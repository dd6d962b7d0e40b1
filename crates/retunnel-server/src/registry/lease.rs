//! Who owns a public address, as a state machine without clock or I/O.
//!
//! An address is free, live (a session serves it) or held (its session was lost, and for a grace time only the same account
//! may have it). Invariant, checked against a small model in the tests: an address never answers for two accounts, and
//! never changes accounts before the grace time of the last owner is over.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

use crate::tunnel::address::PublicAddress;

/// What an address stands for now. `H` is the holder: what serves the visitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found<H> {
    /// Served.
    Live(H),
    /// Its session was lost; the owner may come back until then.
    Held(Instant),
    /// No one owns it.
    Free,
}

/// The outcome of a successful claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claimed<H> {
    /// The holder of an older session of the same account, which lost the address just now.
    pub(crate) evicted: Option<H>,
    /// No one owned the address before.
    pub(crate) is_new: bool,
}

#[derive(Debug)]
enum LeaseState<H> {
    Live(H),
    Held(Instant),
}

#[derive(Debug)]
struct Lease<A, H> {
    account: A,
    state: LeaseState<H>,
}

/// All leases of a server: accounts `A`, holders `H`.
#[derive(Debug)]
pub(crate) struct Leases<A, H> {
    grace: Duration,
    leases: HashMap<PublicAddress, Lease<A, H>>,
    /// The held ones by the end of their grace time.
    held: BTreeSet<(Instant, PublicAddress)>,
    /// How many of them each account has.
    held_by: HashMap<A, usize>,
}

impl<A: Clone + Eq + Hash, H: Clone + PartialEq> Leases<A, H> {
    /// No leases; lost ones are held for `grace`.
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, leases: HashMap::new(), held: BTreeSet::new(), held_by: HashMap::new() }
    }

    fn hold(&mut self, until: Instant, address: PublicAddress, account: &A) {
        if self.held.insert((until, address)) {
            *self.held_by.entry(account.clone()).or_default() += 1;
        }
    }

    fn not_held(&mut self, account: &A) {
        if let Some(count) = self.held_by.get_mut(account) {
            *count -= 1;
            if *count == 0 {
                self.held_by.remove(account);
            }
        }
    }

    /// How many ports an account owns, live and held.
    pub(crate) fn ports_of(&self, account: &A) -> usize {
        let owned =
            |(address, lease): &(&PublicAddress, &Lease<A, H>)| address.port().is_some() && lease.account == *account;
        self.leases.iter().filter(owned).count()
    }

    /// Takes an address for an account. The newest claim of the owner wins at once. Call [`Self::expire`] first, so that
    /// everything that depends on the freed addresses is freed too.
    ///
    /// # Errors
    /// `()` when the address belongs to another account.
    pub(crate) fn claim(
        &mut self,
        address: &PublicAddress,
        account: &A,
        holder: H,
        now: Instant,
    ) -> Result<Claimed<H>, ()> {
        debug_assert!(self.held.first().is_none_or(|(until, _)| *until > now), "expire comes first");
        let Some(lease) = self.leases.get_mut(address) else {
            let lease = Lease { account: account.clone(), state: LeaseState::Live(holder) };
            self.leases.insert(address.clone(), lease);
            return Ok(Claimed { evicted: None, is_new: true });
        };
        if lease.account != *account {
            return Err(());
        }
        let evicted = match std::mem::replace(&mut lease.state, LeaseState::Live(holder)) {
            LeaseState::Live(old) => Some(old),
            LeaseState::Held(until) => {
                self.held.remove(&(until, address.clone()));
                self.not_held(account);
                None
            }
        };
        Ok(Claimed { evicted, is_new: false })
    }

    /// The holder was lost without a goodbye: the address is held. Nothing happens when it is not the current holder.
    pub(crate) fn lose(&mut self, address: &PublicAddress, holder: &H, now: Instant) {
        if let Some(lease) = self.leases.get_mut(address)
            && matches!(&lease.state, LeaseState::Live(current) if current == holder)
        {
            let until = now + self.grace;
            lease.state = LeaseState::Held(until);
            let account = lease.account.clone();
            self.hold(until, address.clone(), &account);
        }
    }

    /// The holder gave the address up; says whether it was the current one and the address is free now.
    pub(crate) fn release(&mut self, address: &PublicAddress, holder: &H) -> bool {
        let is_current = self
            .leases
            .get(address)
            .is_some_and(|lease| matches!(&lease.state, LeaseState::Live(current) if current == holder));
        if is_current {
            self.leases.remove(address);
        }
        is_current
    }

    /// Takes an address from its owner: `None` when it is not theirs, else the holder if it is live.
    pub(crate) fn withdraw(&mut self, address: &PublicAddress, account: &A) -> Option<Option<H>> {
        let lease = self.leases.get(address).filter(|lease| lease.account == *account)?;
        match &lease.state {
            LeaseState::Live(holder) => {
                let holder = holder.clone();
                self.leases.remove(address);
                Some(Some(holder))
            }
            LeaseState::Held(until) => {
                self.held.remove(&(*until, address.clone()));
                self.free(address);
                Some(None)
            }
        }
    }

    /// Puts a lease of an earlier run back: held from now on.
    pub(crate) fn restore(&mut self, address: PublicAddress, account: A, now: Instant) {
        let until = now + self.grace;
        self.hold(until, address.clone(), &account);
        self.leases.insert(address, Lease { account, state: LeaseState::Held(until) });
    }

    /// What an address stands for.
    pub(crate) fn find(&self, address: &PublicAddress, now: Instant) -> Found<H> {
        match self.leases.get(address).map(|lease| &lease.state) {
            Some(LeaseState::Live(holder)) => Found::Live(holder.clone()),
            Some(LeaseState::Held(until)) if *until > now => Found::Held(*until),
            _ => Found::Free,
        }
    }

    /// The owner of an address, the grace time included.
    pub(crate) fn owner(&self, address: &PublicAddress) -> Option<&A> {
        self.leases.get(address).map(|lease| &lease.account)
    }

    /// Frees every address whose grace time is over and returns them.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<PublicAddress> {
        let mut freed = Vec::new();
        while self.held.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, address)) = self.held.pop_first() {
                self.free(&address);
                freed.push(address);
            }
        }
        freed
    }

    /// Frees what an account holds beyond `max` addresses, the longest held first, and returns them: an account that claims
    /// and loses addresses without end must not keep them all from others.
    pub(crate) fn trim(&mut self, account: &A, max: usize) -> Vec<PublicAddress> {
        let mut freed = Vec::new();
        while self.held_by.get(account).is_some_and(|count| *count > max) {
            let is_theirs =
                |address: &PublicAddress| self.leases.get(address).is_some_and(|lease| lease.account == *account);
            let Some(oldest) = self.held.iter().find(|(_, address)| is_theirs(address)).cloned() else { break };
            self.held.remove(&oldest);
            self.free(&oldest.1);
            freed.push(oldest.1);
        }
        freed
    }

    fn free(&mut self, address: &PublicAddress) {
        if let Some(lease) = self.leases.remove(address) {
            self.not_held(&lease.account);
        }
    }

    /// Addresses that are live or held.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.leases.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    /// The reference: per address the owner, the live session, and when a held address becomes free.
    #[derive(Default)]
    struct Model(HashMap<PublicAddress, (u8, Option<u32>, Option<Instant>)>);

    impl Model {
        fn expire(&mut self, now: Instant) {
            self.0.retain(|_, (_, live, until)| live.is_some() || until.is_some_and(|until| until > now));
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim { address: u16, account: u8 },
        Lose { session: usize },
        Release { session: usize },
        Wait { seconds: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_u16, 0..3_u8).prop_map(|(address, account)| Step::Claim { address, account }),
            2 => (0..64_usize).prop_map(|session| Step::Lose { session }),
            1 => (0..64_usize).prop_map(|session| Step::Release { session }),
            2 => (0..45_u64).prop_map(|seconds| Step::Wait { seconds }),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn one_address_never_answers_for_two_accounts(steps in steps()) {
            let mut now = Instant::now();
            let mut leases = Leases::new(GRACE);
            let mut model = Model::default();
            // Sessions in the order of their claims: number, address, account.
            let mut sessions: Vec<(u32, PublicAddress, u8)> = Vec::new();
            for step in steps {
                model.expire(now);
                match step {
                    Step::Claim { address, account } => {
                        let address = PublicAddress::Port(address);
                        let session = u32::try_from(sessions.len()).expect("few");
                        let allowed = model.0.get(&address).is_none_or(|(owner, ..)| *owner == account);
                        let evicted = model.0.get(&address).and_then(|(_, live, _)| *live);
                        let is_new = !model.0.contains_key(&address);
                        match leases.claim(&address, &account, session, now) {
                            Ok(claimed) => {
                                prop_assert!(allowed);
                                prop_assert_eq!(claimed, Claimed { evicted, is_new });
                                model.0.insert(address.clone(), (account, Some(session), None));
                                sessions.push((session, address, account));
                            }
                            Err(()) => prop_assert!(!allowed),
                        }
                    }
                    Step::Lose { session } => {
                        if let Some((session, address, _)) = sessions.get(session) {
                            leases.lose(address, session, now);
                            if let Some((_, live, until)) = model.0.get_mut(address)
                                && *live == Some(*session)
                            {
                                (*live, *until) = (None, Some(now + GRACE));
                            }
                        }
                    }
                    Step::Release { session } => {
                        if let Some((session, address, _)) = sessions.get(session) {
                            let was_live = model.0.get(address).is_some_and(|(_, live, _)| *live == Some(*session));
                            prop_assert_eq!(leases.release(address, session), was_live);
                            if was_live {
                                model.0.remove(address);
                            }
                        }
                    }
                    Step::Wait { seconds } => now += Duration::from_secs(seconds),
                }
                model.expire(now);
                leases.expire(now);
                prop_assert_eq!(leases.len(), model.0.len());
                for address in (0..3).map(PublicAddress::Port) {
                    let expected = match model.0.get(&address) {
                        Some((_, Some(session), _)) => Found::Live(*session),
                        Some((_, None, Some(until))) => Found::Held(*until),
                        _ => Found::Free,
                    };
                    prop_assert_eq!(leases.find(&address, now), expected);
                    prop_assert_eq!(leases.owner(&address).copied(), model.0.get(&address).map(|(owner, ..)| *owner));
                }
            }
        }
    }

    #[test]
    fn an_account_holds_so_many_addresses_and_no_more() {
        let now = Instant::now();
        let mut leases = Leases::new(GRACE);
        for port in 0..5_u16 {
            leases.claim(&PublicAddress::Port(port), &1, port, now).expect("free");
            leases.lose(&PublicAddress::Port(port), &port, now + Duration::from_secs(port.into()));
        }
        leases.claim(&PublicAddress::Port(9), &2, 9, now).expect("free");
        leases.lose(&PublicAddress::Port(9), &9, now);
        assert_eq!(leases.trim(&1, 5), []);
        assert_eq!(leases.trim(&1, 3), [PublicAddress::Port(0), PublicAddress::Port(1)]);
        assert_eq!(leases.claim(&PublicAddress::Port(0), &2, 0, now).map(|claimed| claimed.is_new), Ok(true));
        leases.claim(&PublicAddress::Port(4), &1, 4, now).expect("theirs");
        assert_eq!(leases.trim(&1, 1), [PublicAddress::Port(2)]);
        assert_eq!(leases.expire(now + 2 * GRACE), [PublicAddress::Port(9), PublicAddress::Port(3)]);
        assert!(leases.held_by.is_empty());
    }

    #[test]
    fn a_restored_lease_waits_for_its_owner_only() {
        let now = Instant::now();
        let address = PublicAddress::Name("shop".into());
        let mut leases = Leases::new(GRACE);
        leases.restore(address.clone(), 1, now);
        assert_eq!(leases.claim(&address, &2, 20, now), Err(()));
        assert_eq!(leases.claim(&address, &1, 10, now), Ok(Claimed { evicted: None, is_new: false }));
        assert!(leases.release(&address, &10));
        assert_eq!(leases.claim(&address, &2, 20, now), Ok(Claimed { evicted: None, is_new: true }));
    }
}
