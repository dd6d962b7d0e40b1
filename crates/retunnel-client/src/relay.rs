//! One visitor's bytes: from a stream of the link to the local service and back. They are not parsed.

use std::{
    future::poll_fn,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use retunnel_link::{LinkStream, Pump, poll_relay};
use retunnel_proto::native::ReasonCode;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout},
};

use crate::{connection::reason_of, error::RelayError, service::Service, target::LocalTarget};

/// Bytes of a request that are shown when the local service accepts no connection. They follow the opening of the stream
/// immediately.
const HEAD_SHOWN: usize = 16 * 1024;
const HEAD_WITHIN: Duration = Duration::from_millis(100);

/// Serves one stream until both sides are done.
///
/// # Errors
/// [`RelayError::LocalUnreachable`] when the local service accepts no connection, [`RelayError::OutOfDescriptors`]. The
/// stream is reset then, as after any failure.
pub(crate) async fn serve(stream: LinkStream, service: &Service) -> Result<(), RelayError> {
    let mut local = match service.connect().await {
        Ok(local) => local,
        Err(error) => {
            if service.is_observed() {
                show_failed(&stream, service, &error).await;
            }
            stream.reset(error.reason_code(), &error.to_string());
            return Err(error);
        }
    };
    local.transfer_begins();
    let mut stall = Stall::new(&service.target);
    // Up: from the local service to the link. Down: from the link to the local service.
    let (mut up, mut down) = (Pump::default(), Pump::default());
    let mut moved = (0, 0);
    let result = poll_fn(|cx| {
        let polled = poll_relay(cx, &mut local, &stream, &mut up, &mut down);
        let has_moved = (up.moved() > moved.0, down.moved() > moved.1);
        moved = (up.moved(), down.moved());
        if stall.wants_acknowledgement(has_moved.1, has_moved.0, || stream.is_on_lane()) {
            local.acknowledge();
        }
        polled
    })
    .await;
    if let Err(error) = result {
        // Neither side may take an incomplete transfer for a complete one.
        stream.reset(ReasonCode::CANCELLED, &reason_of(&error));
        local.last_bytes_sent().await;
        return Err(error.into());
    }
    local.transfer_ends();
    Ok(())
}

/// Shows the observer a request that the local service did not accept.
async fn show_failed(mut stream: &LinkStream, service: &Service, error: &RelayError) {
    let mut head = vec![0; HEAD_SHOWN];
    if let Ok(Ok(len)) = timeout(HEAD_WITHIN, stream.read(&mut head)).await {
        service.show_failed(&head[..len], error);
    }
}

/// Notices local services that wait for acknowledgements. Many write head and body of an answer in two small pieces; on a
/// kept connection the second waits until the first is acknowledged (Nagle's algorithm), which systems delay by 40 ms.
/// After a service was seen to pause like this, its bytes are acknowledged at once.
struct Stall<'a> {
    waits: &'a AtomicBool,
    /// When the last bytes came, unless others were sent to the service since.
    came: Option<Instant>,
}

/// How long systems delay an acknowledgement, with some tolerance.
const DELAYED: RangeInclusive<Duration> = Duration::from_millis(30)..=Duration::from_millis(70);

impl<'a> Stall<'a> {
    fn new(target: &'a LocalTarget) -> Self {
        Self { waits: &target.waits_for_acknowledgements, came: None }
    }

    /// `is_bulk`: bytes are reported in intervals, which says nothing about the service.
    fn wants_acknowledgement(&mut self, sent: bool, came: bool, is_bulk: impl FnOnce() -> bool) -> bool {
        if sent {
            self.came = None;
        }
        if !came {
            return false;
        }
        if self.waits.load(Relaxed) {
            return true;
        }
        let now = Instant::now();
        let paused = self.came.replace(now).is_some_and(|before| DELAYED.contains(&now.duration_since(before)));
        let waited = paused && !is_bulk();
        if waited {
            self.waits.store(true, Relaxed);
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_service_that_waits_for_acknowledgements_is_noticed_once_and_for_all() {
        let target = LocalTarget::port(1);
        let mut stall = Stall::new(&target);
        for (milliseconds, sent, came, wants) in [
            (0, true, false, false),
            (1, false, true, false),
            (1, false, true, false),
            // The next request: a slow answer to it means nothing.
            (40, true, false, false),
            (40, false, true, false),
            (400, false, true, false),
            (41, false, true, true),
            (500, true, false, false),
            (1, false, true, true),
        ] {
            advance(Duration::from_millis(milliseconds)).await;
            assert_eq!(stall.wants_acknowledgement(sent, came, || false), wants, "{milliseconds} ms, {sent}, {came}");
        }
        assert!(Stall::new(&target).wants_acknowledgement(false, true, || false), "on its other connections as well");
    }
}
