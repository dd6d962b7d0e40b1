//! Threads of their own for bulk. A saturated splice keeps its thread busy; on the thread of the links every small request
//! would wait for its turns, and for a thread that is always ready to run the system has no hurry.

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

/// Threads at the most; one moves more than 10 Gbit/s.
const MAX_THREADS: usize = 8;
/// Turns of tasks before a thread looks at its sockets.
const TURNS_BEFORE_LOOK: u32 = 31;
/// How much the threads step back where the processor is short: small requests go first, and whoever shares the machine.
const NICENESS: i32 = 5;

/// Started with the first bulk stream of the process, never ended: waiting for nothing they cost nothing.
static THREADS: LazyLock<Vec<Handle>> = LazyLock::new(|| {
    // Another one has the links: half of the cores, as for these.
    let wanted = thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, MAX_THREADS));
    (0..wanted).map_while(|_| start().ok()).collect()
});
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A thread for one more stream, in turn; `None`: the system gives no thread.
pub(crate) fn thread() -> Option<&'static Handle> {
    let count = THREADS.len().max(1);
    THREADS.get(NEXT.fetch_add(1, Relaxed) % count)
}

fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_io().event_interval(TURNS_BEFORE_LOOK).build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("retunnel-bulk".into()).spawn(move || {
        // On Linux it counts for this thread alone; refused, the thread works all the same.
        let _ = rustix::process::nice(NICENESS);
        runtime.block_on(pending::<()>());
    })?;
    Ok(handle)
}

/// Another handle to the same socket, whose readiness the thread of this runtime looks after.
pub(crate) fn twin(socket: &TcpStream, runtime: &Handle) -> io::Result<TcpStream> {
    let twin = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
    let _inside = runtime.enter();
    TcpStream::from_std(twin)
}

/// Lets the thread of another runtime look after the socket: whoever waits for it must ask again. A socket whose bytes somebody
/// else moves would wake its thread for each of them.
pub(crate) fn change_runtime(socket: &mut TcpStream, runtime: &Handle) {
    // Without one more descriptor it stays where it is, and works.
    if let Ok(twin) = twin(socket, runtime) {
        *socket = twin;
    }
}
