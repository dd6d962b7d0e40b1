//! Visitors of TCP tunnels over streams of a 3.x session. The wire has no half-close: the end of a stream ends both
//! directions, so the visitor's end is held back while the answer is in progress.

use std::{
    io,
    pin::{Pin, pin},
    time::Duration,
};

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
/// After a failure of one side, how long the delivery of what the other had sent may make no progress.
const LAST_WORDS: Duration = Duration::from_secs(10);
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
    transfer(&stream, &mut from_visitor, &mut to_visitor, moved).await?;
    to_visitor.shutdown().await?;
    // Bytes that arrive at a closed socket would turn its end into a reset, and the answer's rest could be lost.
    let _ = timeout(LINGER, async { while matches!(discard(&mut from_visitor).await, Ok(1..)) {} }).await;
    Ok(())
}

/// Which side failed.
enum Lost {
    Visitor(io::Error),
    Client(io::Error),
}

/// Moves bytes both ways until the stream has ended. What one side sent before a failure of the other is still delivered.
async fn transfer(
    stream: &Stream,
    from_visitor: &mut ReadHalf<'_>,
    to_visitor: &mut WriteHalf<'_>,
    moved: &Moved,
) -> io::Result<()> {
    let mut up = pin!(send(from_visitor, stream, moved));
    let mut down = pin!(receive(stream, to_visitor, moved));
    let gone = |error| {
        stream.reset("the visitor is gone");
        Err(error)
    };
    tokio::select! {
        ended = &mut down => match ended {
            Ok(()) => Ok(()),
            Err(Lost::Client(error)) => Err(error),
            Err(Lost::Visitor(error)) => {
                while_moving(LAST_WORDS, || moved.up(), up).await;
                gone(error)
            }
        },
        ended = &mut up => match ended {
            Err(Lost::Visitor(error)) => gone(error),
            Err(Lost::Client(error)) => {
                while_moving(LAST_WORDS, || moved.down(), down).await;
                Err(error)
            }
            Ok(()) => match while_moving(EOF_GRACE, || moved.down(), down).await {
                Some(Err(Lost::Visitor(error) | Lost::Client(error))) => Err(error),
                Some(Ok(())) => Ok(()),
                None => {
                    stream.close(None, None);
                    Ok(())
                }
            },
        },
    }
}

/// Waits for a direction as long as it moves something within each `limit`.
async fn while_moving<T>(
    limit: Duration,
    moved: impl Fn() -> u64,
    mut direction: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    loop {
        let before = moved();
        match timeout(limit, &mut direction).await {
            Ok(ended) => return Some(ended),
            Err(_) if before == moved() => return None,
            Err(_) => {}
        }
    }
}

async fn discard(from_visitor: &mut ReadHalf<'_>) -> io::Result<usize> {
    Buffer::read(from_visitor, 0..BUFFER).await.map(|(_, count)| count)
}

/// Sends the visitor's bytes up to its end, small reads together: the client counts frames.
async fn send(from_visitor: &mut ReadHalf<'_>, stream: &Stream, moved: &Moved) -> Result<(), Lost> {
    loop {
        let mut chunk = BytesMut::new();
        let mut read = buffer::read_into(from_visitor, &mut chunk).await;
        while matches!(read, Ok(1..))
            && chunk.len() + BUFFER <= CHUNK
            && let Some(next) = buffer::read_into(from_visitor, &mut chunk).now_or_never()
        {
            read = next;
        }
        if !chunk.is_empty() {
            moved.add_up(chunk.len() as u64);
            stream.send(chunk.freeze(), None, None).await.map_err(|lost| Lost::Client(io::Error::other(lost)))?;
        }
        if read.map_err(Lost::Visitor)? == 0 {
            return Ok(());
        }
    }
}

async fn receive(stream: &Stream, to_visitor: &mut WriteHalf<'_>, moved: &Moved) -> Result<(), Lost> {
    loop {
        match stream.next().await.map_err(|lost| Lost::Client(io::Error::other(lost)))? {
            StreamEvent::Data { data, .. } => {
                to_visitor.write_all(&data).await.map_err(Lost::Visitor)?;
                moved.add_down(data.len() as u64);
            }
            StreamEvent::Close { .. } => return Ok(()),
            StreamEvent::Reset { reason } => {
                let error = format!("the client gave up: {reason}");
                return Err(Lost::Client(io::Error::new(io::ErrorKind::ConnectionReset, error)));
            }
        }
    }
}
