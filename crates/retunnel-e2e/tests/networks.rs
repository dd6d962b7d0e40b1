//! Scenarios: the networks that clients are in. Proxies with passwords, a company's certificate authority, local
//! services that accept only their own address.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use retunnel_e2e::{
    apps,
    authority::Authority,
    gateway::{Gateway, Kind, TlsFront},
    process::{Running, Server, User},
    service,
    visitor::{self, Answer},
};
use serde_json::Value;
use tokio::process::Command;

/// The caller's variables must not have an effect.
fn command(user: &User, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = user.command(args);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.envs(variables.iter().copied());
    command
}

async fn open(command: Command) -> (Running, Value) {
    let mut running = Running::start(command).await;
    let info = serde_json::from_str(&running.line().await).unwrap();
    (running, info)
}

async fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = tokio::time::timeout(retunnel_e2e::TIMEOUT, command.output()).await.expect("an end in time").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn sessions_and_registration_pass_an_http_proxy_with_a_password() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let gateway = Gateway::start(Kind::Http, Some("me:p@ss"), server.address).await;
    let args = ["--json", "http", &app.port(), "--server", "http://tunnel.test", "--subdomain", "corp"];
    let proxy = format!("http://me:p%40ss@{}", gateway.address);
    let (_client, info) = open(command(&user, &args, &[("HTTP_PROXY", &proxy)])).await;
    assert!(info["url"].as_str().unwrap().starts_with("http://corp."));
    assert_eq!(visitor::get(server.address, &server.host("corp"), "/echo").await.status, 200);
    assert_eq!(gateway.asked(), ["tunnel.test:80", "tunnel.test:80"], "the REST call and the link");

    let wrong = format!("http://me:wrong@{}", gateway.address);
    let (code, stderr) = fails(command(&user, &args, &[("ALL_PROXY", &wrong)])).await;
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("does not accept the user name or password") && !stderr.contains("wrong"), "{stderr}");
    let (code, stderr) = fails(command(&user, &args, &[("HTTPS_PROXY", &gateway.address.to_string())])).await;
    assert!(code == Some(69) && stderr.contains("requires a user name and password"), "{stderr}");
    let (code, stderr) = fails(command(&user, &args, &[("HTTP_PROXY", "gopher://x")])).await;
    assert!(code == Some(2) && stderr.contains("HTTP_PROXY"), "{stderr}");
}

#[tokio::test]
async fn a_client_that_uses_another_name_than_the_servers_domain_is_told() {
    let (server, app) = (Server::start(&[]).await, service::http().await);
    let gateway = Gateway::start(Kind::Http, None, server.address).await;
    let (port, proxy) = (app.port(), format!("http://{}", gateway.address));
    // With a token the first answer comes to the link, without one to the registration.
    for token in [&[][..], &["--token", "rt_0123456789abcdef0123456789abcdef"]] {
        let user = User::default();
        let args = [&["http", &port, "--server", "http://vps.example.net"], token].concat();
        let (code, stderr) = fails(command(&user, &args, &[("HTTP_PROXY", &proxy)])).await;
        assert_eq!(code, Some(69), "{stderr}");
        assert!(stderr.contains("`vps.example.net` is not its domain") && stderr.contains("--domain"), "{stderr}");
        assert!(!stderr.contains("retunnel http PORT"), "{stderr}");
    }
}

/// TLS with the proxy, and with the server within it.
#[tokio::test]
async fn https_proxies_are_trusted_as_servers_are() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let front = TlsFront::start(&["tunnel.test"], server.address).await;
    let authority = Authority::default();
    let ca = user.home().join("corp.pem");
    std::fs::write(&ca, format!("{}{}", authority.pem(), front.authority)).unwrap();
    let ca = ca.to_str().unwrap();

    let plain = Gateway::start_tls(authority.server(&["localhost"]), Some("me:p@ss"), server.address).await;
    let proxy = format!("https://me:p%40ss@localhost:{}", plain.address.port());
    let args = ["--json", "http", &app.port(), "--server", "http://tunnel.test", "--subdomain", "plain"];
    let (first, _) = open(command(&user, &args, &[("HTTP_PROXY", &proxy), ("RETUNNEL_CA_FILE", ca)])).await;
    assert_eq!(visitor::get(server.address, &server.host("plain"), "/echo").await.status, 200);
    assert_eq!(plain.asked().last().unwrap(), "tunnel.test:80");
    first.kill().await;

    let nested = Gateway::start_tls(authority.server(&["localhost"]), Some("me:p@ss"), front.address).await;
    let proxy = format!("https://me:p%40ss@localhost:{}", nested.address.port());
    let args = ["--json", "http", &app.port(), "--server", "https://tunnel.test", "--subdomain", "nested"];
    let variables = [("HTTPS_PROXY", &*proxy), ("RETUNNEL_CA_FILE", ca)];
    let (_second, _) = open(command(&user, &args, &variables)).await;
    let body = vec![7; 3_000_000];
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}",
        server.host("nested"),
        body.len()
    );
    assert_eq!(visitor::request(server.address, &head, &body).await.status, 200, "bulk in lanes through both");
    assert_eq!(nested.asked().last().unwrap(), "tunnel.test:443");

    // Neither an unknown authority nor a wrong password is accepted, and the password stays secret.
    let (code, stderr) = fails(command(&user, &args, &[("HTTPS_PROXY", &proxy)])).await;
    assert!(code == Some(69) && stderr.contains("is not trusted") && !stderr.contains("p@ss"), "{stderr}");
    let wrong = format!("https://me:wrong@localhost:{}", nested.address.port());
    let (code, stderr) = fails(command(&user, &args, &[("HTTPS_PROXY", &wrong), ("RETUNNEL_CA_FILE", ca)])).await;
    assert!(code == Some(69) && stderr.contains("does not accept the user name or password"), "{stderr}");
    let unencrypted = Gateway::start(Kind::Http, None, front.address).await;
    let proxy = format!("https://localhost:{}", unencrypted.address.port());
    let (code, stderr) = fails(command(&user, &args, &[("HTTPS_PROXY", &proxy)])).await;
    assert!(code == Some(69) && stderr.contains("does not speak TLS"), "{stderr}");
}

#[tokio::test]
async fn socks5_looks_names_up_at_its_end() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let gateway = Gateway::start(Kind::Socks5, Some("me:secret"), server.address).await;
    let args = ["--json", "http", &app.port(), "--server", "http://tunnel.test:8080", "--subdomain", "socks"];
    let proxy = format!("socks5h://me:secret@{}", gateway.address);
    let (_client, _) = open(command(&user, &args, &[("all_proxy", &proxy)])).await;
    assert_eq!(visitor::get(server.address, &server.host("socks"), "/echo").await.status, 200);
    assert!(gateway.asked().iter().all(|asked| asked == "tunnel.test:8080"), "{:?}", gateway.asked());

    let wrong = format!("socks5h://me:wrong@{}", gateway.address);
    let (code, stderr) = fails(command(&user, &args, &[("all_proxy", &wrong)])).await;
    assert!(code == Some(69) && stderr.contains("does not accept the user name or password"), "{stderr}");
}

#[tokio::test]
async fn servers_of_this_machine_are_reached_directly_unless_asked() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let gateway = Gateway::start(Kind::Socks5, None, server.address).await;
    let address = server.address.to_string();
    let proxy = format!("socks5://{}", gateway.address);
    let args = ["--json", "http", &app.port(), "--server", &address];
    let (first, _) = open(command(&user, &args, &[("ALL_PROXY", "http://127.0.0.1:1")])).await;
    assert!(gateway.asked().is_empty());
    first.kill().await;
    let (second, _) = open(command(&user, &args, &[("RETUNNEL_PROXY", &proxy)])).await;
    assert!(gateway.asked().iter().all(|asked| *asked == address) && !gateway.asked().is_empty());
    second.kill().await;
    let count = gateway.asked().len();
    let none = [&args[..], &["--proxy", "none"]].concat();
    let (_third, _) = open(command(&user, &none, &[("RETUNNEL_PROXY", &proxy)])).await;
    assert_eq!(gateway.asked().len(), count, "the option wins");
}

#[tokio::test]
async fn a_company_vouches_for_its_server() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let front = TlsFront::start(&["localhost", "tunnel.test"], server.address).await;
    let ca = user.home().join("corp.pem");
    std::fs::write(&ca, &front.authority).unwrap();
    let ca = ca.to_str().unwrap();
    let address = format!("https://localhost:{}", front.address.port());
    let args = ["--json", "http", &app.port(), "--server", &address, "--subdomain", "tls"];

    let (code, stderr) = fails(command(&user, &args, &[])).await;
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("certificate") && stderr.contains("--ca-file"), "{stderr}");
    let with_file = [&args[..], &["--ca-file", ca]].concat();
    let (first, _) = open(command(&user, &with_file, &[])).await;
    assert_eq!(visitor::get(server.address, &server.host("tls"), "/echo").await.status, 200);
    first.kill().await;

    // Through a proxy the name is still the one that the certificate has to be for.
    let gateway = Gateway::start(Kind::Http, None, front.address).await;
    let hidden = ["--json", "http", &app.port(), "--server", "tunnel.test", "--subdomain", "hidden"];
    let proxy = format!("http://{}", gateway.address);
    let (_second, _) = open(command(&user, &hidden, &[("https_proxy", &proxy), ("RETUNNEL_CA_FILE", ca)])).await;
    assert_eq!(gateway.asked().last().unwrap(), "tunnel.test:443");

    let (code, stderr) = fails(command(&user, &[&args[..], &["--ca-file", "nowhere.pem"]].concat(), &[])).await;
    assert!(code == Some(2) && stderr.contains("nowhere.pem"), "{stderr}");
    std::fs::write(user.home().join("empty.pem"), "nothing").unwrap();
    let (code, stderr) = fails(command(&user, &[&args[..], &["--ca-file", "empty.pem"]].concat(), &[])).await;
    assert!(code == Some(2) && stderr.contains("empty.pem"), "{stderr}");
}

#[tokio::test]
async fn local_services_with_tls_are_trusted_here_and_checked_elsewhere() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let front = TlsFront::start(&["localhost"], app.address).await;
    let address = server.address.to_string();
    let here = format!("https://localhost:{}", front.address.port());
    let (first, _) = open(command(&user, &["--json", "http", &here, "--server", &address, "-s", "safe"], &[])).await;
    assert_eq!(visitor::get(server.address, &server.host("safe"), "/echo").await.status, 200);
    first.kill().await;

    // Not a loopback address, though the system takes it for one.
    let elsewhere = format!("https://0.0.0.0:{}", front.address.port());
    let args = ["--json", "http", &elsewhere, "--server", &address, "-s", "safe"];
    let (second, _) = open(command(&user, &args, &[])).await;
    let refused = visitor::get(server.address, &server.host("safe"), "/echo").await;
    assert_eq!((refused.status, refused.header("x-retunnel-error")), (502, Some("local_unreachable")));
    assert!(refused.text().contains("certificate"), "{}", refused.text());
    second.kill().await;
    let (_third, _) = open(command(&user, &[&args[..], &["--local-insecure"]].concat(), &[])).await;
    assert_eq!(visitor::get(server.address, &server.host("safe"), "/echo").await.status, 200);
}

/// The values of a header that the service got.
fn seen(answer: &Answer, name: &str) -> String {
    let echo: Value = serde_json::from_str(&answer.text()).unwrap();
    let headers = echo["headers"].as_array().unwrap();
    let wanted = headers.iter().filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
    wanted.map(|header| header[1].as_str().unwrap()).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn host_header_rewrite_shows_the_service_its_own_address() {
    let (server, app, user) = (Server::start(&[]).await, service::http().await, User::default());
    let address = server.address.to_string();
    let args = ["--json", "http", &app.port(), "--server", &address, "-s", "dev", "--host-header", "rewrite"];
    let (first, _) = open(command(&user, &args, &[])).await;
    let host = server.host("dev");
    let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\nConnection: close");
    let answer = visitor::request(server.address, &head, b"").await;
    let own = format!("localhost:{}", app.port());
    assert_eq!(seen(&answer, "host"), own);
    assert_eq!(seen(&answer, "origin"), format!("http://{own}"));
    assert_eq!(seen(&answer, "x-forwarded-host"), own);
    assert_eq!(seen(&answer, "x-original-host"), host);
    first.kill().await;

    let fixed = [&args[..7], &["--host-header", "app.internal:81"]].concat();
    let (second, _) = open(command(&user, &fixed, &[])).await;
    let answer = visitor::request(server.address, &head, b"").await;
    assert_eq!(seen(&answer, "host"), "app.internal:81");
    second.kill().await;

    let plain = &args[..7];
    let (_third, _) = open(command(&user, plain, &[])).await;
    let answer = visitor::request(server.address, &head, b"").await;
    assert_eq!(seen(&answer, "host"), host);
    assert_eq!(seen(&answer, "origin"), format!("https://{host}"));
    assert_eq!(seen(&answer, "x-original-host"), "");
}

/// Django refuses hosts that are not configured, and forms of pages at other addresses.
#[tokio::test]
async fn django_answers_with_host_header_rewrite_and_is_named_without() {
    let (server, user) = (Server::start(&[]).await, User::default());
    let app = apps::django().await;
    let (address, host) = (server.address.to_string(), server.host("dj"));
    let args = ["--json", "http", &app.port(), "--server", &address, "-s", "dj"];
    let (first, _) = open(command(&user, &args, &[])).await;
    assert_eq!(visitor::get(server.address, &host, "/").await.status, 400);
    first.kill().await;

    let rewriting = [&args[..], &["--host-header", "rewrite"]].concat();
    let (second, _) = open(command(&user, &rewriting, &[])).await;
    let page = visitor::get(server.address, &host, "/").await;
    assert_eq!(page.status, 200, "{}", page.text());
    let cookie = page.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let token = page.text().split("value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let form = format!("csrfmiddlewaretoken={token}");
    let head = format!(
        "POST /form HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\nCookie: {cookie}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}",
        form.len()
    );
    let answer = visitor::request(server.address, &head, form.as_bytes()).await;
    assert_eq!(answer.status, 302, "the page's own form is accepted: {}", answer.text());
    assert_eq!(
        answer.header("location"),
        Some(&*format!("http://{host}/done")),
        "and leads back to the public address"
    );
    second.kill().await;

    // Without the option, the program suggests it.
    let lines = ["http", &app.port(), "--server", &address, "-s", "dj"];
    let mut plain = command(&user, &lines, &[]);
    plain.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = plain.spawn().unwrap();
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let text = retunnel_e2e::process::read_until(&mut stderr, "Press Ctrl+C").await;
    assert!(text.contains("Forwarding"), "{text}");
    visitor::get(server.address, &host, "/").await;
    let text = retunnel_e2e::process::read_until(&mut stderr, "[host_not_allowed]").await;
    assert!(text.contains("--host-header rewrite"), "{text}");
}
