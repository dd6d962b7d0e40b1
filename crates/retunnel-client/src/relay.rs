//! One visitor's bytes: from a stream of the link to the local service and back.

use std::{
    future::poll_fn,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use retunnel_link::{LinkStream, Pump, poll_relay};
use retunnel_proto::native::ReasonCode;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout},
};

use crate::{
    connection::{reach, reason_of},
    error::RelayError,
    stats::Stats,
    tap::{Side, Tap, TappedSocket},
    target::LocalTarget,
};

/// Bytes of a request that are shown when the local service takes no connection. They follow the start of the stream.
const HEAD_SHOWN: usize = 16 * 1024;
const HEAD_WITHIN: Duration = Duration::from_millis(100);

/// Serves one stream until both sides are done. `tap` sees what passes.
///
/// # Errors
/// [`RelayError::LocalUnreachable`] when the local service accepts no connection; the visitor gets an error page then.
pub(crate) async fn serve(
    stream: LinkStream,
    target: &LocalTarget,
    stats: &Stats,
    tap: Option<Box<Tap>>,
) -> Result<(), RelayError> {
    let local = match reach(target, stats).await {
        Ok(local) => local,
        Err(error) => {
            if let Some(mut tap) = tap {
                show_failed(&stream, &mut tap, &error.to_string()).await;
            }
            stream.reset(ReasonCode::LOCAL_UNREACHABLE, &error.to_string());
            return Err(error);
        }
    };
    let mut local = TappedSocket::new(local, tap);
    stats.opened();
    let _open = Open(stats);
    let mut stall = Stall::new(target);
    // `down` comes from the local service: seen from the link it is what goes up.
    let (mut to_link, mut to_local) = (Pump::default(), Pump::default());
    let mut counted = (0, 0);
    let result = poll_fn(|cx| {
        let polled = poll_relay(cx, &mut local, &stream, &mut to_link, &mut to_local);
        let new = (to_local.moved() - counted.0, to_link.moved() - counted.1);
        stats.add_bytes(new.0, new.1);
        counted = (to_local.moved(), to_link.moved());
        if stall.wants_acknowledgement(new.0 > 0, new.1 > 0, || stream.is_on_lane()) {
            local.acknowledge();
        }
        match polled {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if let Err(error) = result {
        // Neither side may take a cut transfer for a complete one.
        local.abort();
        stream.reset(ReasonCode::CANCELLED, &reason_of(&error));
        return Err(error.into());
    }
    Ok(())
}

/// Shows the tap a request that the local service did not accept.
async fn show_failed(mut stream: &LinkStream, tap: &mut Tap, reason: &str) {
    let mut head = vec![0; HEAD_SHOWN];
    if let Ok(Ok(len)) = timeout(HEAD_WITHIN, stream.read(&mut head)).await {
        tap.seen(Side::Request, &head[..len]);
        tap.failed(reason);
    }
}

/// Notices local services that wait for acknowledgements. Many write head and body of an answer in two small pieces; on a
/// kept connection the second waits until the first is acknowledged (Nagle), which systems put off for 40 ms. Once a
/// service was seen to pause so, what comes from it is acknowledged at once.
struct Stall<'a> {
    waits: &'a AtomicBool,
    /// When the last bytes came, unless others went to the service since.
    came: Option<Instant>,
}

/// What a delayed acknowledgement takes, with some play.
const DELAYED: RangeInclusive<Duration> = Duration::from_millis(30)..=Duration::from_millis(70);

impl<'a> Stall<'a> {
    fn new(target: &'a LocalTarget) -> Self {
        Self { waits: &target.waits_for_acknowledgements, came: None }
    }

    /// `is_bulk`: bytes are reported from time to time, which says nothing about the service.
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

struct Open<'a>(&'a Stats);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed();
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
            // The next request: a slow answer to it is no sign.
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
