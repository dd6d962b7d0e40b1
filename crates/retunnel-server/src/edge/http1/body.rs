//! A request's body as HTTP/1.1 frames it.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use retunnel_link::LinkStream;
use retunnel_proto::http1::{Framing, body::Decoder};
use tokio::time::timeout;

use crate::{
    edge::downstream::{BodyError, Leaving, Piece, RequestBody},
    net::{
        buffer::{self, Joined},
        relay,
        socket::ReadHalf,
    },
    tunnel::upstream::Moved,
};

/// Bytes read ahead of a pipelining visitor while its first request is being answered.
const READ_AHEAD: usize = 64 * 1024;

/// The body of one request.
#[derive(Debug)]
pub(in crate::edge) struct Http1Body<'a> {
    decoder: Decoder,
    from_visitor: ReadHalf<'a>,
    /// Read and not decoded. After the body, what the visitor sent ahead.
    received: &'a mut BytesMut,
    limit: Duration,
}

impl<'a> Http1Body<'a> {
    /// `limit`: how long the visitor may send nothing.
    pub(super) const fn new(
        framing: Framing,
        from_visitor: ReadHalf<'a>,
        received: &'a mut BytesMut,
        limit: Duration,
    ) -> Self {
        Self { decoder: Decoder::new(framing), from_visitor, received, limit }
    }
}

impl RequestBody for Http1Body<'_> {
    fn arrived(&mut self) -> Result<Piece, BodyError> {
        let mut payload = Joined::default();
        while !self.decoder.is_done() && !self.received.is_empty() {
            let step = self.decoder.step(self.received).map_err(|_| BodyError::Malformed)?;
            self.received.advance(step.framing);
            payload.push(self.received.split_to(step.payload).freeze());
        }
        let end = match self.decoder.is_done() {
            true => Some(self.decoder.trailers().map_err(|_| BodyError::Malformed)?),
            false => None,
        };
        Ok(Piece { payload: payload.into_bytes(), end })
    }

    async fn more(&mut self) -> Result<(), BodyError> {
        match timeout(self.limit, buffer::read_into(&mut self.from_visitor, self.received)).await {
            Err(_) => Err(BodyError::TimedOut),
            // The body was cut short.
            Ok(Ok(0) | Err(_)) => Err(BodyError::Gone),
            Ok(Ok(_)) => Ok(()),
        }
    }

    async fn relay(&mut self, stream: &LinkStream, moved: &Moved) -> Result<bool, BodyError> {
        let Some(left) = self.decoder.sized_left().filter(|_| self.received.is_empty()) else { return Ok(false) };
        let count = |count: usize| moved.add_up(count as u64);
        match relay::up(&mut self.from_visitor, stream, left, self.limit, count).await {
            Ok(()) => {
                self.decoder.skip(left);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(BodyError::TimedOut),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(BodyError::Gone),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe || stream.is_over() => Err(BodyError::StreamClosed),
            Err(_) => Err(BodyError::Gone),
        }
    }

    async fn watch(&mut self) -> Leaving {
        if self.received.is_empty() {
            // An idle connection owns no buffer.
            *self.received = BytesMut::new();
        }
        loop {
            if self.received.len() >= READ_AHEAD {
                return std::future::pending().await;
            }
            match buffer::read_into(&mut self.from_visitor, self.received).await {
                Ok(0) => return Leaving::HalfClosed,
                Ok(_) => {}
                Err(_) => return Leaving::Gone,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.decoder.is_done()
    }

    fn is_awaited(&self) -> bool {
        self.received.is_empty()
    }
}
