//! Limits and times of a link.

use std::{sync::Arc, time::Duration};

use crate::budget::Budget;

/// Which end this is. Only the server opens streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepts streams.
    Client,
    /// Opens streams.
    Server,
}

/// Limits and times of one link. The defaults suit both ends.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Bytes the peer may send on a new stream before it gets credit. Default 256 KiB: a 20 ms path runs at
    /// 100 Mbit/s from the first byte, and 1,000 stalled readers hold at most 250 MiB before [`Self::budget`] is used up.
    pub initial_window: u32,
    /// Largest window in bytes. Windows grow up to it while the round-trip time limits a stream. Default 4 MiB.
    pub max_window: u32,
    /// Limit of concurrent streams. Default 10,000.
    pub max_streams: usize,
    /// Largest control message in bytes. Default 64 KiB. A server starts with less and raises it after authentication
    /// ([`crate::Link::set_max_control`]).
    pub max_control: usize,
    /// Limit of control messages that wait to be sent. At the limit, senders wait. Default 256.
    pub max_control_queue: usize,
    /// Limit of events that wait for [`crate::Events::next`]. At the limit, the link is not read. Default 256.
    pub max_event_queue: usize,
    /// Limit of bytes received and not yet read, over all streams. Beyond it the stream is reset that has held most of
    /// them for the longest time. Default 64 MiB.
    pub max_buffered: usize,
    /// The same limit for all links that share this budget. Default 256 MiB for this link alone.
    pub budget: Arc<Budget>,
    /// Bytes that one direction of a stream moves on the link before the stream moves to a lane, if the peer can open
    /// one. Default 512 KiB: a connection costs as much as some hundred KiB on the link, and most responses are shorter.
    pub lane_after: u64,
    /// Time between pings. Default 2 s.
    pub ping_interval: Duration,
    /// The link ends when nothing has arrived, or a ping has had no answer, for this long. Default 6 s: with the 2 s until
    /// the next ping, both ends serve again within 10 s of a silent loss, also if only one direction is lost.
    pub dead_after: Duration,
    /// Timeout for the last messages after [`crate::Link::close`]. Default 300 ms.
    pub flush_on_close: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            initial_window: 256 * 1024,
            max_window: 4 * 1024 * 1024,
            max_streams: 10_000,
            max_control: retunnel_proto::limits::MAX_CONTROL_MESSAGE,
            max_control_queue: 256,
            max_event_queue: 256,
            max_buffered: 64 * 1024 * 1024,
            budget: Arc::new(Budget::new(256 * 1024 * 1024)),
            lane_after: 512 * 1024,
            ping_interval: Duration::from_secs(2),
            dead_after: Duration::from_secs(6),
            flush_on_close: Duration::from_millis(300),
        }
    }
}
