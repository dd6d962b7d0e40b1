//! Places of connections: how many there may be, of one peer and of all.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::timeout;

use super::Peer;

/// Connections of a peer that are examined for an idle one. Those behind them are younger.
const EXAMINED: usize = 1024;

/// Places for connections. When there are too many, an idle one gives way: the oldest of the same peer if that has its share,
/// otherwise the oldest of the peer that has most. So a peer that takes many places loses its own.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_peer: usize,
    is_reserve: bool,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    /// Number of the newest connection; older ones have smaller numbers.
    newest: u64,
    peers: HashMap<Peer, BTreeMap<u64, Arc<State>>>,
}

/// One connection, as the others see it.
#[derive(Debug, Default)]
struct State {
    /// Whether it may give way.
    is_idle: AtomicBool,
    is_evicted: AtomicBool,
    waker: AtomicWaker,
}

impl Taken {
    fn remove(&mut self, peer: Peer, number: u64) -> Option<Arc<State>> {
        let places = self.peers.get_mut(&peer)?;
        let state = places.remove(&number)?;
        if places.is_empty() {
            self.peers.remove(&peer);
        }
        self.count -= 1;
        Some(state)
    }

    /// Lets the oldest idle connection of a peer give way; says whether there was one.
    fn evict_of(&mut self, peer: Peer) -> bool {
        let places = self.peers.get(&peer).into_iter().flatten().take(EXAMINED);
        let oldest = places.filter(|(_, state)| state.is_idle.load(Relaxed)).map(|(number, _)| *number).next();
        let Some(state) = oldest.and_then(|number| self.remove(peer, number)) else { return false };
        state.is_evicted.store(true, Relaxed);
        state.waker.wake();
        true
    }
}

impl Places {
    /// `max` places, and `max_per_peer` of them for each peer.
    pub(crate) fn new(max: usize, max_per_peer: usize) -> Self {
        Self { taken: Arc::default(), max: max.max(1), max_per_peer: max_per_peer.max(1), is_reserve: false }
    }

    /// The same, as a reserve for requests that must get in when all other places are taken.
    pub(crate) fn reserve(max: usize, max_per_peer: usize) -> Self {
        Self { is_reserve: true, ..Self::new(max, max_per_peer) }
    }

    /// Takes a place for a connection, which is idle at first. `is_proxy`: it carries the visitors of a trusted proxy, which
    /// are many peers. `None`: there is none, and nobody is idle who could give way.
    pub(crate) fn enter(&self, address: IpAddr, is_proxy: bool) -> Option<Place> {
        let peer = Peer::of(address);
        let mut taken = self.lock();
        let has_share = !is_proxy && taken.peers.get(&peer).is_some_and(|places| places.len() >= self.max_per_peer);
        let is_free = if has_share {
            taken.evict_of(peer)
        } else if taken.count >= self.max {
            let largest = taken.peers.iter().max_by_key(|(_, places)| places.len()).map(|(peer, _)| *peer);
            largest.is_some_and(|largest| taken.evict_of(largest))
        } else {
            true
        };
        if !is_free {
            return None;
        }
        taken.newest += 1;
        taken.count += 1;
        let state = Arc::new(State { is_idle: true.into(), ..State::default() });
        let number = taken.newest;
        taken.peers.entry(peer).or_default().insert(number, Arc::clone(&state));
        Some(Place { taken: Arc::clone(&self.taken), peer, number, state, is_reserve: self.is_reserve })
    }

    /// Places that are taken.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        lock(&self.taken)
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().expect("no code panics while it holds the places")
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    peer: Peer,
    number: u64,
    state: Arc<State>,
    is_reserve: bool,
}

impl Place {
    /// Whether it is one of the reserve.
    pub(crate) const fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// Says whether the connection may give way now.
    pub(crate) fn set_idle(&self, is_idle: bool) {
        self.state.is_idle.store(is_idle, Relaxed);
    }

    /// Polled for the moment when the connection has to give way. Only one task may poll.
    pub(crate) fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.waker.register(cx.waker());
        if self.state.is_evicted.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits for the peer at most for `limit`, and no longer once newer connections need the place.
    pub(crate) async fn within<T>(&self, limit: Duration, said: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            said = timeout(limit, said) => said.ok(),
            () = poll_fn(|cx| self.poll_evicted(cx)) => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(self.peer, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_gone(place: &Place) -> bool {
        place.state.is_evicted.load(Relaxed)
    }

    #[test]
    fn the_oldest_idle_one_of_the_same_peer_or_of_the_largest_gives_way() {
        let places = Places::new(4, 2);
        let enter = |last| places.enter(address(last), false).expect("a place");
        let (first, second, other) = (enter(1), enter(1), enter(2));
        let third = enter(1);
        assert!(is_gone(&first) && !is_gone(&second) && !is_gone(&other), "its own oldest");
        let _fourth = enter(3);
        let _fifth = enter(4);
        assert!(is_gone(&second) && !is_gone(&third) && !is_gone(&other), "the oldest of the largest");
        drop((first, second));
        assert_eq!(places.count(), 4, "places that were taken away are not given back twice");
        drop((third, other));
        assert_eq!(places.count(), 2);
    }

    #[test]
    fn busy_ones_do_not_give_way() {
        let places = Places::new(3, 2);
        let (first, second) = (places.enter(address(1), false), places.enter(address(1), false));
        for place in [&first, &second] {
            place.as_ref().expect("a place").set_idle(false);
        }
        assert!(places.enter(address(1), false).is_none(), "the peer has its share");
        let other = places.enter(address(2), false).expect("others still get in");
        other.set_idle(false);
        assert!(places.enter(address(3), false).is_none(), "all are busy");
        first.as_ref().expect("a place").set_idle(true);
        assert!(places.enter(address(3), false).is_some() && is_gone(&first.expect("a place")));
    }

    #[test]
    fn a_proxy_has_no_share_of_its_own() {
        let places = Places::new(10, 2);
        let taken: Vec<_> = (0..10).map(|_| places.enter(address(1), true).expect("a place")).collect();
        assert!(!taken.iter().any(is_gone));
    }
}
