//! The program as processes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::TIMEOUT;

/// The built program, beside the running test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let program = target.join(format!("retunnel{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "{} is missing; build it with `cargo build -p retunnel`", program.display());
    program
}

/// A home directory, and nothing of the caller's environment that could affect a test.
pub fn isolated(command: &mut Command, home: &Path) {
    command.env("HOME", home).current_dir(home).kill_on_drop(true).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RETUNNEL_") {
            command.env_remove(name);
        }
    }
    // Tests that run at the same time search for free ports in different ranges.
    command.env("RETUNNEL_INSPECT_ADDR", "127.0.0.1:0");
}

/// A process whose first line of output was awaited.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts a command.
    pub async fn start(mut command: Command) -> Self {
        // A failing test shows the program's stderr.
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line of output.
    ///
    /// # Panics
    /// If the program ends or prints nothing.
    pub async fn line(&mut self) -> String {
        timeout(TIMEOUT, self.lines.next_line()).await.expect("a line in time").unwrap().expect("a line, not the end")
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id().expect("running")
    }

    /// Sends a signal by its name, for example `TERM`.
    pub async fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status().await.unwrap();
        assert!(status.success());
    }

    /// Asks the process to end; one that has ended already is fine.
    pub(crate) fn end(&self) {
        if let Some(id) = self.child.id() {
            let _ = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
        }
    }

    /// Waits for the end and gives the exit code; `None` when a signal ended it.
    pub async fn exit(&mut self) -> Option<i32> {
        timeout(TIMEOUT, self.child.wait()).await.expect("an end in time").unwrap().code()
    }

    /// Kills the process.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Resident memory in bytes (Linux).
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Highest resident memory so far, in bytes (Linux).
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak size");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// CPU time used so far, in hundredths of a second (Linux).
    #[must_use]
    pub fn processor_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap();
        behind_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// Open file descriptors (Linux).
    #[must_use]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }
}

/// Reads lines up to the one with this text.
///
/// # Panics
/// If the text does not appear.
pub async fn read_until(lines: &mut (impl tokio::io::AsyncBufRead + Unpin), text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let count =
            timeout(TIMEOUT, lines.read_line(&mut seen)).await.unwrap_or_else(|_| panic!("`{text}` in: {seen}"));
        assert!(count.unwrap() > 0, "expected `{text}` in: {seen}");
    }
    seen
}

impl Drop for Running {
    /// Kills the process, or lets it exit if its coverage counts are needed.
    fn drop(&mut self) {
        let (Some(id), Some(_)) = (self.child.id(), std::env::var_os("RETUNNEL_TEST_GENTLE")) else { return };
        let _ = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "drop cannot wait otherwise")]
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A server with its own data.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Running,
    /// Where it listens.
    pub address: SocketAddr,
    data: TempDir,
    options: Vec<String>,
}

/// Base domain of every test server.
pub const DOMAIN: &str = "tunnel.test";

impl Server {
    /// Starts a server with more options.
    pub async fn start(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Self::start_in(tempfile::tempdir().unwrap(), "127.0.0.1:0", options).await
    }

    /// Starts a server with this limit of file descriptors, and the limits of a YAML text.
    pub async fn start_with(descriptors: usize, config: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("server.yml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]).arg(program());
        let options = vec!["--config".to_owned(), file.to_str().unwrap().to_owned()];
        Self::start_as(command, data, "127.0.0.1:0", options).await
    }

    async fn start_in(data: TempDir, listen: &str, options: Vec<String>) -> Self {
        Self::start_as(Command::new(program()), data, listen, options).await
    }

    async fn start_as(mut command: Command, data: TempDir, listen: &str, options: Vec<String>) -> Self {
        isolated(&mut command, data.path());
        command.args(["--log-level", "warn", "server", "--listen", listen, "--quiet"]);
        if !options.iter().any(|option| option == "--domain") {
            command.args(["--domain", DOMAIN]);
        }
        command.arg("--data-dir").arg(data.path().join("data")).args(&options);
        let mut process = Running::start(command).await;
        let line = process.line().await;
        let (_, address) = line.split_once("://").expect(&line);
        let address = address.parse().unwrap();
        Self { process, address, data, options }
    }

    /// Where its data is.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// Kills the server and starts it again on the same address and data, as the server of another domain.
    pub async fn restart_for(self, domain: &str) -> Self {
        let (data, mut options, listen) = (self.data, self.options, self.address.to_string());
        self.process.kill().await;
        options.extend(["--domain".to_owned(), domain.to_owned()]);
        Self::start_in(data, &listen, options).await
    }

    /// Kills the server and starts it again on the same address and data.
    pub async fn restart(self) -> Self {
        let (data, options, listen) = (self.data, self.options, self.address.to_string());
        self.process.kill().await;
        Self::start_in(data, &listen, options).await
    }

    /// Kills the server; what is needed to start it again is kept.
    pub async fn stop(self) -> Stopped {
        self.process.kill().await;
        Stopped { data: self.data, options: self.options, listen: self.address.to_string() }
    }

    /// Runs a command on the server's data, for example `server invite`, and gives its output.
    ///
    /// # Panics
    /// If it fails.
    pub async fn run(&self, args: &[&str]) -> String {
        let mut command = Command::new(program());
        isolated(&mut command, self.data.path());
        command.args(args).arg("--data-dir").arg(self.data.path().join("data"));
        let output = timeout(TIMEOUT, command.output()).await.expect("an end in time").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Public host name of a tunnel.
    #[must_use]
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{DOMAIN}")
    }
}

/// A server that is not running.
#[derive(Debug)]
pub struct Stopped {
    data: TempDir,
    options: Vec<String>,
    listen: String,
}

impl Stopped {
    /// Starts it again on the same address and data.
    pub async fn start(self) -> Server {
        Server::start_in(self.data, &self.listen, self.options).await
    }
}

/// A home directory: one user, and so one account per server.
#[derive(Debug)]
pub struct User {
    home: TempDir,
}

impl Default for User {
    fn default() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }
}

impl User {
    /// The home directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The program as this user would call it.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(&program(), args)
    }

    /// The same, with SIGHUP's default action: the test runner may ignore the signal (`nohup`), and children inherit
    /// that.
    #[must_use]
    pub fn command_that_hangs_up(&self, args: &[&str]) -> Command {
        let program = program();
        let own = ["--default-signal=HUP", program.to_str().expect("a path in UTF-8")];
        self.command_of(Path::new("env"), &[&own, args].concat())
    }

    fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        isolated(&mut command, self.home());
        command.args(args);
        command
    }

    /// Runs the program to its end: exit code, stdout, stderr.
    pub async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = timeout(TIMEOUT, self.command(args).output()).await.expect("an end in time").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Opens a tunnel: `http` or `tcp` with more arguments.
    pub async fn tunnel(&self, server: SocketAddr, args: &[&str]) -> Tunnel {
        self.tunnel_at(&server.to_string(), args).await
    }

    /// The same with another address of the server, for example `https://localhost:6400`.
    pub async fn tunnel_at(&self, server: &str, args: &[&str]) -> Tunnel {
        self.open(&program(), server, args).await
    }

    /// The same with another build of the program, to compare.
    pub async fn tunnel_of(&self, program: &Path, server: SocketAddr, args: &[&str]) -> Tunnel {
        self.open(program, &server.to_string(), args).await
    }

    /// The same with a limit of file descriptors and all events as lines.
    pub async fn tunnel_with(&self, descriptors: usize, server: SocketAddr, args: &[&str]) -> Tunnel {
        let program = program();
        let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let own = ["-c", &limited, program.to_str().expect("a path in UTF-8"), "--json-events"];
        let mut command = self.command_of(Path::new("sh"), &own);
        command.args(args).args(["--server", &server.to_string()]);
        Self::opened(command).await
    }

    async fn open(&self, program: &Path, server: &str, args: &[&str]) -> Tunnel {
        let mut command = self.command_of(program, &["--json", "--log-level", "warn"]);
        command.args(args).args(["--server", server]);
        Self::opened(command).await
    }

    async fn opened(command: Command) -> Tunnel {
        let mut process = Running::start(command).await;
        let info: Value = serde_json::from_str(&process.line().await).unwrap();
        Tunnel { process, info }
    }
}

/// A client process with one open tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The process.
    pub process: Running,
    /// The line of JSON it printed.
    pub info: Value,
}

impl Tunnel {
    /// Name below the server's domain.
    #[must_use]
    pub fn name(&self) -> &str {
        self.info["subdomain"].as_str().expect("an HTTP tunnel")
    }

    /// Where the inspector listens.
    #[must_use]
    pub fn inspector(&self) -> SocketAddr {
        let url = self.info["inspector"].as_str().expect("an inspector");
        url.strip_prefix("http://").expect("a URL").parse().unwrap()
    }

    /// Public port of a TCP tunnel.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.info["remote_port"].as_u64().and_then(|port| port.try_into().ok()).expect("a TCP tunnel")
    }
}

/// A range of ports for a test server to lease. Ranges of tests that run at the same time rarely overlap, and a port
/// that is taken is skipped by the server.
#[must_use]
pub fn port_range() -> String {
    let first = 20_000 + u16::try_from(std::process::id() % 400).unwrap() * 25;
    format!("{first}-{}", first + 399)
}
