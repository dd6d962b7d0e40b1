//! Scenarios: which account a client uses, and who gets to see its token.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use retunnel_e2e::{
    TIMEOUT,
    foreign::Foreign,
    process::{Running, Server, User, read_until},
    service, visitor,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    join,
    net::TcpListener,
    process::Command,
    task::JoinSet,
    time::timeout,
};

/// A server that is none: it answers every request in the same way and remembers what it was sent.
struct Snoop {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    _task: JoinSet<()>,
}

impl Snoop {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let log = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                connections.spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = socket.read(&mut bytes).await {
                        log.lock().unwrap().extend_from_slice(&bytes[..count]);
                        if socket.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen, _task: task }
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}

const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

async fn register(server: SocketAddr, email: &str) -> String {
    let body = json!({ "email": email }).to_string();
    let head = format!(
        "POST /api/v1/auth/register HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}",
        body.len()
    );
    let answer = visitor::request(server, &head, body.as_bytes()).await;
    let account: Value = serde_json::from_slice(&answer.body).unwrap();
    account["auth_token"].as_str().unwrap().to_owned()
}

fn saved(user: &User) -> Value {
    serde_json::from_str(&std::fs::read_to_string(user.home().join(".retunnel.conf")).unwrap()).unwrap()
}

/// Runs the program in a directory of its own to its end.
async fn run_in(user: &User, directory: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = user.command(args);
    let Output { status, stderr, .. } =
        timeout(TIMEOUT, command.current_dir(directory).output()).await.expect("an end in time").unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

async fn start_in(user: &User, directory: &Path, args: &[&str]) -> (Running, Value) {
    let mut command: Command = user.command(args);
    command.current_dir(directory);
    let mut running = Running::start(command).await;
    let info = serde_json::from_str(&running.line().await).unwrap();
    (running, info)
}

#[tokio::test]
async fn clients_that_start_together_share_one_account_and_come_back() {
    let (server, app) = (Server::start(&[]).await, service::http().await);
    for _ in 0..3 {
        let (user, port) = (User::default(), app.port());
        let open = |name: &'static str| {
            let args = ["http", &port, "--subdomain", name].map(str::to_owned);
            let (user, address) = (&user, server.address);
            async move { user.tunnel(address, &args.each_ref().map(String::as_str)).await }
        };
        let (one, two, three) = join!(open("one"), open("two"), open("three"));
        assert_eq!(one.info["account"], two.info["account"]);
        assert_eq!(one.info["account"], three.info["account"]);
        for tunnel in [one, two, three] {
            tunnel.process.kill().await;
        }
        let (one, two, three) = join!(open("one"), open("two"), open("three"));
        for mut tunnel in [one, two, three] {
            tunnel.process.signal("TERM").await;
            assert_eq!(tunnel.process.exit().await, Some(0));
        }
    }
}

#[tokio::test]
async fn a_saved_token_goes_to_no_server_that_a_foreign_directory_names() {
    let (server, app) = (Server::start(&[]).await, service::http().await);
    let port = app.port();
    for (answer, registers) in [(NOT_FOUND, false), (SWITCHES, false), (NOT_FOUND, true)] {
        let (user, snoop) = (User::default(), Snoop::start(answer).await);
        let home = user.home().to_owned();
        let directory = tempfile::tempdir().unwrap();
        let (own, foreign) = (server.address.to_string(), snoop.address.to_string());
        let token = if registers {
            // The program registers with its own server by itself.
            let mut tunnel = user.tunnel(server.address, &["http", &port]).await;
            tunnel.process.signal("TERM").await;
            tunnel.process.exit().await;
            saved(&user)["tokens"][&own].as_str().unwrap().to_owned()
        } else {
            let token = "rt_a_secret_0123456789".to_owned();
            assert_eq!(user.run(&["authtoken", &token]).await.0, 0);
            token
        };
        let conf = home.join(".retunnel.conf");
        let mut keys = saved(&user);
        keys["server_url"] = own.clone().into();
        std::fs::write(&conf, keys.to_string()).unwrap();

        // A server without a token in `.env` is no server: the user's own is used.
        let line = format!("RETUNNEL_SERVER_ENDPOINT={foreign}\nRETUNNEL_DIALECT=2\n");
        std::fs::write(directory.path().join(".env"), &line).unwrap();
        if registers {
            let (running, info) = start_in(&user, directory.path(), &["--json", "http", &port]).await;
            assert!(info["url"].as_str().unwrap().ends_with(&format!(":{}", server.address.port())), "{info}");
            running.kill().await;
        } else {
            let (code, stderr) = run_in(&user, directory.path(), &["http", "80"]).await;
            assert_eq!(code, Some(69), "the own server does not know that token: {stderr}");
            assert!(stderr.contains("RETUNNEL_SERVER_ENDPOINT in .env is ignored"), "{stderr}");
        }
        assert_eq!(snoop.seen(), "", "it is not even asked");

        // Proxies and trust are not set there either.
        let route = format!(
            "RETUNNEL_PROXY=http://{foreign}\nHTTPS_PROXY=http://{foreign}\nALL_PROXY=http://{foreign}\nRETUNNEL_INSECURE=1\n\
             RETUNNEL_CA_FILE=ca.pem\nRETUNNEL_LOG_FILE={}\nRETUNNEL_INSPECT_ADDR=0.0.0.0:1\n",
            directory.path().join("log").display()
        );
        std::fs::write(directory.path().join(".env"), route).unwrap();
        let mut command = user.command(&["http", "80", "--server", "tunnel.invalid", "--token", &token]);
        command.current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = read_until(&mut BufReader::new(child.stderr.take().unwrap()), "retrying").await;
        for name in
            ["RETUNNEL_PROXY", "RETUNNEL_INSECURE", "RETUNNEL_CA_FILE", "RETUNNEL_LOG_FILE", "RETUNNEL_INSPECT_ADDR"]
        {
            assert!(said.contains(&format!("{name} in .env is ignored")), "{said}");
        }
        assert!(!directory.path().join("log").exists());
        child.kill().await.unwrap();
        assert_eq!(snoop.seen(), "");

        // A pair of its own is used, and nothing else.
        let own_pair = format!("{line}RETUNNEL_AUTH_TOKEN=theirs_0123456789\n");
        std::fs::write(directory.path().join(".env"), own_pair).unwrap();
        let (code, stderr) = run_in(&user, directory.path(), &["http", "80"]).await;
        assert_eq!(code, Some(69), "{stderr}");
        assert!(stderr.contains(&format!("RETUNNEL_SERVER_ENDPOINT in .env names the server {foreign}")), "{stderr}");
        assert!(!snoop.seen().contains(&token), "{}", snoop.seen());
        std::fs::remove_file(directory.path().join(".env")).unwrap();

        // A tunnels file may name a server, which gets no token of another.
        let file = format!("server_addr: {foreign}\ntunnels:\n  - {{name: a, protocol: http, local_port: 80}}\n");
        std::fs::write(directory.path().join("retunnel.yml"), file).unwrap();
        let (code, stderr) = run_in(&user, directory.path(), &["start"]).await;
        assert!(matches!(code, Some(1 | 69)), "{code:?} {stderr}");
        assert!(stderr.contains("from retunnel.yml"), "{stderr}");
        assert!(!snoop.seen().contains(&token), "{}", snoop.seen());
    }
}

#[tokio::test]
async fn a_token_is_shown_to_no_server_that_has_not_said_what_it_is() {
    let secret = "rt_a_secret_0123456789";
    for answer in [NOT_FOUND, SWITCHES] {
        let (user, snoop) = (User::default(), Snoop::start(answer).await);
        let address = snoop.address.to_string();
        let (code, _, stderr) = user.run(&["http", "80", "--server", &address, "--token", secret]).await;
        assert_eq!(code, 69, "{stderr}");
        assert!(stderr.contains("`--dialect 3`"), "it is not tried without being asked for: {stderr}");
        let seen = snoop.seen();
        assert!(seen.contains("Upgrade: retunnel") && !seen.contains(secret), "{seen}");
        assert!(!seen.contains("/api/v1/ws/tunnel"), "{seen}");
        // Dialect 2 has a place for it in the handshake.
        let (code, _, stderr) =
            user.run(&["http", "80", "--server", &address, "--token", secret, "--dialect", "2"]).await;
        assert_eq!(code, 69, "{stderr}");
        assert!(!snoop.seen().contains(secret), "{}", snoop.seen());
    }
}

#[tokio::test]
async fn a_published_dialect_is_chosen_once_and_remembered() {
    for dialect in ["2", "3"] {
        let (server, app, user) = (Foreign::start(dialect, &[]).await, service::http().await, User::default());
        let (address, port) = (server.address.to_string(), app.port());
        let (code, _, stderr) = user.run(&["http", &port, "--server", &address]).await;
        assert_eq!(code, 69, "{stderr}");
        assert!(stderr.contains("`--dialect 2`"), "{stderr}");
        for options in [&["--dialect", dialect][..], &[]] {
            let args = [&["http", &port, "--subdomain", "mine"][..], options].concat();
            let mut tunnel = user.tunnel(server.address, &args).await;
            assert_eq!(tunnel.info["dialect"], dialect);
            assert_eq!(visitor::get(server.address, &server.host("mine"), "/status/204").await.status, 204);
            tunnel.process.signal("TERM").await;
            assert_eq!(tunnel.process.exit().await, Some(0));
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn what_the_user_saves_replaces_the_account_that_was_registered() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let (address, port) = (server.address.to_string(), app.port());
    let account = async |user: &User| {
        let mut tunnel = user.tunnel(server.address, &["http", &port]).await;
        tunnel.process.signal("TERM").await;
        tunnel.process.exit().await;
        tunnel.info["account"].as_str().unwrap().to_owned()
    };
    assert!(account(&user).await.starts_with("anon-"));
    for (email, server_option) in
        [("one@example.test", false), ("two@example.test", true), ("three@example.test", false)]
    {
        let token = register(server.address, email).await;
        let mut args = vec!["authtoken", &token];
        if server_option {
            args.extend(["--server", &address]);
        }
        assert_eq!(user.run(&args).await.0, 0);
        for _ in 0..2 {
            assert_eq!(account(&user).await, email);
        }
    }
    // The program says which account it uses, and why.
    let mut command = user.command(&["http", &port, "--server", &address]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = read_until(&mut BufReader::new(child.stderr.take().unwrap()), "Forwarding").await;
    assert!(
        said.contains("Account three@example.test, token ****") && said.contains("saved for this server"),
        "{said}"
    );
    child.kill().await.unwrap();
    // A token of one server is not used with another.
    let other = Server::start(&[]).await;
    let tunnel = user.tunnel(other.address, &["http", &port]).await;
    assert!(tunnel.info["account"].as_str().unwrap().starts_with("anon-"), "{}", tunnel.info);
}

#[tokio::test]
async fn a_wrong_token_that_the_user_chose_is_not_replaced() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let (address, port) = (server.address.to_string(), app.port());
    let open = ["http", &port, "--server", &address];
    for save in [&["authtoken", "rt_wrong_0123456789"][..], &["authtoken", "rt_wrong_0123456789", "--server", &address]]
    {
        assert_eq!(user.run(save).await.0, 0);
        let before = saved(&user);
        let (code, stdout, stderr) = user.run(&open).await;
        assert_eq!((code, &*stdout), (69, ""), "{stderr}");
        for part in
            ["****6789", ".retunnel.conf", "retunnel authtoken --server", "retunnel register --server", &address]
        {
            assert!(stderr.contains(part), "`{part}` in: {stderr}");
        }
        assert_eq!(saved(&user), before);
    }
    // The way out that it names.
    let (code, _, stderr) = user.run(&["register", "--server", &address]).await;
    assert_eq!(code, 0, "{stderr}");
    let tunnel = user.tunnel(server.address, &["http", &port]).await;
    assert!(tunnel.info["account"].as_str().unwrap().starts_with("anon-"));
    let again: Value = serde_json::from_str(&user.run(&["--json", "register", "--server", &address]).await.1).unwrap();
    assert_eq!((&again["new"], &again["account"]), (&json!(false), &tunnel.info["account"]));
    // Also after another token was saved, which is not for this server.
    assert_eq!(user.run(&["authtoken", "rt_other_0123456789"]).await.0, 0);
    assert_eq!(user.run(&open).await.0, 69);
    assert_eq!(user.run(&["register", "--server", &address]).await.0, 0);
    let tunnel = user.tunnel(server.address, &["http", &port]).await;
    assert_eq!(tunnel.info["account"], again["account"]);
}

#[tokio::test]
async fn a_token_that_the_program_registered_is_replaced_with_a_word() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let port = app.port();
    let mut tunnel = user.tunnel(server.address, &["http", &port]).await;
    tunnel.process.signal("TERM").await;
    tunnel.process.exit().await;
    // An account that the server does not know any more.
    let mut keys = saved(&user);
    keys["tokens"][server.address.to_string()] = "rt_forgotten_0123456789".into();
    std::fs::write(user.home().join(".retunnel.conf"), keys.to_string()).unwrap();
    let mut command = user.command(&["http", &port, "--no-inspect", "--server", &server.address.to_string()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = read_until(&mut BufReader::new(child.stderr.take().unwrap()), "may be lost").await;
    assert!(said.contains("****6789"), "{said}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn an_invitation_leads_to_a_tunnel() {
    let server = Server::start(&["--registration", "invite"]).await;
    let (app, user) = (service::http().await, User::default());
    let (address, port) = (server.address.to_string(), app.port());
    let open = ["http", &port, "--server", &address];
    let (code, _, stderr) = user.run(&open).await;
    assert_eq!(code, 1, "{stderr}");
    let next = format!("`retunnel register --server {address} --invite CODE`");
    assert!(stderr.contains(&next) && stderr.contains("`retunnel server invite`"), "{stderr}");

    let invite = async || {
        let printed = server.run(&["--json", "server", "invite"]).await;
        let printed: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(printed["server"], address);
        (printed["invite"].as_str().unwrap().to_owned(), printed["command"].as_str().unwrap().to_owned())
    };
    let (code, command) = invite().await;
    // Taken for a token, the code is not sent anywhere.
    let (exit, _, stderr) = user.run(&["authtoken", &code]).await;
    assert_eq!(exit, 2, "{stderr}");
    assert!(stderr.contains(&format!("retunnel register --invite {code}")), "{stderr}");
    // The command that the server prints.
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let (exit, _, stderr) = user.run(&words).await;
    assert_eq!(exit, 0, "{stderr}");
    assert!(stderr.contains(&format!("retunnel http 8080 --server {address}")), "{stderr}");
    let _tunnel = user.tunnel(server.address, &["http", &port]).await;
    // Or at once with the first tunnel; a code is valid once.
    let (code, _) = invite().await;
    let (first, second) = (User::default(), User::default());
    let _tunnel = first.tunnel(server.address, &["http", &port, "--invite", &code]).await;
    let (exit, _, stderr) = second.run(&[&open[..], &["--invite", &code]].concat()).await;
    assert_eq!(exit, 1, "{stderr}");
    assert!(stderr.contains("ask the server's operator for another"), "{stderr}");
}

/// Two clients with one account and one name, on a server that ends the older session and does not say why.
#[tokio::test]
async fn clients_that_displace_each_other_slow_down() {
    let (server, app, user) = (Foreign::start("3", &["--evict"]).await, service::http().await, User::default());
    let (address, port) = (server.address.to_string(), app.port());
    let args = ["--json-events", "http", &port, "--subdomain", "shop", "--server", &address, "--dialect", "3"];
    let mut one = Running::start(user.command(&args)).await;
    one.line().await;
    let mut two = Running::start(user.command(&args)).await;
    two.line().await;
    let slow = async |client: &mut Running| {
        loop {
            let event: Value = serde_json::from_str(&client.line().await).unwrap();
            if event["retry_in_ms"].as_u64().is_some_and(|pause| pause > 300) {
                return;
            }
        }
    };
    tokio::select! {
        () = slow(&mut one) => {}
        () = slow(&mut two) => {}
    }
    server.finish().await;
}

#[tokio::test]
async fn host_names_are_managed_by_the_program() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let address = server.address.to_string();
    let hostname = async |words: &[&str]| user.run(&[&["hostname"], words, &["--server", &address]].concat()).await;
    let (code, _, stderr) = hostname(&["list"]).await;
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("`retunnel register --server"), "{stderr}");
    assert_eq!(user.run(&["register", "--server", &address]).await.0, 0);
    let (code, stdout, stderr) = hostname(&["add", "shop.example.org"]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("TXT    _retunnel-challenge.shop.example.org") && stdout.contains("CNAME  shop"),
        "{stdout}"
    );
    assert!(stderr.contains(&format!("retunnel hostname verify shop.example.org --server {address}")), "{stderr}");
    let (code, _, stderr) = hostname(&["verify", "shop.example.org"]).await;
    assert_eq!(code, 1, "its DNS has no record: {stderr}");
    assert!(stderr.contains("_retunnel-challenge.shop.example.org"), "{stderr}");
    assert_eq!(hostname(&["list"]).await.1, "shop.example.org  not verified\n");
    let (_, listed, _) = user.run(&["--json", "hostname", "list", "--server", &address]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["hostnames"][0]["hostname"], "shop.example.org");
    assert_eq!(hostname(&["remove", "shop.example.org"]).await.0, 0);
    assert_eq!(hostname(&["list"]).await.1, "");
    assert_ne!(hostname(&["remove", "shop.example.org"]).await.0, 0);
}
