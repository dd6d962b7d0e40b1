//! Tunnels of 3.x sessions: each request, WebSocket and TCP visitor is a stream of the session's one WebSocket
//! (`docs/protocol.md`, dialect 3).

mod http;
pub(crate) mod mux;
mod tcp;
mod websocket;

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use retunnel_proto::{
    dialect::v3::{StreamMode, StreamOpen, WireVersion},
    http1::{
        Framing,
        request::RequestHead,
        write::{Visitor, forwarded},
    },
    limits::{V3_MAX_REQUEST_BODY, V3_MAX_REQUEST_BODY_V1},
};

use self::mux::{CHUNK, Mux, OpenError, Stream};
use super::values::text;
use crate::{
    net::socket::Socket,
    tunnel::upstream::{BodyMode, Exchange, Failure, Moved, Request, Soon, Upstream},
};

/// One tunnel of a 3.x session.
#[derive(Debug)]
pub(crate) struct V3Upstream {
    mux: Arc<Mux>,
    /// The id that the client knows.
    id: String,
}

impl V3Upstream {
    pub(crate) const fn new(mux: Arc<Mux>, id: String) -> Self {
        Self { mux, id }
    }

    async fn open(&self, open: StreamOpen) -> Result<Stream, Failure> {
        self.mux.open(StreamOpen { tunnel_id: self.id.clone(), ..open }).await.map_err(|error| match error {
            OpenError::Lost => Failure::Lost,
            OpenError::TooMany => Failure::Busy,
        })
    }

    /// Largest body of a request, in bytes.
    fn max_body(&self) -> usize {
        if self.mux.version == WireVersion::One { V3_MAX_REQUEST_BODY_V1 } else { V3_MAX_REQUEST_BODY }
    }
}

impl Upstream for V3Upstream {
    fn body(&self, request: &RequestHead) -> BodyMode {
        let max = self.max_body();
        let is_streamed = self.mux.version != WireVersion::One
            && match request.body {
                Framing::Length(length) => length > CHUNK as u64,
                Framing::Chunked => true,
                Framing::None | Framing::UntilClose => false,
            };
        match is_streamed {
            true => BodyMode::Streamed { max: max as u64, answers_expect: false },
            false => BodyMode::Whole { max },
        }
    }

    fn exchange<'a>(&'a self, request: Request<'a>) -> Soon<'a, Result<Box<dyn Exchange + 'a>, Failure>> {
        Soon::later(async move {
            Ok(match request.head.upgrade {
                Some(_) => Box::new(websocket::exchange(self, request).await?) as Box<dyn Exchange>,
                None => Box::new(http::exchange(self, request).await?),
            })
        })
    }

    fn relay<'a>(&'a self, visitor: &'a mut Socket, _: SocketAddr, moved: &'a Moved) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(tcp::relay(visitor, self, moved))
    }

    fn is_lost(&self) -> bool {
        self.mux.lost.is_cancelled()
    }
}

/// A request as dialect 3 carries it. Headers that belong to one hop of a WebSocket handshake are left out.
fn stream_request(
    head: &RequestHead,
    visitor: Visitor<'_>,
    mode: StreamMode,
    body: Bytes,
    has_body: bool,
) -> StreamOpen {
    let mut headers = Vec::with_capacity(16);
    forwarded(head, visitor, |name, value| {
        let of_this_hop = name.eq_ignore_ascii_case(b"expect")
            || (mode == StreamMode::WebSocket
                && ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"]
                    .iter()
                    .any(|hop| name.eq_ignore_ascii_case(hop.as_bytes())));
        if !of_this_hop {
            headers.push((String::from_utf8_lossy(name).into_owned(), text(value)));
        }
    });
    let length = match head.body {
        Framing::None | Framing::UntilClose => None,
        Framing::Length(length) => Some(length),
        Framing::Chunked if has_body => None,
        Framing::Chunked => Some(body.len() as u64),
    };
    headers.extend(length.map(|length| ("Content-Length".into(), length.to_string())));
    StreamOpen {
        // The session chooses both.
        stream_id: 0,
        tunnel_id: String::new(),
        mode,
        method: String::from_utf8_lossy(&head.method).into_owned(),
        path: text(&head.target),
        headers,
        body,
        has_body,
    }
}
