//! The state of a link under its lock, shared by the driver, the handles and the streams.

use std::{
    sync::{Mutex, MutexGuard},
    task::Waker,
};

use crate::state::State;

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(crate) const fn new(state: State) -> Self {
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the link's state")
    }
}

/// Unlocks the state after a change, then wakes the driver and `wakers`.
pub(crate) fn release(mut state: MutexGuard<'_, State>, wakers: Vec<Waker>) {
    let driver = state.take_driver();
    drop(state);
    driver.into_iter().chain(wakers).for_each(Waker::wake);
}
