//! Programs in other languages: local services in Python and Node, and the published Python clients.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    TIMEOUT,
    process::{Running, isolated, program},
};

/// Folder of the programs.
pub(crate) fn apps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps")
}

/// A local service in another language.
#[derive(Debug)]
pub struct App {
    /// The process.
    pub process: Running,
    /// Where it listens.
    pub address: SocketAddr,
}

impl App {
    pub(crate) async fn start(mut command: Command) -> Self {
        command.kill_on_drop(true);
        let mut process = Running::start(command).await;
        let port: u16 = process.line().await.parse().unwrap();
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Its port as text, for command lines.
    #[must_use]
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// Python's `http.server`; `port` 0 takes any.
    pub async fn python(port: u16) -> Self {
        let mut command = Command::new(std::env::var("PYTHON").unwrap_or_else(|_| "python3".into()));
        command.arg(apps().join("app.py")).arg(port.to_string());
        Self::start(command).await
    }

    /// A DNS server over UDP; `zone` is its JSON file.
    pub async fn dns(zone: &Path) -> Self {
        let mut command = Command::new(std::env::var("PYTHON").unwrap_or_else(|_| "python3".into()));
        command.arg(apps().join("dns.py")).arg(zone);
        Self::start(command).await
    }

    /// Node's `http`.
    pub async fn node() -> Self {
        let mut command = Command::new(node());
        command.arg(apps().join("app.mjs"));
        Self::start(command).await
    }
}

/// A Django project of its generator's settings.
pub async fn django() -> App {
    let mut command = Command::new(environments().join("django/bin/python"));
    command.arg(apps().join("django_app.py")).stderr(std::process::Stdio::null());
    App::start(command).await
}

/// Where the test command prepared its environments.
pub(crate) fn environments() -> PathBuf {
    match std::env::var_os("RETUNNEL_TEST_VENVS") {
        Some(path) => path.into(),
        None => program().parent().and_then(Path::parent).unwrap().join("python"),
    }
}

/// The system's Node, or the one the test command installed.
fn node() -> PathBuf {
    let installed = environments().join("node/bin/node");
    if installed.exists() { installed } else { "node".into() }
}

/// Runs a script with Node in which Chromium uses the pages of a program, and fails with what it printed.
///
/// # Panics
/// When the script fails or what it needs is not installed.
pub async fn browse(script: &str, variables: &[(&str, &str)]) {
    let modules = environments().join("../web/node_modules");
    assert!(modules.join("playwright-core").exists(), "playwright-core is not installed; run `make install-dev`");
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(node());
    command.arg(apps().join(script)).env("MODULES", modules).env("PROFILE", profile.path()).kill_on_drop(true);
    command.envs(variables.iter().copied());
    let output = tokio::time::timeout(TIMEOUT * 4, command.output()).await.expect("an end in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}:\n{}{}", text(&output.stdout), text(&output.stderr));
}

/// How a published client is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A script that calls the library.
    Library,
    /// The command line.
    Command,
}

/// A published Python client with one open tunnel.
#[derive(Debug)]
pub struct PythonClient {
    /// The process.
    pub process: Running,
    /// The URL it was given.
    pub url: String,
    _home: TempDir,
}

impl PythonClient {
    /// Opens a tunnel to a local port; an empty text leaves its option out.
    ///
    /// # Panics
    /// If the client is not installed or opens no tunnel.
    pub async fn start(version: &str, how: Use, server: SocketAddr, port: &str, subdomain: &str, auth: &str) -> Self {
        let bin = environments().join(version).join("bin");
        assert!(bin.join("python").exists(), "client {version} is not installed; run `make install-dev`");
        let home = tempfile::tempdir().unwrap();
        // Only this spelling makes the clients register with this server.
        let server = format!("localhost:{}", server.port());
        let mut command = match how {
            Use::Library => {
                let mut command = Command::new(bin.join("python"));
                command.arg(apps().join("library_client.py")).args([&server, port, subdomain, auth]);
                command
            }
            Use::Command => {
                let mut command = Command::new(bin.join("retunnel"));
                command.args(["http", port, "--server", &server]);
                if !subdomain.is_empty() {
                    command.args(["--subdomain", subdomain]);
                }
                if !auth.is_empty() {
                    command.args(["--auth", auth]);
                }
                command
            }
        };
        isolated(&mut command, home.path());
        // Wide enough that no URL is wrapped.
        command.env("PYTHONUNBUFFERED", "1").env("COLUMNS", "200").env("NO_COLOR", "1");
        let mut process = Running::start(command).await;
        let url = loop {
            let line = process.line().await;
            if let Some(start) = line.find("http://") {
                let end = |c: char| c.is_whitespace() || matches!(c, '"' | '│' | '\u{1b}');
                break line[start..].split(end).next().unwrap_or_default().to_owned();
            }
        };
        Self { process, url, _home: home }
    }

    /// Host and port of the tunnel.
    #[must_use]
    pub fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap_or(&self.url)
    }
}
