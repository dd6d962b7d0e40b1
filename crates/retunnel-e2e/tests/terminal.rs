//! Scenarios: the program on a real terminal.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt};

use data_encoding::BASE64;
use retunnel_e2e::{
    eventually,
    process::{Server, User},
    service,
    terminal::Terminal,
    visitor,
};

const PAGE: (u16, u16) = (120, 40);

/// A server, a service and a live view of a tunnel `web` to it.
struct Live {
    server: Server,
    app: service::Service,
    user: User,
    terminal: Terminal,
}

impl Live {
    async fn start(options: &[&str], variables: &[(&str, Option<&OsStr>)], size: (u16, u16)) -> Self {
        let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
        let app = service::http().await;
        let (port, address) = (app.port(), server.address.to_string());
        let mut args = vec!["http", &port, "--server", &address, "--subdomain", "web"];
        args.extend(options);
        let terminal = Terminal::start(&user, &args, variables, size);
        Self { server, app, user, terminal }
    }

    fn url(&self) -> String {
        format!("http://web.tunnel.test:{}", self.server.address.port())
    }

    async fn get(&self, path: &str) {
        visitor::get(self.server.address, &self.server.host("web"), path).await;
    }
}

/// A directory with an `xdg-open` that records what it was asked to open, and a PATH that starts with it.
fn browser(user: &User) -> std::ffi::OsString {
    let directory = user.home().join("bin");
    fs::create_dir(&directory).unwrap();
    let script = directory.join("xdg-open");
    fs::write(
        &script,
        "#!/bin/sh\nprintf '%s' \"$1\" >\"$HOME/opened.new\" && mv \"$HOME/opened.new\" \"$HOME/opened\"\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    std::env::join_paths(std::iter::once(directory).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())))
        .unwrap()
}

#[tokio::test]
async fn every_key_does_what_the_last_line_says() {
    let (server, user) = (Server::start(&["--tcp-ports", "off"]).await, User::default());
    let app = service::http().await;
    let path = browser(&user);
    let (port, address) = (app.port(), server.address.to_string());
    let args = ["http", &port, "--server", &address, "--subdomain", "web"];
    let mut terminal = Terminal::start(&user, &args, &[("PATH", Some(&path)), ("BROWSER", None)], PAGE);
    let url = format!("http://web.tunnel.test:{}", server.address.port());
    terminal.sees("online").await;
    terminal.sees(&url).await;
    terminal.sees("copy URL").await;
    assert!(terminal.screen().alternate_screen() && terminal.screen().hide_cursor());
    assert!(terminal.text().contains('╭') && terminal.text().contains("● online"), "{}", terminal.text());
    assert_eq!(terminal.text().matches("is open").count(), 1, "{}", terminal.text());

    terminal.press("c").await;
    terminal.sees("Asked the terminal to copy").await;
    assert!(terminal.raw().contains(&format!("\x1b]52;c;{}\x07", BASE64.encode(url.as_bytes()))));

    terminal.press("o").await;
    let opened =
        eventually("the browser is started", || async { fs::read_to_string(user.home().join("opened")).ok() }).await;
    assert_eq!(opened, url);

    terminal.press("r").await;
    terminal.sees("▀").await;
    terminal.misses("Requests").await;
    terminal.press("r").await;
    terminal.sees("Requests").await;

    let host = server.host("web");
    visitor::get(server.address, &host, "/status/404").await;
    visitor::get(server.address, &host, "/fine").await;
    terminal.sees("/status/404").await;
    terminal.sees("/fine").await;
    terminal.press("/404").await;
    terminal.sees("Requests with `404_`").await;
    terminal.misses("/fine").await;
    terminal.press("\r").await;
    terminal.sees("Requests with `404` ").await;
    terminal.press("\x1b").await;
    terminal.sees("/fine").await;

    terminal.resize(60, 15);
    terminal.sees(" 4 Events ").await;
    terminal.misses("Local service").await;
    terminal.press("4").await;
    terminal.sees("is open").await;
    terminal.press("1").await;
    terminal.sees("Local service").await;
    terminal.resize(120, 40);
    terminal.sees("connections open").await;

    terminal.press("q").await;
    assert_eq!(terminal.end().await, Some(0));
    assert!(terminal.is_given_back(), "{terminal:?}");
    assert!(terminal.text().contains("Tunnel closed. 2 requests"), "{}", terminal.text());
}

#[tokio::test]
async fn failed_is_what_did_not_reach_the_visitor() {
    let mut live = Live::start(&[], &[], PAGE).await;
    live.terminal.sees("online").await;
    // The local service's own answers are no failures of the tunnel.
    for path in ["/status/404", "/status/500", "/echo"] {
        live.get(path).await;
    }
    live.terminal.sees("3 requests, 0 failed").await;
    live.get("/cut/1000").await;
    live.terminal.sees("4 requests, 1 failed").await;
    live.terminal.sees("[local_closed_early]").await;
    let Live { server, app, user, mut terminal } = live;
    drop(app);
    eventually("the service is gone", || async {
        let answer = visitor::get(server.address, &server.host("web"), "/gone").await;
        (answer.status == 502).then_some(())
    })
    .await;
    terminal.until("two failures", |screen| screen.contents().contains("2 failed")).await;
    terminal.press("q").await;
    assert_eq!(terminal.end().await, Some(0));
    drop(user);
}

#[tokio::test]
async fn the_terminal_is_given_back_whatever_ends_the_program() {
    for signal in ["INT", "TERM", "HUP"] {
        let mut live = Live::start(&[], &[], PAGE).await;
        live.terminal.sees("online").await;
        live.terminal.signal(signal);
        assert_eq!(live.terminal.end().await, Some(0), "{signal}");
        assert!(live.terminal.is_given_back(), "{signal}: {:?}", live.terminal);
    }
    let mut live = Live::start(&[], &[], PAGE).await;
    live.terminal.sees("online").await;
    live.terminal.press("\x03").await;
    assert_eq!(live.terminal.end().await, Some(0));
    assert!(live.terminal.is_given_back(), "{:?}", live.terminal);
}

#[tokio::test]
async fn a_closed_terminal_ends_the_program_with_and_without_a_file() {
    for options in [&[][..], &["--no-ui"]] {
        let mut live = Live::start(options, &[], PAGE).await;
        live.terminal.sees("web.tunnel.test").await;
        live.terminal.close().await;
        let host = live.server.host("web");
        eventually("the name is free", || async {
            (visitor::get(live.server.address, &host, "/").await.status == 404).then_some(())
        })
        .await;

        let entry = format!("tunnels: [{{name: web, protocol: http, local_port: {}}}]\n", live.app.port());
        fs::write(live.user.home().join("retunnel.yml"), entry).unwrap();
        let address = live.server.address.to_string();
        let args: Vec<&str> = ["start", "--server", &address].iter().chain(options).copied().collect();
        let mut terminal = Terminal::start(&live.user, &args, &[], PAGE);
        terminal.sees("tunnel.test").await;
        terminal.signal("HUP");
        // As long as the terminal exists, SIGHUP reloads the file.
        if options.is_empty() {
            terminal.press("4").await;
        }
        terminal.sees("retunnel.yml: no tunnel changed").await;
        assert_eq!(terminal.close().await, Some(0));
    }
}

#[tokio::test]
async fn plain_lines_where_no_view_is_wanted_or_possible() {
    let dumb = OsStr::new("dumb");
    for (options, variables) in
        [(&["--no-ui"][..], &[][..]), (&[], &[("TERM", Some(dumb)), ("LC_ALL", Some(OsStr::new("C")))])]
    {
        let mut live = Live::start(options, variables, PAGE).await;
        live.terminal.sees("Press Ctrl+C to stop").await;
        let url = live.url();
        assert!(live.terminal.text().lines().any(|line| line.trim_end() == url), "{:?}", live.terminal);
        live.get("/hello").await;
        live.terminal.sees("GET /hello 200").await;
        assert!(!live.terminal.raw().contains('\x1b'), "{:?}", live.terminal.raw());
        assert!(live.terminal.text().is_ascii(), "{:?}", live.terminal);
        live.terminal.press("\x03").await;
        assert_eq!(live.terminal.end().await, Some(0));
    }
}

/// Whether a text has escapes that set a colour.
fn has_colour(raw: &str) -> bool {
    raw.split("\x1b[").skip(1).filter_map(|part| part.split_once('m')).any(|(codes, _)| {
        let is_colour = |code: &str| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=97 | 100..=107));
        codes.chars().all(|c| c.is_ascii_digit() || c == ';') && codes.split(';').any(is_colour)
    })
}

#[tokio::test]
async fn without_colour_and_without_unicode() {
    let yes = OsStr::new("1");
    for (variables, colour, ascii) in [
        (&[][..], true, false),
        (&[("NO_COLOR", Some(yes))], false, false),
        (&[("LC_ALL", Some(OsStr::new("C")))], true, true),
        (&[("LC_ALL", Some(OsStr::new("en_US.ISO-8859-1"))), ("NO_COLOR", Some(yes))], false, true),
    ] {
        let mut live = Live::start(&[], variables, PAGE).await;
        live.terminal.sees("online").await;
        live.get("/status/500").await;
        live.terminal.sees("/status/500").await;
        assert_eq!(live.terminal.text().is_ascii(), ascii, "{:?}", live.terminal);
        live.terminal.press("r").await;
        live.terminal.misses("Requests").await;
        assert_eq!(live.terminal.text().is_ascii(), ascii, "{:?}", live.terminal);
        live.terminal.press("q").await;
        assert_eq!(live.terminal.end().await, Some(0));
        assert_eq!(has_colour(&live.terminal.raw()), colour, "{variables:?}");
        assert_eq!(live.terminal.raw().is_ascii(), ascii, "{variables:?}");
    }
}

#[tokio::test]
async fn ctrl_c_while_connecting_leaves_nothing_behind() {
    let user = User::default();
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    for size in [(80, 24), (40, 10)] {
        let mut terminal = Terminal::start(&user, &["http", "80", "--server", &nobody], &[], size);
        // Attempts follow each other within a second here, so the line may already show the next one.
        terminal.until("the cause", |screen| screen.contents().contains("cannot reach")).await;
        terminal.press("\x03").await;
        assert_eq!(terminal.end().await, Some(0));
        assert!(terminal.is_given_back());
        assert_eq!(terminal.text().trim_end(), "Shutting down...", "{terminal:?}");
    }
}

#[tokio::test]
async fn a_lost_server_is_told_with_the_next_try() {
    let mut live = Live::start(&[], &[], PAGE).await;
    live.terminal.sees("online").await;
    let stopped = live.server.stop().await;
    live.terminal.sees("reconnecting").await;
    live.terminal.sees("your address is reserved").await;
    live.terminal.sees("cannot reach").await;
    live.terminal.until("a count", |screen| screen.contents().contains("retrying in ")).await;
    let server = stopped.start().await;
    live.terminal.sees("online").await;
    live.terminal.press("q").await;
    assert_eq!(live.terminal.end().await, Some(0));
    drop(server);
}

#[tokio::test]
async fn tunnels_of_the_local_api_are_shown_while_they_are_open() {
    let mut live = Live::start(&[], &[], PAGE).await;
    live.terminal.sees("Inspector http://").await;
    let text = live.terminal.text();
    let inspector = text.split("Inspector http://").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let address = inspector.parse().unwrap();
    let body = format!(r#"{{"name": "more", "proto": "http", "addr": "{}", "subdomain": "more"}}"#, live.app.port());
    let head = |method: &str, path: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {inspector}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close"
        )
    };
    let made = visitor::request(address, &head("POST", "/api/tunnels", body.len()), body.as_bytes()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    live.terminal.sees(" http://more.tunnel.test:").await;
    live.terminal.sees("(1 of 2)").await;
    let gone = visitor::request(address, &head("DELETE", "/api/tunnels/more", 0), b"").await;
    assert_eq!(gone.status, 204);
    live.terminal.misses("(1 of 2)").await;
    live.terminal.press("q").await;
    assert_eq!(live.terminal.end().await, Some(0));
}

#[tokio::test]
async fn the_demo_tells_once_that_its_tunnel_is_open() {
    let user = User::default();
    let mut terminal = Terminal::start(&user, &["demo"], &[], (100, 30));
    terminal.sees("online").await;
    terminal.sees("is open").await;
    assert_eq!(terminal.text().matches("is open").count(), 1, "{terminal:?}");
    let row = terminal.text().lines().find(|line| line.contains(" open ")).unwrap().to_owned();
    assert!(row.contains("localhost:"), "{row}");
    terminal.press("q").await;
    assert_eq!(terminal.end().await, Some(0));
    assert!(terminal.is_given_back());
}
