//! The published Python clients 3.x: one that runs, and its visitor and local service, which are Python programs too.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::{
    TIMEOUT,
    apps::{App, Use, apps, environments},
    process::{Running, isolated},
};

/// The version whose environment runs the visitor and the local service.
const NEWEST: &str = "3.3.2";

fn bin(version: &str) -> PathBuf {
    let bin = environments().join(version).join("bin");
    assert!(bin.join("python").exists(), "client {version} is not installed; run `make install-dev`");
    bin
}

/// The local service; `port` 0 takes any.
pub async fn service(port: u16) -> App {
    let mut command = Command::new(bin(NEWEST).join("python"));
    command.arg(apps().join("service_3.py")).arg(port.to_string());
    App::start(command).await
}

/// Runs the visitor's checks against a tunnel to [`service`]. `wire` is the version in force.
///
/// # Panics
/// When one of them fails.
pub async fn visit(server: SocketAddr, host: &str, wire: u8) {
    let mut command = Command::new(bin(NEWEST).join("python"));
    command.arg(apps().join("visitor_3.py")).args([&server.port().to_string(), host, &wire.to_string()]);
    command.kill_on_drop(true);
    let output = timeout(8 * TIMEOUT, command.output()).await.expect("an end in time").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A user of a published client.
#[derive(Debug)]
pub struct PythonUser {
    version: &'static str,
    server: String,
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl PythonUser {
    /// A user without an account.
    ///
    /// # Panics
    /// When the client is not installed.
    #[must_use]
    pub fn new(version: &'static str, server: SocketAddr) -> Self {
        Self::at(version, format!("ws://{server}"))
    }

    /// A user of the server at this URL.
    #[must_use]
    pub fn at(version: &'static str, server: String) -> Self {
        Self { version, server, home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    /// With a variable of the environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn isolated(&self, mut command: Command) -> Command {
        isolated(&mut command, self.home.path());
        command.env("PYTHONUNBUFFERED", "1").env("COLUMNS", "200").env("NO_COLOR", "1");
        command.envs(self.variables.iter().cloned());
        command
    }

    /// The home directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The command line with these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bin(self.version).join("retunnel"));
        command.args(args);
        self.isolated(command)
    }

    /// Runs the command line to its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn run(&self, args: &[&str]) -> Output {
        timeout(TIMEOUT, self.command(args).output()).await.expect("an end in time").unwrap()
    }

    /// Arguments that name the server.
    #[must_use]
    pub fn to_server(&self) -> [String; 2] {
        ["--server".into(), self.server.clone()]
    }

    /// Opens tunnels; each is described as the library's `TunnelConfig`. The command line opens one.
    ///
    /// # Panics
    /// When nothing is opened.
    pub async fn open(&self, how: Use, tunnels: &[Value]) -> PythonTunnels {
        let command = match how {
            Use::Library => {
                let mut command = Command::new(bin(self.version).join("python"));
                command.arg(apps().join("library_client_3.py"));
                command.args([&self.server, "", &json!(tunnels).to_string()]);
                self.isolated(command)
            }
            Use::Command => {
                let tunnel = &tunnels[0];
                let text = |name: &str| tunnel[name].as_str().map(str::to_owned);
                let port = tunnel["local_port"].to_string();
                let mut command = self.command(&["--json", tunnel["protocol"].as_str().unwrap(), &port]);
                command.args(self.to_server());
                for (name, option) in [("subdomain", "--subdomain"), ("auth", "--auth"), ("hostname", "--hostname")] {
                    if let Some(value) = text(name) {
                        command.args([option, &value]);
                    }
                }
                if tunnel["spa"] == true {
                    command.arg("--spa");
                }
                if let Some(port) = tunnel["remote_port"].as_u64() {
                    command.args(["--remote-port", &port.to_string()]);
                }
                command
            }
        };
        let mut process = Running::start(command).await;
        let mut opened = Vec::new();
        for _ in tunnels {
            opened.push(serde_json::from_str(&process.line().await).unwrap());
        }
        PythonTunnels { process, opened }
    }
}

/// A running client with its tunnels.
#[derive(Debug)]
pub struct PythonTunnels {
    /// The process.
    pub process: Running,
    /// What it printed of each tunnel.
    pub opened: Vec<Value>,
}

impl PythonTunnels {
    /// Host and port of a tunnel.
    ///
    /// # Panics
    /// When it is no HTTP tunnel.
    #[must_use]
    pub fn host(&self, index: usize) -> &str {
        self.opened[index]["url"].as_str().unwrap().strip_prefix("http://").expect("an HTTP tunnel")
    }

    /// Public port of a TCP tunnel.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn port(&self) -> u16 {
        let url = self.opened[0]["url"].as_str().unwrap();
        url.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')).expect("a TCP tunnel").1.parse().unwrap()
    }
}
