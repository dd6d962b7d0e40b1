//! Servers that support only a published dialect, as strict scripts (`apps/strict_server_2.py`, `apps/strict_server_3.py`).

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    apps::{apps, environments},
    process::{DOMAIN, Running},
};

/// A strict server. It exits with code 3 as soon as a client violates the protocol.
#[derive(Debug)]
pub struct Foreign {
    process: Running,
    /// Where it listens.
    pub address: SocketAddr,
    state: TempDir,
    dialect: &'static str,
    options: Vec<String>,
}

impl Foreign {
    /// Starts a server that knows dialect `2` or `3`.
    pub async fn start(dialect: &'static str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self::start_in(tempfile::tempdir().unwrap(), 0, dialect, options).await
    }

    async fn start_in(state: TempDir, port: u16, dialect: &'static str, options: Vec<String>) -> Self {
        // This environment has a WebSocket server and MessagePack; the client in it is not used.
        let python = environments().join("2.5.3/bin/python");
        assert!(python.exists(), "the strict servers need the client 2.5.3; run `make install-dev`");
        let mut command = Command::new(python);
        command.kill_on_drop(true);
        command.arg(apps().join(format!("strict_server_{dialect}.py"))).arg("--port").arg(port.to_string());
        command.arg("--state").arg(state.path().join("state.json")).args(&options);
        let mut process = Running::start(command).await;
        let port: u16 = process.line().await.parse().unwrap();
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), state, dialect, options }
    }

    /// Kills the server and starts it again on the same address, with the same accounts and names.
    pub async fn restart(self) -> Self {
        let Self { process, address, state, dialect, options } = self;
        process.kill().await;
        Self::start_in(state, address.port(), dialect, options).await
    }

    /// The reason of the next stream that the client resets.
    pub async fn reset(&mut self) -> String {
        let line = self.process.line().await;
        line.strip_prefix("reset: ").expect(&line).to_owned()
    }

    /// Public host name of a tunnel.
    #[must_use]
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{DOMAIN}")
    }

    /// Ends the server.
    ///
    /// # Panics
    /// If a client violated the protocol.
    pub async fn finish(mut self) {
        self.process.end();
        assert_eq!(self.process.exit().await, Some(0), "the client broke the protocol; see above");
    }
}
