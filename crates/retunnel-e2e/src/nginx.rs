//! nginx in front of a server, configured by `docs/examples/nginx.conf`.

use std::{net::SocketAddr, path::Path, process::Stdio};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{authority::Authority, eventually};

const EXAMPLE: &str = include_str!("../../../docs/examples/nginx.conf");

/// Which upgrades nginx passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrades {
    /// Any, as in the example.
    Any,
    /// WebSockets only, a common configuration.
    WebSocket,
}

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    /// Where it listens.
    pub address: SocketAddr,
    files: TempDir,
    process: Child,
}

impl Nginx {
    /// Starts it in front of `server`, with a certificate of `authority`.
    ///
    /// # Panics
    /// When nginx is not installed, or does not start.
    pub async fn start(upgrades: Upgrades, server: SocketAddr, authority: &Authority) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (cert, key) = authority.issue_files(&["localhost", "tunnel.test", "*.tunnel.test"]);
        // The port is unlikely to be taken in the meantime; if it is, the test says so.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut site = EXAMPLE
            .replace("listen 443 ssl", &format!("listen {address} ssl"))
            .replace("127.0.0.1:6400", &server.to_string())
            .replace("/etc/letsencrypt/live/tunnel.example.com/fullchain.pem", &cert)
            .replace("/etc/letsencrypt/live/tunnel.example.com/privkey.pem", &key)
            .replace("tunnel.example.com", "tunnel.test");
        if upgrades == Upgrades::WebSocket {
            site = site
                .replace("proxy_set_header Upgrade $http_upgrade;", "proxy_set_header Upgrade $only_websocket;")
                .replace("map $http_upgrade $retunnel_connection", "map $only_websocket $retunnel_connection");
            site.insert_str(0, "map $http_upgrade $only_websocket { websocket websocket; default \"\"; }\n");
        }
        let dir = files.path().display();
        let own = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log stderr error;\n\
             events {{ worker_connections 1000; }}\n\
             http {{\n\
             log_format asked '$uri $http_upgrade $status'; access_log {dir}/access.log asked;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
             uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             {site}\n}}\n"
        );
        let path = files.path().join("nginx.conf");
        std::fs::write(&path, own).unwrap();
        let mut command = Command::new(program());
        command.arg("-c").arg(&path).arg("-p").arg(files.path()).kill_on_drop(true).stdin(Stdio::null());
        let mut process = command.spawn().expect("nginx is not installed; run `make install-dev`");
        eventually("nginx listens", || {
            assert!(matches!(process.try_wait(), Ok(None)), "nginx does not start");
            async { TcpStream::connect(address).await.ok().map(drop) }
        })
        .await;
        Self { address, files, process }
    }

    /// The requests that have ended so far: path, upgrade and status.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.files.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    /// Asks the main process to end, which also ends its workers.
    fn drop(&mut self) {
        if let Some(id) = self.process.id() {
            let _ = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
        }
    }
}

/// Debian installs it in a directory that only administrators have in their PATH.
fn program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" }
}
