//! Scenarios: `retunnel diagnose` with a connection that is broken in one place each.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{net::SocketAddr, time::Duration};

use retunnel_e2e::{
    authority::Authority,
    foreign::Foreign,
    gateway::{Gateway, Kind, TlsFront},
    process::{Server, User},
    service,
    web_front::{Habits, WebFront},
};
use serde_json::Value;
use tokio::{net::TcpListener, time::Instant};

/// Every step, in the order of the report.
const STEPS: [&str; 9] = ["configuration", "proxy", "dns", "tcp", "tls", "api", "upgrade", "clock", "token"];

/// A report and its exit code.
struct Report {
    code: Option<i32>,
    json: Value,
}

impl Report {
    fn check(&self, step: &str) -> &Value {
        let checks = self.json["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == step).unwrap_or_else(|| panic!("no {step} in {}", self.json))
    }

    /// This step failed, those before it did not, and those after it, which depend on it, were not checked.
    #[track_caller]
    fn fails_at(&self, step: &str, code: &str) -> &Value {
        assert_eq!(self.code, Some(69), "{}", self.json);
        assert_eq!(self.json["ok"], false);
        let at = STEPS.iter().position(|known| *known == step).unwrap();
        for (index, known) in STEPS.into_iter().enumerate() {
            let check = self.check(known);
            match index.cmp(&at) {
                std::cmp::Ordering::Less => assert!(check["status"] != "failed", "{check}"),
                std::cmp::Ordering::Equal => {
                    assert_eq!((&check["status"], &check["code"]), (&"failed".into(), &code.into()), "{check}");
                    assert!(check["next"].as_str().is_some_and(|next| !next.is_empty()), "{check}");
                }
                std::cmp::Ordering::Greater => assert_eq!(check["status"], "not_checked", "{check}"),
            }
        }
        self.check(step)
    }

    #[track_caller]
    fn warns_at(&self, step: &str, code: &str) -> &Value {
        assert_eq!(self.code, Some(0), "{}", self.json);
        assert_eq!(self.json["ok"], true);
        let check = self.check(step);
        assert_eq!((&check["status"], &check["code"]), (&"warning".into(), &code.into()), "{check}");
        check
    }
}

async fn diagnose_with(user: &User, args: &[&str], variables: &[(&str, &str)]) -> Report {
    let mut command = user.command(&[&["--json", "diagnose"], args].concat());
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.envs(variables.iter().copied());
    let began = Instant::now();
    let output = command.output().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(30), "a bounded time");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    Report { code: output.status.code(), json: serde_json::from_str(&stdout).unwrap() }
}

async fn diagnose(user: &User, args: &[&str]) -> Report {
    diagnose_with(user, args, &[]).await
}

fn found(check: &Value) -> &str {
    check["found"].as_str().unwrap()
}

async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn all_is_well_and_nothing_was_changed() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let address = server.address.to_string();
    let report = diagnose(&user, &["--server", &address, &app.port()]).await;
    assert_eq!(report.code, Some(0), "{}", report.json);
    assert_eq!(report.json["ok"], true);
    let checks = report.json["checks"].as_array().unwrap();
    let steps: Vec<_> = checks.iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(steps, [&STEPS[..], &["local"]].concat());
    assert!(checks.iter().all(|check| check["status"] == "ok"), "{}", report.json);
    assert!(found(report.check("configuration")).contains("--server"));
    assert!(found(report.check("token")).contains("creates an account"));
    assert!(!user.home().join(".retunnel.conf").exists(), "no account was made");

    // The same with the token of an account, as text.
    let tunnel = user.tunnel(server.address, &["http", &app.port()]).await;
    let (code, text, _) = user.run(&["diagnose", "--server", &address]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("is accepted") && text.contains("All checks passed"), "{text}");
    assert!(text.contains(".retunnel.conf, saved for this server") && !text.contains("rt_"), "{text}");
    tunnel.process.kill().await;
}

#[tokio::test]
async fn names_without_an_address_and_addresses_without_a_server() {
    let user = User::default();
    let report = diagnose(&user, &["--server", "nowhere.invalid:80"]).await;
    assert!(found(report.fails_at("dns", "name_not_found")).contains("nowhere.invalid"));
    let address = closed().await.to_string();
    let report = diagnose_with(&user, &[], &[("RETUNNEL_SERVER_ENDPOINT", &address)]).await;
    assert!(found(report.fails_at("tcp", "connection_refused")).contains(&address));
    assert!(found(report.check("configuration")).contains("RETUNNEL_SERVER_ENDPOINT"));
}

#[tokio::test]
async fn certificates_are_untrusted_expired_or_of_others() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let front = TlsFront::start(&["localhost", "tunnel.test"], server.address).await;
    let ca = user.home().join("ca.pem");
    std::fs::write(&ca, &front.authority).unwrap();
    let ca = ca.to_str().unwrap();
    let address = format!("https://localhost:{}", front.address.port());
    let report = diagnose(&user, &["--server", &address]).await;
    let check = report.fails_at("tls", "certificate_untrusted");
    assert!(found(check).contains("Test Authority") && found(check).contains("tunnel.test"), "{check}");
    assert!(check["next"].as_str().unwrap().contains("--ca-file"), "{check}");

    let report = diagnose(&user, &["--server", &address, "--ca-file", ca]).await;
    assert_eq!(report.code, Some(0), "{}", report.json);
    let check = report.check("tls");
    assert_eq!((&check["status"], &check["details"]["version"]), (&"ok".into(), &"TLS 1.3".into()), "{check}");
    assert_eq!(check["details"]["certificate"]["issuer"], "Test Authority");
    assert!(check["details"]["certificate"]["not_after"].as_i64().unwrap() > 2_000_000_000);
    let report = diagnose(&user, &["--server", &address, "--insecure"]).await;
    report.warns_at("tls", "certificate_not_checked");

    let other = format!("https://127.0.0.1:{}", front.address.port());
    let report = diagnose(&user, &["--server", &other, "--ca-file", ca]).await;
    assert!(found(report.fails_at("tls", "certificate_wrong_name")).contains("localhost"));

    let authority = Authority::default();
    let config = authority.expired_server(&["localhost"]);
    let expired = TlsFront::start_with(&authority, config, server.address).await;
    std::fs::write(ca, &expired.authority).unwrap();
    let address = format!("https://localhost:{}", expired.address.port());
    let report = diagnose(&user, &["--server", &address, "--ca-file", ca]).await;
    assert!(found(report.fails_at("tls", "certificate_expired")).contains("2020-01-01"));

    // The server's port uses TLS, the client does not.
    let (cert, key) = authority.issue_files(&["localhost"]);
    let secure = Server::start(&["--tls-cert", &cert, "--tls-key", &key]).await;
    let report = diagnose(&user, &["--server", &format!("http://{}", secure.address)]).await;
    report.fails_at("api", "https_required");
    let address = format!("https://localhost:{}", secure.address.port());
    let report = diagnose(&user, &["--server", &address, "--ca-file", &authority.file()]).await;
    assert_eq!(report.code, Some(0), "{}", report.json);

    // The client uses TLS, the server does not.
    let report = diagnose(&user, &["--server", &format!("https://{}", server.address)]).await;
    assert!(found(report.fails_at("tls", "tls_failed")).contains("does not speak TLS"));
}

#[tokio::test]
async fn proxies_refuse_connect_and_are_left_out() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let gateway = Gateway::start(Kind::Http, Some("me:secret"), server.address).await;
    let args = ["--server", "http://tunnel.test"];
    let wrong = format!("http://me:wrong@{}", gateway.address);
    let report = diagnose_with(&user, &args, &[("HTTP_PROXY", &wrong)]).await;
    let check = report.fails_at("tcp", "proxy_failed");
    assert!(found(check).contains("user name or password") && !report.json.to_string().contains("wrong"), "{check}");
    assert!(found(report.check("proxy")).contains("HTTP_PROXY"), "{}", report.json);

    let right = format!("http://me:secret@{}", gateway.address);
    let report = diagnose_with(&user, &args, &[("ALL_PROXY", &right)]).await;
    // The proxy can read what it passes on.
    report.warns_at("tls", "not_encrypted");
    assert!(found(report.check("tcp")).contains("tunnel.test:80"));
    assert_eq!(report.check("upgrade")["status"], "ok");

    let nobody = format!("http://{}", closed().await);
    let report = diagnose_with(&user, &args, &[("ALL_PROXY", &nobody)]).await;
    report.fails_at("tcp", "proxy_failed");
    let report = diagnose_with(&user, &args, &[("ALL_PROXY", "http://nowhere.invalid:3128")]).await;
    assert!(found(report.fails_at("dns", "proxy_failed")).contains("the proxy's name"), "{}", report.json);
    let excepted = [("ALL_PROXY", &*nobody), ("NO_PROXY", "nowhere.invalid")];
    let report = diagnose_with(&user, &["--server", "http://nowhere.invalid"], &excepted).await;
    report.fails_at("dns", "name_not_found");
    assert!(found(report.check("proxy")).contains("NO_PROXY"));
    let local = server.address.to_string();
    let report = diagnose_with(&user, &["--server", &local], &[("ALL_PROXY", &nobody)]).await;
    assert_eq!(report.code, Some(0), "{}", report.json);
}

#[tokio::test]
async fn something_else_than_a_server_answers() {
    let (app, user) = (service::http().await, User::default());
    let report = diagnose(&user, &["--server", &app.address.to_string()]).await;
    assert!(found(report.fails_at("api", "not_a_server")).contains("not a ReTunnel server"));
}

#[tokio::test]
async fn upgrades_are_stripped_on_the_way() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let front = WebFront::start(Habits { websockets: true, ..Habits::default() }, server.address).await;
    let report = diagnose(&user, &["--server", &front.address.to_string()]).await;
    let check = report.warns_at("upgrade", "upgrade_stripped");
    assert!(found(check).contains("a proxy removes") && found(check).contains("WebSocket"), "{check}");

    let front = WebFront::start(Habits::default(), server.address).await;
    let report = diagnose(&user, &["--server", &front.address.to_string()]).await;
    assert_eq!(report.code, Some(69));
    let check = report.check("upgrade");
    assert_eq!((&check["status"], &check["code"]), (&"failed".into(), &"upgrade_refused".into()), "{check}");
    assert_eq!(report.json["failed"], serde_json::json!(["upgrade"]), "clock and token need no upgrade");
}

#[tokio::test]
async fn clocks_differ() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let habits = Habits { websockets: true, behind: Duration::from_secs(7200) };
    let front = WebFront::start(habits, server.address).await;
    let report = diagnose(&user, &["--server", &front.address.to_string()]).await;
    let check = report.warns_at("clock", "clock_differs");
    assert!(found(check).contains("ahead of the server's"), "{check}");
    let seconds = check["details"]["ahead_of_server_seconds"].as_f64().unwrap();
    assert!((7199.0..7210.0).contains(&seconds), "{check}");
}

#[tokio::test]
async fn tokens_are_refused_or_missing() {
    let (server, user) = (Server::start(&["--registration", "closed"]).await, User::default());
    let address = server.address.to_string();
    let report = diagnose(&user, &["--server", &address, "--token", "rt_0123456789abcdef"]).await;
    let check = report.fails_at("token", "token_refused");
    assert!(found(check).contains("****cdef") && !report.json.to_string().contains("rt_0123"), "{check}");
    let report = diagnose(&user, &["--server", &address]).await;
    report.fails_at("token", "token_missing");

    // A token that the user saved is never replaced, also where the server registers accounts.
    let open = Server::start(&[]).await;
    let address = open.address.to_string();
    let (code, ..) = user.run(&["authtoken", "rt_0123456789abcdef"]).await;
    assert_eq!(code, 0);
    let report = diagnose(&user, &["--server", &address]).await;
    report.fails_at("token", "token_refused");
    // One that the program registered by itself is.
    let keys = serde_json::json!({ "tokens": { &address: "rt_x" }, "servers": { &address: { "registered": true } } });
    std::fs::write(user.home().join(".retunnel.conf"), keys.to_string()).unwrap();
    let report = diagnose(&user, &["--server", &address]).await;
    report.warns_at("token", "token_refused");
}

#[tokio::test]
async fn servers_of_published_dialects_are_known_by_their_websocket() {
    let user = User::default();
    for dialect in ["3", "2"] {
        let server = Foreign::start(dialect, &[]).await;
        let report = diagnose(&user, &["--server", &server.address.to_string()]).await;
        assert_eq!(report.check("api")["code"], "version_unknown", "{}", report.json);
        assert_eq!((report.code, report.check("upgrade")["code"].as_str()), (Some(69), Some("dialect_not_chosen")));
        let report = diagnose(&user, &["--server", &server.address.to_string(), "--dialect", dialect]).await;
        report.warns_at("api", "version_unknown");
        assert_eq!(report.check("upgrade")["status"], "ok", "dialect {dialect}: {}", report.json);
        server.finish().await;
    }
}

#[tokio::test]
async fn silent_servers_are_given_up_and_ctrl_c_ends_at_once() {
    let (silent, user) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), User::default());
    let address = silent.local_addr().unwrap().to_string();
    let report = diagnose(&user, &["--server", &address]).await;
    report.fails_at("api", "too_slow");

    let mut process = retunnel_e2e::process::Running::start(user.command(&["diagnose", "--server", &address])).await;
    // Everything before the silence is in the report.
    while !process.line().await.contains("tls") {}
    let began = Instant::now();
    process.signal("INT").await;
    assert_eq!(process.exit().await, Some(130));
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn the_tunnels_file_names_server_and_local_services() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let nobody = closed().await.port();
    let file = format!(
        "server_addr: {}\ntunnels:\n  - {{name: a, protocol: http, local_port: {}}}\n  - {{name: b, protocol: tcp, local_port: {nobody}}}\n",
        server.address,
        app.port()
    );
    std::fs::write(user.home().join("retunnel.yml"), file).unwrap();
    let report = diagnose(&user, &[]).await;
    assert_eq!(report.code, Some(69));
    assert!(found(report.check("configuration")).contains("retunnel.yml"), "{}", report.json);
    let locals: Vec<_> = report.json["checks"].as_array().unwrap()[STEPS.len()..].to_vec();
    let told: Vec<_> = locals.iter().map(|check| (check["status"].as_str().unwrap(), check["code"].as_str())).collect();
    assert_eq!(told, [("ok", None), ("failed", Some("local_unreachable"))], "{locals:?}");

    // An invalid file is a failure of the configuration.
    std::fs::write(user.home().join("retunnel.yml"), "tunnels: 7").unwrap();
    let report = diagnose(&user, &[]).await;
    assert_eq!(report.code, Some(2));
    assert_eq!(report.check("configuration")["code"], "configuration_invalid");
}
