//! Visitors of TCP tunnels over streams of a 3.x session. The wire has no half-close: the end of a stream ends both
//! directions, so the visitor's end is held back while the answer is in progress.

use std::{io, pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use retunnel_proto::dialect::v3::{StreamEvent, StreamMode, StreamOpen};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    V3Upstream,
    mux::{CHUNK, Stream},
};
use crate::{
    net::{
        buffer::{self, BUFFER, Buffer},
        socket::{ReadHalf, Socket, WriteHalf},
    },
    tunnel::upstream::{Failure, Moved},
};

/// A visitor that has ended its direction gets what the local service sends, until that sends nothing for so long.
const EOF_GRACE: Duration = Duration::from_secs(5);
/// How long a visitor may go on sending to a local service that has ended the stream.
const LINGER: Duration = Duration::from_secs(2);

/// Relays a visitor until its stream has ended.
///
/// # Errors
/// The failure of either side; the caller resets the visitor then.
pub(super) async fn relay(visitor: &mut Socket, upstream: &V3Upstream, moved: &Moved) -> io::Result<()> {
    let open = StreamOpen {
        stream_id: 0,
        tunnel_id: String::new(),
        mode: StreamMode::Tcp,
        method: String::new(),
        path: "/".into(),
        headers: Vec::new(),
        body: Bytes::new(),
        has_body: false,
    };
    let stream = upstream.open(open).await.map_err(|failure| match failure {
        Failure::Busy => io::Error::other("the client serves as many visitors as it can"),
        _ => io::Error::other("the client's session ended"),
    })?;
    let (mut from_visitor, mut to_visitor) = visitor.split();
    {
        let mut down = pin!(receive(&stream, &mut to_visitor, moved));
        let ended = tokio::select! {
            result = &mut down => Some(result),
            result = send(&mut from_visitor, &stream, moved) => match result {
                Ok(()) => None,
                Err(error) => {
                    stream.reset("the visitor is gone");
                    Some(Err(error))
                }
            },
        };
        match ended {
            Some(result) => result?,
            None => loop {
                let before = moved.down();
                match timeout(EOF_GRACE, &mut down).await {
                    Ok(result) => break result?,
                    Err(_) if before == moved.down() => {
                        stream.close(None, None);
                        break;
                    }
                    Err(_) => {}
                }
            },
        }
    }
    to_visitor.shutdown().await?;
    // Bytes that arrive at a closed socket would turn its end into a reset, and the answer's rest could be lost.
    let _ = timeout(LINGER, async { while matches!(discard(&mut from_visitor).await, Ok(1..)) {} }).await;
    Ok(())
}

async fn discard(from_visitor: &mut ReadHalf<'_>) -> io::Result<usize> {
    Buffer::read(from_visitor, 0..BUFFER).await.map(|(_, count)| count)
}

/// Sends the visitor's bytes up to its end, small reads together: the client counts frames.
async fn send(from_visitor: &mut ReadHalf<'_>, stream: &Stream, moved: &Moved) -> io::Result<()> {
    loop {
        let mut chunk = BytesMut::new();
        let mut is_end = buffer::read_into(from_visitor, &mut chunk).await? == 0;
        while !is_end
            && chunk.len() + BUFFER <= CHUNK
            && let Some(read) = buffer::read_into(from_visitor, &mut chunk).now_or_never()
        {
            is_end = read? == 0;
        }
        if !chunk.is_empty() {
            moved.add_up(chunk.len() as u64);
            stream.send(chunk.freeze(), None, None).await.map_err(io::Error::other)?;
        }
        if is_end {
            return Ok(());
        }
    }
}

async fn receive(stream: &Stream, to_visitor: &mut WriteHalf<'_>, moved: &Moved) -> io::Result<()> {
    loop {
        match stream.next().await.map_err(io::Error::other)? {
            StreamEvent::Data { data, .. } => {
                to_visitor.write_all(&data).await?;
                moved.add_down(data.len() as u64);
            }
            StreamEvent::Close { .. } => return Ok(()),
            StreamEvent::Reset { reason } => {
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, format!("the client gave up: {reason}")));
            }
        }
    }
}
