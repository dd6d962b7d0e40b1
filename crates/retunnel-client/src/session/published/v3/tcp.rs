//! One TCP connection over a stream. The dialect has no half-close: the end of either side is the end of both.

use bytes::BytesMut;
use retunnel_proto::{dialect::v3::StreamEvent, limits::V3_CHUNK};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::stream::{Gone, Inbox, Outbox, Stream};
use crate::{connection::Connection, error::RelayError, exchange::visit::Visit, service::Service};

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
    let local = match visit.service.connect().await {
        Ok(local) => local,
        Err(error) => {
            let error = visit.local_failed(error);
            visit.summary.status = 0;
            return outbox.reset(&error.to_string()).await;
        }
    };
    let (mut reader, mut writer) = split(local);
    let (summary, overflow) = (&mut visit.summary, inbox.overflow());
    let end = tokio::select! {
        () = overflow.cancelled() => End::Gone(Gone::Overflow),
        end = to_local(&mut inbox, &mut writer, &mut summary.bytes_in) => end,
        end = to_server(&mut reader, &outbox, &mut summary.bytes_out) => end,
    };
    let local = reader.unsplit(writer);
    match end {
        End::Closed => {}
        End::Local => outbox.close(None, None).await,
        // No one may take an incomplete transfer for a complete one.
        End::Gone(gone) => {
            local.abort();
            outbox.gone(gone).await;
        }
        End::Failed(error) => {
            local.abort();
            let error = RelayError::from(error);
            visit.service.report_failure(&error);
            outbox.reset(&error.to_string()).await;
        }
    }
}

async fn to_local(inbox: &mut Inbox, writer: &mut WriteHalf<Connection>, count: &mut u64) -> End {
    loop {
        match inbox.next().await {
            Some(StreamEvent::Data { data, .. }) => {
                *count += data.len() as u64;
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

async fn to_server(reader: &mut ReadHalf<Connection>, outbox: &Outbox, count: &mut u64) -> End {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(V3_CHUNK);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return End::Local,
            Ok(read) => *count += read as u64,
            Err(error) => return End::Failed(error),
        }
        if let Err(gone) = outbox.bytes(buffer.split().freeze()).await {
            return End::Gone(gone);
        }
    }
}
