//! Gives memory back to the system after a burst. glibc's allocator keeps what was freed between pieces that are still in
//! use until it is asked (`malloc_trim(3)`); other systems' allocators do it by themselves.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

/// How often the process is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// A process that used fewer ticks of processor time since the last look is idle: nobody waits while memory is sorted.
const IDLE: u64 = 25;

/// Looks at the process for as long as it is polled.
pub(crate) async fn give_back() -> Infallible {
    let mut looked = ticks();
    // What only waited since memory was last given back has freed nothing. How much memory is held cannot be the measure: what
    // a thousand visitors held while they waited is still held by the allocator once they are gone.
    let mut given = None;
    loop {
        sleep(EVERY).await;
        let before = std::mem::replace(&mut looked, ticks());
        if looked.saturating_sub(before) < IDLE && given != Some(looked) {
            trim();
            looked = ticks();
            given = Some(looked);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    #[expect(unsafe_code, reason = "there is no safe way to ask glibc")]
    // SAFETY: takes no pointers, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

/// Processor time of all threads so far, in the system's ticks of 10 ms; 0 when the system does not say.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc_pid_stat(5): the name may hold anything, what follows it does not; utime and stime are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    fields.skip(12).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("the system says what is in use");
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages")
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_at_one_look_and_freed_later_goes_back() {
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..40_000).map(|_| Some(vec![1; 1000].into_boxed_slice())).collect();
        let mut looks = std::pin::pin!(give_back());
        assert!(timeout(EVERY * 2, &mut looks).await.is_err());
        let before = resident_pages();
        // One in sixteen stays, so that no end of the heap is free.
        for (n, piece) in pieces.iter_mut().enumerate() {
            if n % 16 != 0 {
                *piece = None;
            }
        }
        // That takes less than a tick; whoever serves visitors uses more.
        let used = ticks();
        while ticks() == used {}
        assert!(timeout(EVERY * 2, &mut looks).await.is_err());
        let after = resident_pages();
        assert!(after + 2000 < before, "{before} pages before, {after} after");
    }
}
