//! Ctrl-C and SIGTERM, and SIGHUP for whoever has something to read anew.

use anyhow::{Context, Result};

/// The wish of the user or the system that the program ends.
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals from now on. Must be called in a runtime.
    pub(crate) fn take() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let take = |kind| signal(kind).context("signals cannot be taken");
            Ok(Self { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// The wish that files are read anew. Only who has some takes it: otherwise SIGHUP ends the program, as it should when its
/// terminal is closed.
#[cfg(feature = "server")]
pub(crate) struct Hangups {
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
}

#[cfg(feature = "server")]
impl Hangups {
    /// Takes the signal from now on. Must be called in a runtime.
    pub(crate) fn take() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { hangup: signal(SignalKind::hangup()).context("SIGHUP cannot be taken")? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        let _ = self.hangup.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}
