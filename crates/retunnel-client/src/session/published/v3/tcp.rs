//! One TCP connection over a stream. The dialect has no half-close: the end of either side is the end of both.

use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::BytesMut;
use retunnel_proto::{dialect::v3::StreamEvent, limits::V3_CHUNK, message::RequestSummary};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::stream::{Gone, Inbox, Outbox, Stream};
use crate::{connection::Connection, error::RelayError, exchange::visit::Visit, service::Service};

/// After one side has ended, how long the delivery of what had arrived for it or from it may make no progress.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long the local service may take to close after the visitor has.
const LINGER: Duration = Duration::from_secs(2);

/// How a connection ended.
enum End {
    /// The visitor closed it, or the server on behalf of the visitor.
    Closed,
    /// The local service closed it.
    Local,
    Gone(Gone),
    Failed(std::io::Error),
}

/// Serves one connection.
pub(super) async fn serve(stream: Stream, service: Service) {
    let Stream { mut inbox, outbox } = stream;
    let mut visit = Visit::new(service, "", "", "");
    let mut local = match visit.service.connect().await {
        Ok(local) => local,
        Err(error) => {
            let error = visit.local_failed(error);
            visit.summary.status = 0;
            return outbox.reset(&error.to_string()).await;
        }
    };
    local.transfer_begins();
    let (mut reader, mut writer) = split(local);
    let end = transfer(&mut inbox, &outbox, (&mut reader, &mut writer), &mut visit.summary).await;
    if let End::Closed = end {
        // Closing a socket with unread bytes destroys those that are under way to the service.
        let _ = timeout(LINGER, discard(&mut reader)).await;
    }
    let mut local = reader.unsplit(writer);
    match end {
        End::Closed | End::Local => local.transfer_ends(),
        // No one may take an incomplete transfer for a complete one.
        End::Gone(gone) => {
            outbox.gone(gone).await;
            local.last_bytes_sent().await;
        }
        End::Failed(error) => {
            let error = RelayError::from(error);
            visit.service.report_failure(&error);
            outbox.reset(&error.to_string()).await;
        }
    }
}

/// Moves bytes both ways until one side ends. What it sent before is delivered, and so is what had arrived for it.
async fn transfer(
    inbox: &mut Inbox,
    outbox: &Outbox,
    (reader, writer): (&mut ReadHalf<Connection>, &mut WriteHalf<Connection>),
    summary: &mut RequestSummary,
) -> End {
    let overflow = inbox.overflow();
    let local_ended = CancellationToken::new();
    let (bytes_in, bytes_out) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = {
        let mut down = pin!(to_local(inbox, writer, &bytes_in, &local_ended));
        let mut up = pin!(to_server(reader, outbox, &bytes_out));
        tokio::select! {
            () = overflow.cancelled() => End::Gone(Gone::Overflow),
            end = &mut down => {
                if let End::Failed(_) = end {
                    // The service takes nothing more, but has perhaps said why.
                    while_moving(&bytes_out, up).await;
                }
                end
            }
            end = &mut up => {
                match end {
                    End::Local => {
                        outbox.close(None, None).await;
                        local_ended.cancel();
                        while_moving(&bytes_in, down).await;
                    }
                    End::Gone(_) => drop(while_moving(&bytes_in, down).await),
                    End::Closed | End::Failed(_) => {}
                }
                end
            }
        }
    };
    summary.bytes_in += bytes_in.into_inner();
    summary.bytes_out += bytes_out.into_inner();
    end
}

/// Waits for a direction as long as it moves something.
async fn while_moving<T>(moved: &AtomicU64, mut direction: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    loop {
        let before = moved.load(Relaxed);
        match timeout(LAST_WORDS, &mut direction).await {
            Ok(end) => return Some(end),
            Err(_) if before == moved.load(Relaxed) => return None,
            Err(_) => {}
        }
    }
}

async fn discard(reader: &mut ReadHalf<Connection>) {
    let mut buffer = vec![0; V3_CHUNK];
    while matches!(reader.read(&mut buffer).await, Ok(1..)) {}
}

/// `local_ended`: only what has arrived is delivered.
async fn to_local(
    inbox: &mut Inbox,
    writer: &mut WriteHalf<Connection>,
    count: &AtomicU64,
    local_ended: &CancellationToken,
) -> End {
    loop {
        // Both arms are cancel-safe.
        let event = tokio::select! {
            biased;
            event = inbox.next() => event,
            () = local_ended.cancelled() => return End::Local,
        };
        match event {
            Some(StreamEvent::Data { data, .. }) => {
                count.fetch_add(data.len() as u64, Relaxed);
                if let Err(error) = writer.write_all(&data).await {
                    return End::Failed(error);
                }
            }
            Some(StreamEvent::Close { .. }) => {
                let _ = writer.shutdown().await;
                return End::Closed;
            }
            Some(StreamEvent::Reset { .. }) => return End::Gone(Gone::Visitor),
            None => return End::Gone(inbox.end()),
        }
    }
}

async fn to_server(reader: &mut ReadHalf<Connection>, outbox: &Outbox, count: &AtomicU64) -> End {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(V3_CHUNK);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return End::Local,
            Ok(read) => drop(count.fetch_add(read as u64, Relaxed)),
            Err(error) => return End::Failed(error),
        }
        if let Err(gone) = outbox.bytes(buffer.split().freeze()).await {
            return End::Gone(gone);
        }
    }
}
