//! Received bytes of all links that wait for their readers, and who gives way when there are too many.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{
            AtomicUsize,
            Ordering::{self, Relaxed},
        },
    },
};

use tokio::time::Instant;

/// Received bytes that wait for their readers, counted over every link that shares this budget.
///
/// A link may use what the others leave free. Once more waits than the budget allows, streams are reset until it holds,
/// but only those of owners that hold more than an equal part of all that waits: an owner below its part never pays for
/// the others. Among the streams of such owners, the one gives way that has held most bytes for the longest time. An owner
/// is a link, or all the links that were given the same one ([`crate::Link::set_owner`]).
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
    shares: Mutex<Shares>,
    /// Held by the one thread that makes room.
    relief: Mutex<()>,
}

#[derive(Debug, Default)]
struct Shares {
    last_id: u64,
    by_id: HashMap<u64, Arc<Share>>,
}

/// What one link holds of a budget.
#[derive(Debug, Default)]
pub(crate) struct Share {
    id: u64,
    used: AtomicUsize,
    owner: OnceLock<u128>,
    holder: OnceLock<Weak<dyn Holder>>,
}

/// A link, as its budget sees it.
pub(crate) trait Holder: fmt::Debug + Send + Sync {
    /// How much the link's heaviest stream holds, times how long it has.
    fn weight(&self, now: Instant) -> u64;

    /// Resets that stream. Returns whether there was one.
    fn give_way(&self, now: Instant) -> bool;
}

/// Who a share belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Shared(u128),
    Link(u64),
}

impl Share {
    pub(crate) fn set_holder(&self, holder: Weak<dyn Holder>) {
        let _ = self.holder.set(holder);
    }

    pub(crate) fn set_owner(&self, owner: u128) {
        let _ = self.owner.set(owner);
    }

    /// What the link holds now.
    pub(crate) fn set_used(&self, bytes: usize) {
        self.used.store(bytes, Relaxed);
    }

    fn owner(&self) -> Owner {
        self.owner.get().map_or(Owner::Link(self.id), |owner| Owner::Shared(*owner))
    }
}

impl Budget {
    /// A budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max, shares: Mutex::default(), relief: Mutex::default() }
    }

    /// Bytes waiting now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().expect("no code panics while it holds the shares")
    }

    /// The share of one more link. Return it with [`Self::leave`].
    pub(crate) fn join(&self) -> Arc<Share> {
        let mut shares = self.shares();
        shares.last_id += 1;
        let share = Arc::new(Share { id: shares.last_id, ..Share::default() });
        shares.by_id.insert(share.id, Arc::clone(&share));
        share
    }

    pub(crate) fn leave(&self, share: &Share) {
        self.shares().by_id.remove(&share.id);
    }

    /// Adds `bytes`. Returns whether the total is within the budget. Otherwise [`Self::relieve`] has to be called.
    pub(crate) fn add(&self, bytes: usize) -> bool {
        self.used.fetch_add(bytes, Relaxed) + bytes <= self.max
    }

    pub(crate) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.used() > self.max
    }

    /// Makes room. No link may be locked.
    pub(crate) fn relieve(&self, now: Instant) {
        // Another thread makes room already.
        let Ok(_relief) = self.relief.try_lock() else { return };
        while self.is_exceeded() && self.heaviest(now).is_some_and(|holder| holder.give_way(now)) {}
    }

    /// The link with the heaviest stream, among the links with more than their part.
    fn heaviest(&self, now: Instant) -> Option<Arc<dyn Holder>> {
        let shares: Vec<(Arc<Share>, usize)> = {
            let shares = self.shares();
            let used = shares.by_id.values().map(|share| (Arc::clone(share), share.used.load(Relaxed)));
            used.filter(|(_, used)| *used > 0).collect()
        };
        let above = above_their_part(&shares.iter().map(|(share, used)| (share.owner(), *used)).collect::<Vec<_>>());
        let holders = shares.iter().zip(above).filter(|(_, above)| *above);
        let holders = holders.filter_map(|((share, _), _)| share.holder.get()?.upgrade());
        holders.max_by_key(|holder| holder.weight(now))
    }
}

/// Which links hold at least an equal part of what their owner holds, where the owner holds at least an equal part of all.
fn above_their_part(links: &[(Owner, usize)]) -> Vec<bool> {
    let mut owners: HashMap<Owner, (usize, usize)> = HashMap::new();
    for (owner, used) in links {
        let (total, count) = owners.entry(*owner).or_default();
        *total += used;
        *count += 1;
    }
    let total: usize = links.iter().map(|(_, used)| used).sum();
    let part = total / owners.len().max(1);
    let is_above = |(owner, used): &(Owner, usize)| {
        let (of_owner, count) = owners[owner];
        of_owner >= part && *used >= of_owner / count
    };
    links.iter().map(is_above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_below_its_part_does_not_pay_for_others() {
        let (hoarder, victim) = (Owner::Shared(1), Owner::Shared(2));
        let links = [(hoarder, 400), (hoarder, 400), (hoarder, 100), (victim, 300)];
        assert_eq!(above_their_part(&links), [true, true, false, false], "nor does a small link of the hoarder");
        let links = [(hoarder, 500), (victim, 501)];
        assert_eq!(above_their_part(&links), [true, true], "both have their part");
    }

    #[test]
    fn a_link_without_an_owner_has_a_part_of_its_own() {
        let links = [(Owner::Link(1), 900), (Owner::Link(2), 100), (Owner::Shared(1), 100)];
        assert_eq!(above_their_part(&links), [true, false, false]);
        assert!(above_their_part(&[]).is_empty());
    }

    #[test]
    fn somebody_always_gives_way() {
        for links in 1..20 {
            let links: Vec<_> = (0..links).map(|n| (Owner::Shared(n % 3), 1 + (n * n) as usize % 7)).collect();
            assert!(above_their_part(&links).contains(&true));
        }
    }

    #[test]
    fn links_join_and_leave() {
        let budget = Budget::new(10);
        let share = budget.join();
        assert_eq!(share.owner(), Owner::Link(1));
        share.set_owner(7);
        assert_eq!(share.owner(), Owner::Shared(7));
        budget.leave(&share);
        assert!(budget.shares().by_id.is_empty());
    }
}
