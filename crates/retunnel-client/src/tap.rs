//! A copy of what visitors and the local service send to each other, for an observer such as the inspector.
//!
//! Without an observer there is no copy and no cost. With an observer, `TappedSocket` shows its bytes to a `Tap`, which
//! finds the HTTP exchanges and reports them to [`Observer`] and [`Exchange`].
//!
//! The kernel may move bytes past a tap (`splice`): `Tap::unseen` is how many the tap need not see, and `Tap::skip` counts
//! them.

mod http1;
mod observer;
mod socket;

pub use observer::{Exchange, Observer, Side};

pub(crate) use http1::Tap;
pub(crate) use socket::TappedSocket;
