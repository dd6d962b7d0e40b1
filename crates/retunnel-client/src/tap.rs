//! A copy of the bytes between visitors and the local service, for the inspector.
//!
//! Without an observer there is no copy and no cost. With one, `TappedSocket` shows what it moves to a `Tap`, which finds
//! the exchanges in it. A dialect that does HTTP with the local service over a socket needs nothing else; one that has
//! requests and answers as values may call [`Observer`] and [`Exchange`] itself.
//!
//! A tap needs to see bytes before they are gone: code that moves bytes past it (`splice`) asks `Tap::unseen` how many may go
//! unlooked at and reports them with `Tap::skip`.

mod http1;
mod observer;
mod socket;

pub use observer::{Exchange, Observer, Side};

pub(crate) use http1::Tap;
pub(crate) use socket::TappedSocket;
