//! Frames out of the bytes of the peer, however the connection cuts them.

use std::task::Waker;

use bytes::Buf;
use retunnel_proto::native::{FLAG_FIN, FrameHeader, FrameKind, HEADER_LEN};
use tokio::time::Instant;

use super::State;
use crate::error::LinkError;

/// The frame that is arriving. Payloads of data are not gathered: they go to their stream as they come.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    frame: PartialFrame,
    /// Bytes that arrived after the frame that filled the event queue.
    leftover: Vec<u8>,
}

/// A frame whose bytes have not all arrived.
#[derive(Debug)]
enum PartialFrame {
    Header { bytes: [u8; HEADER_LEN], have: usize },
    Data { header: FrameHeader, left: usize, wanted: bool },
    Other { header: FrameHeader, payload: Vec<u8> },
}

impl Default for PartialFrame {
    fn default() -> Self {
        Self::Header { bytes: [0; HEADER_LEN], have: 0 }
    }
}

impl Incoming {
    /// Whether bytes are left from before: call [`Self::resume`] before anything else is read.
    pub(crate) const fn has_leftover(&self) -> bool {
        !self.leftover.is_empty()
    }

    /// Goes on with the bytes that were left when the event queue was full.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub(crate) fn resume(&mut self, state: &mut State, now: Instant, wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        let bytes = std::mem::take(&mut self.leftover);
        self.receive(state, &bytes, now, wakers)
    }

    /// Takes bytes of the peer. Those after a frame that fills the event queue are kept for [`Self::resume`].
    ///
    /// # Errors
    /// [`LinkError::Decode`] and [`LinkError::Protocol`]: the link has to end.
    pub(crate) fn receive(
        &mut self,
        state: &mut State,
        mut bytes: &[u8],
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), LinkError> {
        state.heard(now);
        loop {
            match &mut self.frame {
                PartialFrame::Header { bytes: header, have } => {
                    if bytes.is_empty() {
                        return Ok(());
                    }
                    if state.events_are_full() {
                        self.leftover = bytes.to_vec();
                        return Ok(());
                    }
                    let take = (HEADER_LEN - *have).min(bytes.len());
                    header[*have..*have + take].copy_from_slice(&bytes[..take]);
                    *have += take;
                    bytes.advance(take);
                    if *have < HEADER_LEN {
                        return Ok(());
                    }
                    let header = FrameHeader::decode(*header, state.config.max_control)?;
                    self.frame = if header.kind == FrameKind::Data {
                        let wanted = state.begin_data(header)?;
                        PartialFrame::Data { header, left: header.len as usize, wanted }
                    } else {
                        PartialFrame::Other { header, payload: Vec::new() }
                    };
                }
                PartialFrame::Data { header, left, wanted } => {
                    let take = (*left).min(bytes.len());
                    if take > 0 && *wanted {
                        state.receive(header.stream, &bytes[..take], now, wakers);
                    }
                    bytes.advance(take);
                    *left -= take;
                    if *left > 0 {
                        return Ok(());
                    }
                    if *wanted && header.flags & FLAG_FIN != 0 {
                        state.receive_end(header.stream, wakers);
                    }
                    self.frame = PartialFrame::default();
                }
                PartialFrame::Other { header, payload } => {
                    let take = (header.len as usize - payload.len()).min(bytes.len());
                    if payload.is_empty() && take == header.len as usize {
                        state.frame(*header, &bytes[..take], now, wakers)?;
                    } else {
                        payload.extend_from_slice(&bytes[..take]);
                        if payload.len() < header.len as usize {
                            return Ok(());
                        }
                        state.frame(*header, payload, now, wakers)?;
                    }
                    bytes.advance(take);
                    self.frame = PartialFrame::default();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use retunnel_proto::native::FLAG_ACK;

    use super::*;
    use crate::{
        config::{LinkConfig, Role},
        state::QueuedEvent,
    };

    fn frame(kind: FrameKind, flags: u8, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader { kind, flags, len: payload.len() as u32, stream: 0 };
        [&header.encode(), payload].concat()
    }

    #[test]
    fn frames_are_the_same_in_single_bytes_and_stop_at_a_full_queue() {
        let now = Instant::now();
        let config = LinkConfig { max_event_queue: 2, ..LinkConfig::default() };
        let mut bytes: Vec<u8> = (1..=5).flat_map(|n| frame(FrameKind::Control, 0, &[n; 3])).collect();
        bytes.extend(frame(FrameKind::Ping, FLAG_ACK, &[0; 8]));
        for step in [1, 2, 7, 11, bytes.len()] {
            let mut state = State::new(Role::Server, config.clone(), now);
            let (mut incoming, mut wakers) = (Incoming::default(), Vec::new());
            let (mut pieces, mut seen) = (bytes.chunks(step), Vec::new());
            loop {
                if incoming.has_leftover() {
                    incoming.resume(&mut state, now, &mut wakers).expect("valid frames");
                } else if let Some(piece) = pieces.next() {
                    incoming.receive(&mut state, piece, now, &mut wakers).expect("valid frames");
                } else {
                    break;
                }
                assert!(state.events.len() <= 2, "the queue is bounded");
                while let Some(event) = state.next_event() {
                    let QueuedEvent::Control(payload) = event else { panic!("only control messages were sent") };
                    seen.push(payload[0]);
                }
            }
            assert_eq!(seen, [1, 2, 3, 4, 5], "in steps of {step}");
        }
    }
}
