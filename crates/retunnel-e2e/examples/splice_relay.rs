//! A relay that moves bytes by `splice(2)` and does nothing else: the benchmarks compare bulk transfers with it.
//!
//! `splice_relay LISTEN TARGET` (Linux)

#[cfg(target_os = "linux")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    use std::{io, os::fd::AsFd, rc::Rc};

    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
    use tokio::{
        io::Interest,
        net::{TcpListener, TcpStream},
        task::LocalSet,
    };

    fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
        Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
    }

    async fn one_way(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        const SIZE: usize = 1 << 20;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _ = fcntl_setpipe_size(&write, SIZE);
        loop {
            let mut filled = from.async_io(Interest::READABLE, || moved(from, &write, SIZE)).await?;
            if filled == 0 {
                let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
                return Ok(());
            }
            while filled > 0 {
                filled -= to.async_io(Interest::WRITABLE, || moved(&read, to, filled)).await?;
            }
        }
    }

    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: splice_relay LISTEN TARGET"));
    };
    let target: Rc<str> = target.into();
    let listener = TcpListener::bind(listen).await?;
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let (visitor, _) = listener.accept().await?;
                let target = Rc::clone(&target);
                tasks.spawn_local(async move {
                    let origin = TcpStream::connect(&*target).await?;
                    let _ = (visitor.set_nodelay(true), origin.set_nodelay(true));
                    tokio::try_join!(one_way(&visitor, &origin), one_way(&origin, &visitor)).map(|_| ())
                });
            }
        })
        .await
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("splice(2) is Linux only");
}
