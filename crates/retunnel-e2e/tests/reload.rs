//! Scenarios: `retunnel start` while its file changes.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{fs, net::SocketAddr, path::PathBuf};

use retunnel_e2e::{
    process::{Running, Server, User},
    service::{self, pattern},
    visitor::{self, Visitor},
};
use serde_json::{Value, json};

/// A running `retunnel --json-events start` and its file.
struct Started {
    file: PathBuf,
    client: Running,
    first: Value,
}

impl Started {
    async fn with(user: &User, text: &str) -> Self {
        let file = user.home().join("retunnel.yml");
        fs::write(&file, text).unwrap();
        let mut client = Running::start(user.command(&["--json-events", "start"])).await;
        let first = serde_json::from_str(&client.line().await).unwrap();
        Self { file, client, first }
    }

    /// Saves as editors do: in another file, which is renamed.
    fn save(&self, text: &str) {
        let other = self.file.with_extension("new");
        fs::write(&other, text).unwrap();
        fs::rename(&other, &self.file).unwrap();
    }

    /// Reads events up to one of this kind.
    async fn event(&mut self, kind: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.client.line().await).unwrap();
            if event["event"] == kind {
                return event;
            }
        }
    }
}

/// Begins a download and reads its first part.
async fn download(server: SocketAddr, host: &str, bytes: usize) -> (Visitor, Vec<u8>) {
    let mut visitor = Visitor::connect(server).await;
    visitor.send(format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert!(visitor.head().await.unwrap().starts_with("HTTP/1.1 200 "));
    let begun = visitor.take(100_000).await;
    (visitor, begun)
}

/// Reads the rest and checks every byte.
async fn finish((mut visitor, mut begun): (Visitor, Vec<u8>), bytes: usize) {
    begun.extend(visitor.take(bytes - begun.len()).await);
    let piece = pattern(64 * 1024);
    for (place, part) in begun.chunks(piece.len()).enumerate() {
        assert!(part == &piece[..part.len()], "piece {place}");
    }
}

#[tokio::test]
async fn a_changed_file_changes_only_what_it_changes() {
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let port = app.port();
    let head = format!("server_addr: {}\ntunnels:\n", server.address);
    let same = format!("- {{name: same, protocol: http, local_port: {port}, subdomain: same}}\n");
    let gone = format!("- {{name: gone, protocol: http, local_port: {port}, subdomain: gone}}\n");
    let random = format!("- {{name: random, protocol: http, local_port: {port}}}\n");
    let mut started = Started::with(&user, &format!("{head}{same}{gone}{random}")).await;
    let url = started.first["tunnels"][2]["url"].as_str().unwrap().to_owned();
    let random_host = server.host(started.first["tunnels"][2]["subdomain"].as_str().unwrap());
    let (same_host, gone_host) = (server.host("same"), server.host("gone"));

    // More than all buffers in between hold, so that both are in progress while the file changes.
    const LONG: usize = 96 * 1024 * 1024;
    let through_same = download(server.address, &same_host, LONG).await;
    let through_gone = download(server.address, &gone_host, LONG).await;

    let fresh = format!("- {{name: fresh, protocol: http, local_port: {port}, subdomain: fresh}}\n");
    let locked = random.replace("}", ", auth: 'ann:secret'}");
    started.save(&format!("{head}{same}{locked}{fresh}"));
    let reloaded = started.event("config_reloaded").await;
    assert_eq!(reloaded["unchanged"], json!(["same"]));
    assert_eq!(reloaded["closed"], json!(["gone"]));
    assert_eq!(reloaded["reopened"], json!(["random"]));
    assert_eq!(reloaded["opened"], json!(["fresh"]));
    assert_eq!(reloaded["restart_needed"], json!([]));
    let mut opened = [started.event("tunnel_opened").await, started.event("tunnel_opened").await];
    opened.sort_by_key(|event| event["tunnel"].as_str().unwrap().to_owned());
    assert_eq!((&opened[0]["tunnel"], &opened[1]["tunnel"]), (&json!("fresh"), &json!("random")));
    assert_eq!(opened[1]["url"], url, "a random address stays");

    assert_eq!(visitor::get(server.address, &server.host("fresh"), "/status/204").await.status, 204);
    assert_eq!(visitor::get(server.address, &random_host, "/").await.status, 401);
    assert_eq!(visitor::get(server.address, &gone_host, "/").await.status, 404);
    finish(through_same, LONG).await;
    finish(through_gone, LONG).await;
    assert_eq!(visitor::get(server.address, &same_host, "/status/204").await.status, 204);

    // Back again, and a setting that cannot change.
    started.save(&format!("auth_token: rt_another\n{head}{same}{gone}"));
    let reloaded = started.event("config_reloaded").await;
    assert_eq!(reloaded["restart_needed"], json!(["auth_token"]));
    assert_eq!(started.event("tunnel_opened").await["tunnel"], "gone");
    assert_eq!(visitor::get(server.address, &gone_host, "/status/204").await.status, 204);
    assert_eq!(visitor::get(server.address, &random_host, "/").await.status, 404);
}

#[tokio::test]
async fn a_file_with_mistakes_changes_nothing() {
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let good = format!(
        "server_addr: {}\ntunnels:\n- {{name: web, protocol: http, local_port: {}, subdomain: web}}\n",
        server.address,
        app.port()
    );
    let mut started = Started::with(&user, &good).await;
    let host = server.host("web");
    for (bad, line, column, part) in [
        (good.replace("local_port", "local_prot"), 3, 31, "did you mean `local_port`?"),
        (format!("{good}- ["), 4, 3, "not valid YAML"),
        (String::new(), 0, 0, "no tunnels"),
    ] {
        started.save(&bad);
        let invalid = started.event("config_invalid").await;
        assert!(invalid["file"].as_str().unwrap().ends_with("retunnel.yml"), "{invalid}");
        let mistakes = invalid["mistakes"].as_array().unwrap();
        let told = mistakes.iter().find(|mistake| mistake["message"].as_str().unwrap().contains(part));
        let told = told.unwrap_or_else(|| panic!("{part} in {invalid}"));
        assert_eq!((&told["line"], &told["column"]), (&json!(line), &json!(column)), "{invalid}");
        assert_eq!(visitor::get(server.address, &host, "/status/204").await.status, 204);
    }
    fs::remove_file(&started.file).unwrap();
    let invalid = started.event("config_invalid").await;
    assert!(invalid["mistakes"][0]["message"].as_str().unwrap().contains("cannot be read"), "{invalid}");
    started.save(&good);
    assert_eq!(started.event("config_reloaded").await["unchanged"], json!(["web"]));
    assert_eq!(visitor::get(server.address, &host, "/status/204").await.status, 204);
}

#[tokio::test]
async fn a_hangup_ends_a_command_without_a_file() {
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let address = server.address.to_string();
    let mut client = Running::start(user.command_that_hangs_up(&["http", &app.port(), "--server", &address])).await;
    assert!(client.line().await.starts_with("http://"));
    client.signal("HUP").await;
    assert_eq!(client.exit().await, None, "the signal ended it, as usual");
}

#[tokio::test]
async fn hangups_read_the_file_again() {
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let tunnel =
        |name: &str, port: &str| format!("- {{name: {name}, protocol: http, local_port: {port}, subdomain: {name}}}\n");
    let good = format!("server_addr: {}\ntunnels:\n{}", server.address, tunnel("web", &app.port()));
    let mut started = Started::with(&user, &good).await;
    started.client.signal("HUP").await;
    assert_eq!(started.event("config_reloaded").await["unchanged"], json!(["web"]), "asked, though nothing changed");

    // A tunnel that the server refused is requested again.
    let other = User::default();
    let mut rival = other.tunnel(server.address, &["http", &app.port(), "--subdomain", "wanted"]).await;
    started.save(&format!("{good}{}", tunnel("wanted", &app.port())));
    let failed = started.event("tunnel_failed").await;
    assert_eq!((&failed["tunnel"], &failed["code"]), (&json!("wanted"), &json!("name_unavailable")));
    rival.process.signal("TERM").await;
    assert_eq!(rival.process.exit().await, Some(0));
    started.client.signal("HUP").await;
    assert_eq!(started.event("config_reloaded").await["opened"], json!(["wanted"]));
    assert_eq!(started.event("tunnel_opened").await["tunnel"], "wanted");
    started.client.signal("TERM").await;
    assert_eq!(started.client.exit().await, Some(0));
}

#[tokio::test]
async fn rules_of_any_type_reach_the_server_which_refuses_unknown_ones_by_name() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let file = |rule: &str| {
        let tunnel = format!("name: app, protocol: http, subdomain: app, local_port: {}", app.port());
        format!("server_addr: {}\ntunnels:\n- {{{tunnel}, rules: [{rule}]}}\n", server.address)
    };
    fs::write(user.home().join("retunnel.yml"), file("{type: teleport, config: {to: moon}}")).unwrap();
    let (code, ..) = user.run(&["config", "--check"]).await;
    assert_eq!(code, 0, "what a server knows is its own matter");
    for (dialect, reason) in [
        ("native", "this server has no rule `teleport`; it has: "),
        ("3", "the server speaks dialect 3, which cannot carry the rule `teleport`"),
        ("2", "the server speaks dialect 2, which cannot carry the rule `teleport`"),
    ] {
        let (code, _, stderr) = user.run(&["start", "--dialect", dialect]).await;
        assert_eq!(code, 69, "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
    }

    let text = file("{type: basic-auth, config: {credentials: 'me:secret'}}");
    for dialect in ["native", "3", "2"] {
        let home = user.home().join("retunnel.yml");
        fs::write(&home, format!("dialect: {dialect}\n{text}")).unwrap();
        let mut client = Running::start(user.command(&["--json-events", "start"])).await;
        let first: Value = serde_json::from_str(&client.line().await).unwrap();
        assert_eq!(first["tunnels"][0]["name"], "app", "{first}");
        assert_eq!(visitor::get(server.address, &server.host("app"), "/echo").await.status, 401, "{dialect}");
        client.kill().await;
    }
}
