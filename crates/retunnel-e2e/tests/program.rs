//! Scenarios: the program's output for shells and other programs.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use retunnel_e2e::{
    eventually,
    process::{Running, Server, User, program},
    service, visitor,
};
use serde_json::Value;
use tokio::process::Command;

/// Completions that bash offers for a line, with the program's own script.
async fn completed(words: &[&str]) -> Vec<String> {
    let script = r#"
        source <("$PROGRAM" completions bash) || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        complete -p retunnel >/dev/null || exit 2
        _retunnel retunnel "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"]).args(words).env("PROGRAM", program());
    let output = bash.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn bash_completes_commands_options_and_values() {
    assert_eq!(completed(&["retunnel", "comp"]).await, ["completions"]);
    assert!(completed(&["retunnel", ""]).await.contains(&"http".to_owned()));
    assert_eq!(completed(&["retunnel", "http", "80", "--host"]).await, ["--hostname", "--host-header"]);
    assert_eq!(completed(&["retunnel", "--log-level", "w"]).await, ["warn"]);
    let user = User::default();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, _) = user.run(&["completions", shell]).await;
        assert!(code == 0 && script.contains("host-header"), "{shell}: {script}");
    }
    assert_eq!(user.run(&["completions", "cmd"]).await.0, 2);
}

#[tokio::test]
async fn manual_pages_tell_what_help_tells() {
    let user = User::default();
    let (code, page, _) = user.run(&["man"]).await;
    assert!(code == 0 && page.contains(".TH RETUNNEL 1") && page.contains("Expose a local service"), "{page}");
    let (code, page, _) = user.run(&["man", "http"]).await;
    assert!(code == 0 && page.contains(r"\-\-host\-header"), "{page}");
    let (code, written, _) = user.run(&["man", "--dir", "pages"]).await;
    assert_eq!(code, 0);
    assert!(written.lines().count() > 8 && user.home().join("pages/retunnel-tcp.1").exists(), "{written}");
    assert_eq!(user.run(&["man", "nope"]).await.0, 2);
}

/// Reads events up to one of this kind, checking what every one has.
async fn event(client: &mut Running, kind: &str) -> Value {
    loop {
        let event: Value = serde_json::from_str(&client.line().await).unwrap();
        assert_eq!(event["v"], 1, "{event}");
        assert!(event["time_ms"].as_u64().unwrap() > 1_700_000_000_000, "{event}");
        if event["event"] == kind {
            return event;
        }
    }
}

#[tokio::test]
async fn json_events_follow_the_tunnel() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let app = service::http().await;
    let address = server.address.to_string();
    let args = ["http", &app.port(), "--json-events", "--server", &address, "--subdomain", "ev"];
    let mut client = Running::start(user.command(&args)).await;
    let first: Value = serde_json::from_str(&client.line().await).unwrap();
    assert_eq!(first["subdomain"], "ev");
    assert_eq!(first.get("event"), None, "the first line stays what scripts read");

    let host = server.host("ev");
    visitor::get(server.address, &host, "/status/418?x").await;
    let request = event(&mut client, "request").await;
    assert_eq!((request["method"].as_str(), request["path"].as_str()), (Some("GET"), Some("/status/418?x")));
    assert_eq!((request["status"].as_u64(), request["tunnel"].as_str()), (Some(418), Some("ev")));
    assert_eq!(request["error"], Value::Null);

    let at = app.address;
    drop(app);
    eventually("the service is gone", || async {
        (visitor::get(server.address, &host, "/").await.status == 502).then_some(())
    })
    .await;
    assert!(event(&mut client, "local_unreachable").await["reason"].as_str().unwrap().contains("refused"));
    let _app = service::http_on(at).await;
    assert_eq!(visitor::get(server.address, &host, "/echo").await.status, 200);
    event(&mut client, "local_reachable").await;

    let server = server.restart().await;
    assert!(event(&mut client, "disconnected").await["retry_in_ms"].is_u64());
    event(&mut client, "connected").await;
    assert_eq!(event(&mut client, "tunnel_restored").await["url"], first["url"]);
    client.signal("TERM").await;
    assert_eq!(event(&mut client, "ended").await["v"], 1);
    assert_eq!(client.exit().await, Some(0));
    drop(server);
}
