//! An answer as HTTP/1.1 frames it.

use bytes::{BufMut, BytesMut};
use retunnel_link::LinkStream;
use retunnel_proto::http1::{
    Framing,
    body::{self, CHUNK_HEAD, CHUNK_TAIL},
    response::ResponseHead,
    write::{self, Answer},
};
use tokio::io::AsyncWriteExt;

use crate::{
    edge::downstream::{AnswerSink, Gone},
    net::{
        buffer::{Draft, write_slices},
        relay,
        socket::WriteHalf,
    },
    tunnel::upstream::{Moved, Part},
};

/// A body of this size or less is copied after its head: cheaper than a second slice.
const COPIED: usize = 4 * 1024;

/// One answer.
#[derive(Debug)]
pub(in crate::edge) struct Http1Answer<'a> {
    to_visitor: WriteHalf<'a>,
    is_http_11: bool,
    is_chunked: bool,
    is_sized: bool,
}

impl<'a> Http1Answer<'a> {
    pub(super) const fn new(to_visitor: WriteHalf<'a>, is_http_11: bool) -> Self {
        Self { to_visitor, is_http_11, is_chunked: false, is_sized: false }
    }

    /// Writes a part after what `out` holds, in one call.
    async fn write(&mut self, mut out: Draft, part: &Part) -> Result<(), Gone> {
        let payload = &part.payload[..];
        let mut tail = BytesMut::new();
        if self.is_chunked {
            if !payload.is_empty() {
                let mut size = [0; CHUNK_HEAD];
                let start = body::chunk_head(&mut size, payload.len());
                out.put_slice(&size[start..]);
                tail.put_slice(CHUNK_TAIL);
            }
            if let Some(trailers) = &part.end {
                body::last_chunk(trailers, &mut tail);
            }
        }
        if payload.len() <= COPIED {
            out.put_slice(payload);
            out.put_slice(&tail);
            return self.to_visitor.write_all(&out).await.map_err(|_| Gone);
        }
        write_slices(&mut self.to_visitor, [&out, payload, &tail]).await.map_err(|_| Gone)
    }
}

impl AnswerSink for Http1Answer<'_> {
    async fn proceed(&mut self) -> Result<(), Gone> {
        self.to_visitor.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Gone)
    }

    async fn interim(&mut self, head: &ResponseHead) -> Result<(), Gone> {
        if !self.is_http_11 {
            // HTTP/1.0 has none.
            return Ok(());
        }
        let mut out = Draft::new();
        let answer = Answer { framing: Framing::None, keep_alive: true, visitor_is_http_11: true };
        write::response(head, answer, &mut out);
        self.to_visitor.write_all(&out).await.map_err(|_| Gone)
    }

    async fn begin(&mut self, head: &ResponseHead, part: &Part, keep_alive: bool) -> Result<bool, Gone> {
        let framing = match head.body {
            Framing::Chunked | Framing::UntilClose if self.is_http_11 => Framing::Chunked,
            Framing::Chunked => Framing::UntilClose,
            other => other,
        };
        let keep_alive = keep_alive && framing != Framing::UntilClose;
        self.is_chunked = framing == Framing::Chunked;
        self.is_sized = matches!(framing, Framing::Length(_));
        let mut out = Draft::new();
        write::response(head, Answer { framing, keep_alive, visitor_is_http_11: self.is_http_11 }, &mut out);
        self.write(out, part).await?;
        Ok(keep_alive)
    }

    async fn send(&mut self, part: &Part) -> Result<(), Gone> {
        self.write(Draft::new(), part).await
    }

    async fn relay(&mut self, stream: &LinkStream, left: u64, moved: &Moved) -> Result<Option<bool>, Gone> {
        if !self.is_sized {
            return Ok(None);
        }
        let count = |count: usize| moved.add_down(count as u64);
        relay::down(stream, &mut self.to_visitor, left, count).await.map(Some).map_err(|_| Gone)
    }
}
