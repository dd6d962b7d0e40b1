//! Places of connections: how many there may be, of one peer and of all.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, timeout};

use super::Peer;

/// Connections of a peer that are examined for an idle one. Those behind them are younger.
const EXAMINED: usize = 1024;

/// A connection that was idle for less than this does not give way: its next request may be under way.
const IDLE_FOR: Duration = Duration::from_millis(500);

/// Places for connections. When there are too many, an idle one gives way: the oldest of the same peer if that has its share,
/// otherwise the oldest of the peer that has most. So a peer that takes many places loses its own.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_peer: usize,
    /// How long a connection must have been idle before it gives way.
    idle_for: Duration,
    is_reserve: bool,
}

#[derive(Debug)]
struct Taken {
    /// When counting began.
    began: Instant,
    count: usize,
    /// Number of the newest connection; older ones have smaller numbers.
    newest: u64,
    peers: HashMap<Peer, BTreeMap<u64, Arc<State>>>,
}

const BUSY: u64 = u64::MAX;

/// One connection, as it and the others see it. There is one for each idle visitor, so it is small.
#[derive(Debug)]
struct State {
    taken: Arc<Mutex<Taken>>,
    began: Instant,
    peer: Peer,
    number: u64,
    is_reserve: bool,
    /// Since when it may give way, in milliseconds from [`Taken::began`]; [`BUSY`]: it may not.
    idle_since: AtomicU64,
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

    /// Lets the oldest connection of a peer that was idle for so long give way; says whether there was one.
    fn evict_of(&mut self, peer: Peer, idle_for: Duration) -> bool {
        let Some(before) = self.began.elapsed().checked_sub(idle_for) else { return false };
        let before = before.as_millis();
        let places = self.peers.get(&peer).into_iter().flatten().take(EXAMINED);
        let is_idle = |state: &State| u128::from(state.idle_since.load(Relaxed)) <= before;
        let oldest = places.filter(|(_, state)| is_idle(state)).map(|(number, _)| *number).next();
        let Some(state) = oldest.and_then(|number| self.remove(peer, number)) else { return false };
        state.is_evicted.store(true, Relaxed);
        state.waker.wake();
        true
    }
}

impl Places {
    /// `max` places, and `max_per_peer` of them for each peer.
    pub(crate) fn new(max: usize, max_per_peer: usize) -> Self {
        let taken = Taken { began: Instant::now(), count: 0, newest: 0, peers: HashMap::new() };
        Self {
            taken: Arc::new(Mutex::new(taken)),
            max: max.max(1),
            max_per_peer: max_per_peer.max(1),
            idle_for: IDLE_FOR,
            is_reserve: false,
        }
    }

    /// The same for connections that show in a moment what they are: a newer one always gets in.
    pub(crate) fn brief(max: usize, max_per_peer: usize) -> Self {
        Self { idle_for: Duration::ZERO, ..Self::new(max, max_per_peer) }
    }

    /// The same, as a reserve for requests that must get in when all other places are taken.
    pub(crate) fn reserve(max: usize, max_per_peer: usize) -> Self {
        Self { is_reserve: true, ..Self::brief(max, max_per_peer) }
    }

    /// Takes a place for a connection, which is idle at first. `is_proxy`: it carries the visitors of a trusted proxy, which
    /// are many peers. `None`: there is none, and nobody is idle who could give way.
    pub(crate) fn enter(&self, address: IpAddr, is_proxy: bool) -> Option<Place> {
        let peer = Peer::of(address);
        let mut taken = self.lock();
        let has_share = !is_proxy && taken.peers.get(&peer).is_some_and(|places| places.len() >= self.max_per_peer);
        let is_free = if has_share {
            taken.evict_of(peer, self.idle_for)
        } else if taken.count >= self.max {
            let largest = taken.peers.iter().max_by_key(|(_, places)| places.len()).map(|(peer, _)| *peer);
            largest.is_some_and(|largest| taken.evict_of(largest, self.idle_for))
        } else {
            true
        };
        if !is_free {
            return None;
        }
        taken.newest += 1;
        taken.count += 1;
        let number = taken.newest;
        let place = Place(Arc::new(State {
            taken: Arc::clone(&self.taken),
            began: taken.began,
            peer,
            number,
            is_reserve: self.is_reserve,
            idle_since: AtomicU64::new(BUSY),
            is_evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }));
        place.set_idle(Instant::now());
        taken.peers.entry(peer).or_default().insert(number, Arc::clone(&place.0));
        Some(place)
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
pub(crate) struct Place(Arc<State>);

impl Place {
    /// Whether it is one of the reserve.
    pub(crate) fn is_reserve(&self) -> bool {
        self.0.is_reserve
    }

    /// The connection waits for its peer since then; it may give way.
    pub(crate) fn set_idle(&self, since: Instant) {
        let since = since.saturating_duration_since(self.0.began).as_millis();
        self.0.idle_since.store(u64::try_from(since).unwrap_or(BUSY - 1), Relaxed);
    }

    /// The connection does something that its peer waits for.
    pub(crate) fn set_busy(&self) {
        self.0.idle_since.store(BUSY, Relaxed);
    }

    /// Polled for the moment when the connection has to give way. Only one task may poll.
    pub(crate) fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(cx.waker());
        if self.0.is_evicted.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
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
        lock(&self.0.taken).remove(self.0.peer, self.0.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_gone(place: &Place) -> bool {
        place.0.is_evicted.load(Relaxed)
    }

    #[test]
    fn the_oldest_idle_one_of_the_same_peer_or_of_the_largest_gives_way() {
        let places = Places::brief(4, 2);
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
        let places = Places::brief(3, 2);
        let (first, second) = (places.enter(address(1), false), places.enter(address(1), false));
        for place in [&first, &second] {
            place.as_ref().expect("a place").set_busy();
        }
        assert!(places.enter(address(1), false).is_none(), "the peer has its share");
        let other = places.enter(address(2), false).expect("others still get in");
        other.set_busy();
        assert!(places.enter(address(3), false).is_none(), "all are busy");
        first.as_ref().expect("a place").set_idle(Instant::now());
        assert!(places.enter(address(3), false).is_some() && is_gone(&first.expect("a place")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_just_accepted_does_not_give_way() {
        let places = Places::new(1, 1);
        let first = places.enter(address(1), false).expect("a place");
        assert!(places.enter(address(1), false).is_none());
        tokio::time::sleep(IDLE_FOR).await;
        assert!(places.enter(address(1), false).is_some() && is_gone(&first));
    }

    #[test]
    fn a_proxy_has_no_share_of_its_own() {
        let places = Places::brief(10, 2);
        let taken: Vec<_> = (0..10).map(|_| places.enter(address(1), true).expect("a place")).collect();
        assert!(!taken.iter().any(is_gone));
    }
}
