//! Ctrl-C, SIGTERM and SIGHUP.

#[cfg(unix)]
use anyhow::Context;
use anyhow::Result;
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Requests of the user or the system to exit.
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(unix)]
    hangup: Option<Hangup>,
    /// SIGHUP ends the program only if its terminal was closed.
    #[cfg(unix)]
    reloads: bool,
}

impl Signals {
    /// Listens for the signals from now on. Must be called in a runtime.
    pub(crate) fn listen() -> Result<Self> {
        #[cfg(unix)]
        {
            // Without a terminal there is nothing to restore, and `nohup` may have set SIGHUP to be ignored.
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
            let hangup = if is_terminal { Some(Hangup::listen()?) } else { None };
            let (interrupt, terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
            Ok(Self { interrupt, terminate, hangup, reloads: false })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// The same for commands where SIGHUP reloads a file ([`Hangup::reload`]).
    pub(crate) fn listen_reloading() -> Result<Self> {
        #[cfg(unix)]
        return Ok(Self { hangup: Some(Hangup::listen()?), reloads: true, ..Self::listen()? });
        #[cfg(not(unix))]
        Self::listen()
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hung_up(self.hangup.as_mut(), self.reloads) => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(unix)]
fn of(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot handle signals")
}

#[cfg(unix)]
async fn hung_up(hangup: Option<&mut Hangup>, reloads: bool) {
    let Some(hangup) = hangup else { return std::future::pending().await };
    loop {
        hangup.signal.recv().await;
        if !reloads || hangup.is_terminal_gone() {
            return;
        }
    }
}

/// SIGHUP, which means one of two things: the terminal was closed, or a file is to be reloaded.
pub(crate) struct Hangup {
    #[cfg(unix)]
    signal: Signal,
    /// Which of the standard streams were a terminal.
    #[cfg(unix)]
    terminals: [bool; 3],
}

impl Hangup {
    /// Listens for the signal from now on. Must be called in a runtime.
    pub(crate) fn listen() -> Result<Self> {
        #[cfg(unix)]
        return Ok(Self { signal: of(SignalKind::hangup())?, terminals: terminals() });
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for a request to reload files. Cancel-safe.
    pub(crate) async fn reload(&mut self) {
        #[cfg(unix)]
        loop {
            self.signal.recv().await;
            if !self.is_terminal_gone() {
                return;
            }
        }
        #[cfg(not(unix))]
        std::future::pending().await
    }

    /// The system disconnects a closed terminal before it sends the signal.
    #[cfg(unix)]
    fn is_terminal_gone(&self) -> bool {
        self.terminals.iter().zip(terminals()).any(|(was, is)| *was && !is)
    }
}

#[cfg(unix)]
fn terminals() -> [bool; 3] {
    use std::io::IsTerminal;
    [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()]
}
