//! Bytes that wait in memory for the published dialects: answers for their visitors, requests that are sent whole. And how
//! accounts share the room for them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::account::AccountId;

/// How often a body that waits for room looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Received bytes that wait, and how many there may be. Once there are more, only the accounts that hold more
/// than an equal part have to give way.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: AtomicUsize,
    max: usize,
    /// Accounts whose bytes wait.
    holders: AtomicUsize,
    accounts: Mutex<HashMap<AccountId, Weak<AtomicUsize>>>,
}

impl Waiting {
    pub(crate) fn new(max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), max, holders: AtomicUsize::new(0), accounts: Mutex::default() }
    }

    /// The part of an account; all its sessions have the same.
    pub(crate) fn share(self: &Arc<Self>, account: AccountId) -> Share {
        let mut accounts = self.accounts.lock().expect("no code panics while it holds the accounts");
        let known = accounts.get(&account).and_then(Weak::upgrade);
        let of_account = known.unwrap_or_else(|| {
            accounts.retain(|_, share| share.strong_count() > 0);
            let share = Arc::default();
            accounts.insert(account, Arc::downgrade(&share));
            share
        });
        Share { all: Arc::clone(self), of_account }
    }
}

/// What one account has waiting.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    all: Arc<Waiting>,
    of_account: Arc<AtomicUsize>,
}

impl Share {
    /// Counts more bytes.
    pub(crate) fn take(&self, count: usize) {
        self.all.bytes.fetch_add(count, Relaxed);
        if count > 0 && self.of_account.fetch_add(count, Relaxed) == 0 {
            self.all.holders.fetch_add(1, Relaxed);
        }
    }

    /// Bytes that were counted are gone.
    pub(crate) fn give(&self, count: usize) {
        self.all.bytes.fetch_sub(count, Relaxed);
        if count > 0 && self.of_account.fetch_sub(count, Relaxed) == count {
            self.all.holders.fetch_sub(1, Relaxed);
        }
    }

    /// Whether the account has to give way: there are more bytes than there may be, and it holds more than an equal part.
    pub(crate) fn is_exceeded(&self) -> bool {
        let Self { all, of_account } = self;
        all.bytes.load(Relaxed) > all.max && of_account.load(Relaxed) > all.max / all.holders.load(Relaxed).max(1)
    }
}

/// The bytes of one request or answer that is kept whole.
#[derive(Debug)]
pub(crate) struct Charge {
    share: Share,
    held: usize,
    is_refused: bool,
}

impl Charge {
    pub(crate) const fn new(share: Share) -> Self {
        Self { share, held: 0, is_refused: false }
    }

    /// Counts more bytes; `false` when there is no room for them.
    pub(crate) fn take(&mut self, count: usize) -> bool {
        self.held += count;
        self.share.take(count);
        self.is_refused = self.share.is_exceeded();
        !self.is_refused
    }

    /// Counts more bytes, and waits until there is room for them. `false` when there is none within `limit`.
    pub(crate) async fn take_within(&mut self, count: usize, limit: Duration) -> bool {
        self.take(count);
        let deadline = Instant::now() + limit;
        while self.share.is_exceeded() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Whether there was no room.
    pub(crate) const fn is_refused(&self) -> bool {
        self.is_refused
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.share.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_account_above_its_part_gives_way() {
        let waiting = Arc::new(Waiting::new(1000));
        let (hoarder, victim) = (waiting.share(AccountId::new()), waiting.share(AccountId::new()));
        hoarder.take(1000);
        assert!(!hoarder.is_exceeded(), "it borrows what is free");
        victim.take(400);
        assert!(hoarder.is_exceeded() && !victim.is_exceeded());
        victim.take(101);
        assert!(victim.is_exceeded(), "it holds more than half");
        hoarder.give(600);
        assert!(!hoarder.is_exceeded() && !victim.is_exceeded());
    }

    #[test]
    fn the_sessions_of_an_account_have_one_part() {
        let waiting = Arc::new(Waiting::new(1000));
        let account = AccountId::new();
        let (one, two) = (waiting.share(account), waiting.share(account));
        one.take(600);
        let mut answer = Charge::new(two);
        assert!(answer.take(400) && !answer.take(1));
        drop(answer);
        assert_eq!(waiting.bytes.load(Relaxed), 600);
        one.give(600);
        assert_eq!(waiting.holders.load(Relaxed), 0);
    }
}
