//! One captured exchange: raw heads, the beginning of both bodies, messages and times. Nothing is parsed until it is shown.

use std::{
    mem::size_of,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{messages::Messages, sides::Sides};

/// One side of an exchange.
#[derive(Debug, Default, Clone)]
pub(crate) struct Part {
    /// The original head; empty until there is one.
    pub(crate) head: Vec<u8>,
    /// The beginning of the body.
    pub(crate) body: Vec<u8>,
    /// Bytes of the complete body.
    pub(crate) size: u64,
    /// When it started and ended, relative to the start of the exchange.
    pub(crate) began: Option<Duration>,
    pub(crate) ended: Option<Duration>,
}

impl Part {
    /// The status in the head of a response; 0 if there is none.
    pub(crate) fn status(&self) -> u16 {
        let digits = self.head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }
}

/// The answer that the visitor got.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) status: u16,
    /// The code of an error page or of what cut the answer; empty when the local service answered.
    pub(crate) error: String,
}

/// An exchange.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) tunnel: String,
    pub(crate) replay_of: Option<u64>,
    pub(crate) started: SystemTime,
    pub(crate) began: Instant,
    pub(crate) parts: Sides<Part>,
    /// The messages of a WebSocket or an event stream.
    pub(crate) messages: Option<Box<Messages>>,
    /// Why the request did not reach the local service.
    pub(crate) failure: Option<String>,
    /// When the connection closed. A side that has not ended by then was cut.
    pub(crate) over: Option<Duration>,
    /// The exchange without an answer that the server repeated with this one.
    pub(crate) retry_of: Option<u64>,
    /// The exchange with which the server repeated this one.
    pub(crate) retried_as: Option<u64>,
    /// What the visitor got, as the server reported it.
    pub(crate) report: Option<Report>,
}

impl Record {
    pub(crate) fn new(tunnel: &str, head: &[u8], replay_of: Option<u64>, started: SystemTime, began: Instant) -> Self {
        let request = Part { head: head.to_vec(), began: Some(Duration::ZERO), ..Part::default() };
        Self {
            tunnel: tunnel.to_owned(),
            replay_of,
            started,
            began,
            parts: Sides { request, response: Part::default() },
            messages: None,
            failure: None,
            over: None,
            retry_of: None,
            retried_as: None,
            report: None,
        }
    }

    /// Bytes that a new record uses.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Self>() + self.tunnel.len() + self.parts.request.head.len()
    }

    /// Frees heads, bodies and messages.
    pub(crate) fn free(&mut self) {
        for part in [&mut self.parts.request, &mut self.parts.response] {
            part.head = Vec::new();
            part.body = Vec::new();
        }
        self.messages = None;
    }

    pub(crate) const fn request(&self) -> &Part {
        &self.parts.request
    }

    pub(crate) const fn response(&self) -> &Part {
        &self.parts.response
    }

    /// Whether the exchange is complete or cut.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_some() || self.parts.iter().all(|part| part.ended.is_some())
    }
}
