//! The state of a link under its lock, shared by the driver, the handles and the streams.

use std::{
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::Waker,
};

use tokio::time::Instant;

use crate::{budget::Holder, state::State};

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Self> {
        let this = Arc::new(Self { state: Mutex::new(state) });
        let holder: Weak<dyn Holder> = Arc::<Self>::downgrade(&this);
        this.lock().share().set_holder(holder);
        this
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the link's state")
    }
}

impl Holder for Shared {
    fn weight(&self, now: Instant) -> u64 {
        self.lock().weight(now)
    }

    fn give_way(&self, now: Instant) -> bool {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        let had_one = state.give_way(now, &mut wakers);
        release(state, wakers);
        had_one
    }
}

/// Unlocks the state after a change, then wakes the driver and `wakers`.
pub(crate) fn release(mut state: MutexGuard<'_, State>, wakers: Vec<Waker>) {
    let driver = state.take_driver();
    drop(state);
    driver.into_iter().chain(wakers).for_each(Waker::wake);
}
