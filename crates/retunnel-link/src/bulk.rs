//! Dedicated threads for bulk transfers. A saturated splice keeps its thread busy. On a thread that also drives links every
//! small request would wait for it, and the system schedules a thread that is always ready to run with low priority.

use std::{
    future::pending,
    io,
    os::fd::AsFd,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
};

/// Limit of threads. One moves more than 10 Gbit/s.
const MAX_THREADS: usize = 8;
/// Polls of tasks before a thread checks its sockets.
const TURNS_BEFORE_LOOK: u32 = 31;
/// Niceness of the threads: when the processor is busy, small requests and other programs go first.
const NICENESS: i32 = 5;

/// Started with the first bulk stream of the process and never stopped: idle threads cost nothing.
static THREADS: LazyLock<Vec<Handle>> = LazyLock::new(|| {
    // Half of the cores; the other half is for the links.
    let wanted = thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, MAX_THREADS));
    (0..wanted).map_while(|_| start().ok()).collect()
});
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The thread for one more stream, in turn. `None` if the system starts no thread.
pub(crate) fn thread() -> Option<&'static Handle> {
    let count = THREADS.len().max(1);
    THREADS.get(NEXT.fetch_add(1, Relaxed) % count)
}

fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_io().event_interval(TURNS_BEFORE_LOOK).build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("retunnel-bulk".into()).spawn(move || {
        // On Linux this concerns the calling thread only. The thread also works without it.
        let _ = rustix::process::nice(NICENESS);
        runtime.block_on(pending::<()>());
    })?;
    Ok(handle)
}

/// Another handle to the same socket, registered with `runtime`.
pub(crate) fn twin(socket: &TcpStream, runtime: &Handle) -> io::Result<TcpStream> {
    let twin = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
    let _inside = runtime.enter();
    TcpStream::from_std(twin)
}

/// Registers the socket with another runtime. Tasks that wait for it must poll it again. Otherwise a socket whose bytes are
/// moved elsewhere would wake its old thread each time bytes arrive.
pub(crate) fn change_runtime(socket: &mut TcpStream, runtime: &Handle) {
    // If there is no descriptor left, it stays where it is and still works.
    if let Ok(twin) = twin(socket, runtime) {
        *socket = twin;
    }
}
