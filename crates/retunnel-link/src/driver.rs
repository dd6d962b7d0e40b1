//! The one task of a link: reads, writes batches, keeps the heartbeat. All I/O and all timers are here; the rules are in
//! [`crate::state`].

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    budget::Budget,
    chunk,
    error::LinkError,
    lane::Lane,
    scheduling::take_turns,
    shared::Shared,
    state::{State, incoming::Incoming},
};

/// Bytes of one read. Large enough that a busy link needs few calls, shared by all links of a thread.
const READ_BUFFER: usize = 128 * 1024;
/// Timeout for the last bytes on the lane of a stream that was reset here.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// Reads in a row before other tasks get a turn.
const READS_PER_POLL: usize = 4;
/// Slices of one vectored write. Linux takes 1024; a batch of [`crate::state`] fits into 64.
const SLICES: usize = 64;

thread_local! {
    /// The links of a thread read one after the other, so they share the buffer, and an idle link owns none.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Moves a link's bytes. This future ends with the cause of the link's end. Dropping it ends the link.
pub struct Driver<IO> {
    io: IO,
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    incoming: Incoming,
    out: VecDeque<Bytes>,
    /// Tasks that a poll wakes; empty between polls.
    wakers: Vec<Waker>,
    tick: Pin<Box<Sleep>>,
    probe: Probe,
    /// Lanes that end: their streams were reset here. With the time when they are closed at the latest.
    leaving: Vec<(Arc<Lane>, Instant)>,
    close_deadline: Option<Instant>,
}

/// Shows the loss of the last bytes before a pause. No bytes follow that would show it, and TCP takes 200 ms and two round
/// trips to suspect a loss. An empty frame, sent half a round trip later, shows it after one and a half.
#[derive(Default)]
struct Probe {
    due: Option<Instant>,
    /// Fires no later than `due`. Created for the first probe: short paths need none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Probe {
    fn data_goes(&mut self, after: Option<Duration>) {
        self.due = after.map(|after| Instant::now() + after);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        while timer.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                self.due = None;
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl<IO> fmt::Debug for Driver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(crate) fn new(io: IO, shared: Arc<Shared>) -> Self {
        let config = shared.lock().config().clone();
        let first = Instant::now() + config.ping_interval;
        Self {
            io,
            budget: config.budget,
            shared,
            incoming: Incoming::default(),
            out: VecDeque::new(),
            wakers: Vec::new(),
            tick: Box::pin(sleep_until(first)),
            probe: Probe::default(),
            leaving: Vec::new(),
            close_deadline: None,
        }
    }

    fn poll_link(&mut self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<LinkError> {
        self.shared.lock().set_driver(cx.waker());
        if let Err(error) = self.poll_read(cx, wakers) {
            return Poll::Ready(error);
        }
        // Readers woken now may answer within this poll's batch.
        wakers.drain(..).for_each(Waker::wake);
        if let Err(error) = self.poll_heartbeat(cx, wakers) {
            return Poll::Ready(error);
        }
        if let Poll::Ready(error) = self.poll_write(cx, wakers) {
            return Poll::Ready(error);
        }
        if self.probe.poll(cx).is_ready() {
            self.shared.lock().queue_probe();
            if let Poll::Ready(error) = self.poll_write(cx, wakers) {
                return Poll::Ready(error);
            }
        }
        self.leaving.retain(|(lane, _)| lane.poll_leave(cx).is_pending());
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        if self.incoming.has_leftover() {
            let now = Instant::now();
            let mut state = self.shared.lock();
            self.incoming.resume(&mut state, now, wakers)?;
            keep_budget(state, &self.budget, now);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(READ_BUFFER, 0);
            for _ in 0..READS_PER_POLL {
                {
                    let mut state = self.shared.lock();
                    if state.closing().is_some() {
                        return Ok(());
                    }
                    if state.events_are_full() {
                        // Not reading is our choice, not the peer's silence.
                        state.heard(Instant::now());
                        return Ok(());
                    }
                }
                let mut buf = ReadBuf::new(scratch);
                match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Err(error)) => return Err(LinkError::Io(Arc::new(error))),
                    Poll::Ready(Ok(())) if buf.filled().is_empty() => return Err(self.shared.lock().closed_by_peer()),
                    Poll::Ready(Ok(())) => self.received(buf.filled(), wakers)?,
                }
            }
            take_turns(cx);
            Ok(())
        })
    }

    fn received(&mut self, bytes: &[u8], wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        self.incoming.receive(&mut state, bytes, now, wakers)?;
        keep_budget(state, &self.budget, now);
        Ok(())
    }

    fn poll_heartbeat(&mut self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Result<(), LinkError> {
        while self.tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut state = self.shared.lock();
            let silence = state.silence(now);
            if silence >= state.config().dead_after {
                return Err(LinkError::Silent(silence));
            }
            state.release_memory();
            state.queue_ping(now);
            state.reap_detached(now, wakers);
            // Early enough to notice `dead_after` in time.
            let next = state.config().ping_interval.min(state.config().dead_after - silence);
            drop(state);
            chunk::release_unused(now);
            self.leaving.retain(|(_, until)| now < *until);
            self.tick.as_mut().reset(now + next);
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<LinkError> {
        loop {
            if self.out.is_empty() {
                let mut state = self.shared.lock();
                if state.gather(&mut self.out, wakers) {
                    self.probe.data_goes(state.probe_after());
                }
                for lane in state.take_leaving() {
                    self.leaving.push((lane, Instant::now() + LEAVE_WITHIN));
                }
                if self.out.is_empty() {
                    return match state.closing().cloned() {
                        Some(cause) => {
                            drop(state);
                            let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
                            Poll::Ready(cause)
                        }
                        None => {
                            drop(state);
                            match Pin::new(&mut self.io).poll_flush(cx) {
                                Poll::Ready(Err(error)) => Poll::Ready(LinkError::Io(Arc::new(error))),
                                _ => Poll::Pending,
                            }
                        }
                    };
                }
            }
            match self.poll_write_out(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(LinkError::Io(Arc::new(error))),
                Poll::Pending => return self.poll_close_deadline(cx),
            }
        }
    }

    /// A closing link waits for a socket that takes no bytes only for a limited time.
    fn poll_close_deadline(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        let (closing, timeout) = {
            let state = self.shared.lock();
            (state.closing().cloned(), state.config().flush_on_close)
        };
        let Some(cause) = closing else { return Poll::Pending };
        let deadline = *self.close_deadline.get_or_insert_with(|| Instant::now() + timeout);
        self.tick.as_mut().reset(deadline);
        ready!(self.tick.as_mut().poll(cx));
        Poll::Ready(cause)
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = if self.io.is_write_vectored() && self.out.len() > 1 {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                for (slice, bytes) in slices.iter_mut().zip(&self.out) {
                    *slice = IoSlice::new(bytes);
                    count += 1;
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?
            } else {
                let front = self.out.front().map_or(&[][..], |bytes| bytes);
                ready!(Pin::new(&mut self.io).poll_write(cx, front))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(written);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut written: usize) {
        while written > 0 {
            let Some(front) = self.out.front_mut() else { return };
            let step = front.len().min(written);
            front.advance(step);
            written -= step;
            if front.is_empty() {
                self.out.pop_front();
            }
        }
    }
}

/// Lets a stream of any link give way if the process holds more received bytes than it may.
fn keep_budget(mut state: MutexGuard<'_, State>, budget: &Budget, now: Instant) {
    let is_exceeded = state.take_over_budget();
    drop(state);
    if is_exceeded {
        budget.relieve(now);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Driver<IO> {
    type Output = LinkError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LinkError> {
        let this = &mut *self;
        let mut wakers = std::mem::take(&mut this.wakers);
        let result = this.poll_link(cx, &mut wakers);
        if let Poll::Ready(error) = &result {
            this.shared.lock().end(error.clone(), &mut wakers);
        }
        wakers.drain(..).for_each(Waker::wake);
        this.wakers = wakers;
        result
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        self.shared.lock().end(LinkError::Dropped, &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}
