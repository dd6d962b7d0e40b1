//! Returns memory to the system after a burst. glibc's allocator keeps freed memory that lies between allocations still in
//! use until `malloc_trim(3)` is called; the allocators of other systems return it by themselves.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

/// How often the process is checked.
const INTERVAL: Duration = Duration::from_secs(5);
/// A process that used fewer ticks of CPU time since the last check is idle: trimming delays no one.
const IDLE_TICKS: u64 = 25;

/// Trims memory while the process is idle, for as long as it is polled.
pub(crate) async fn trim_when_idle() -> Infallible {
    let mut checked = ticks();
    // A process that only waited since the last trim has freed nothing. Memory in use cannot be the measure: what a
    // thousand waiting visitors used is still held by the allocator after they are gone.
    let mut trimmed = None;
    loop {
        sleep(INTERVAL).await;
        let before = std::mem::replace(&mut checked, ticks());
        if checked.saturating_sub(before) < IDLE_TICKS && trimmed != Some(checked) {
            trim();
            checked = ticks();
            trimmed = Some(checked);
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

/// CPU time of all threads so far, in the system's ticks of 10 ms; 0 if unknown.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc_pid_stat(5): the name may contain any character, the fields after it do not; utime and stime are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    fields.skip(12).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages")
    }

    #[tokio::test(start_paused = true)]
    async fn memory_in_use_at_one_check_and_freed_later_is_returned() {
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..40_000).map(|_| Some(vec![1; 1000].into_boxed_slice())).collect();
        let mut trimming = std::pin::pin!(trim_when_idle());
        assert!(timeout(INTERVAL * 2, &mut trimming).await.is_err());
        let before = resident_pages();
        // One in sixteen stays, so that the end of the heap is never free.
        for (n, piece) in pieces.iter_mut().enumerate() {
            if n % 16 != 0 {
                *piece = None;
            }
        }
        // That takes less than a tick; a process that serves visitors uses more.
        let used = ticks();
        while ticks() == used {}
        assert!(timeout(INTERVAL * 2, &mut trimming).await.is_err());
        let after = resident_pages();
        assert!(after + 2000 < before, "{before} pages before, {after} after");
    }
}
