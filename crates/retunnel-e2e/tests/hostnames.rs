//! Custom host names: claimed over REST and with the published command line, proven by a real DNS server, served for
//! native and published clients.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::path::Path;

use retunnel_e2e::{
    apps::{App, Use},
    eventually,
    process::{Server, User},
    published_3::{PythonUser, service},
    visitor::{get, request},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A DNS server and a server that asks it.
struct World {
    zone: TempDir,
    _dns: App,
    server: Server,
}

impl World {
    async fn new() -> Self {
        let zone = tempfile::tempdir().unwrap();
        write(&zone.path().join("zone.json"), &json!({}));
        let dns = App::dns(&zone.path().join("zone.json")).await;
        let server = Server::start(&["--dns-resolver", &dns.address.to_string()]).await;
        Self { zone, _dns: dns, server }
    }

    fn set(&self, zone: &Value) {
        write(&self.zone.path().join("zone.json"), zone);
    }

    async fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}",
            self.server.address,
            body.len()
        );
        let answer = request(self.server.address, &head, body.as_bytes()).await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }

    async fn register(&self, email: &str) -> String {
        let (_, account) = self.call("POST", "/auth/register", "", &json!({ "email": email })).await;
        account["auth_token"].as_str().unwrap().to_owned()
    }
}

/// Replaced atomically: the DNS server may read it at any moment.
fn write(path: &Path, zone: &Value) {
    let new = path.with_extension("new");
    std::fs::write(&new, zone.to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn a_host_name_is_claimed_shown_served_and_given_up() {
    let world = World::new().await;
    let (owner, other) = (world.register("owner@example.test").await, world.register("other@example.test").await);
    let add = json!({ "hostname": "Shop.Example.ORG" });
    let (status, claim) = world.call("POST", "/hostnames", &owner, &add).await;
    assert_eq!((status, &claim["hostname"], &claim["verified"]), (200, &json!("shop.example.org"), &json!(false)));
    assert_eq!(claim["dns"]["cname"], json!({ "name": "shop.example.org", "value": "tunnel.test" }));
    assert_eq!(claim["dns"]["txt"]["name"], "_retunnel-challenge.shop.example.org");
    assert_eq!(world.call("POST", "/hostnames", &owner, &add).await, (200, claim.clone()), "once more is the same");
    let (_, theirs) = world.call("POST", "/hostnames", &other, &add).await;
    assert_ne!(theirs["dns"]["txt"]["value"], claim["dns"]["txt"]["value"], "whoever is first has nothing yet");

    // The DNS has no record, then a wrong one, then the right one.
    let txt = claim["dns"]["txt"]["value"].as_str().unwrap();
    let verify = |token: String| {
        let world = &world;
        async move { world.call("POST", "/hostnames/shop.example.org/verify", &token, &Value::Null).await }
    };
    let challenge = "_retunnel-challenge.shop.example.org";
    for zone in [json!({}), json!({ challenge: { "TXT": ["something", "else"] } })] {
        world.set(&zone);
        let (status, answer) = verify(owner.clone()).await;
        assert_eq!((status, &answer["verified"]), (200, &json!(false)), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(txt), "{answer}");
        assert_eq!(answer["dns_points_at_retunnel"], false);
    }
    world.set(&json!({ challenge: { "TXT": ["something", txt] }, "shop.example.org": { "CNAME": "tunnel.test" } }));
    let (_, answer) = verify(other.clone()).await;
    assert_eq!(answer["verified"], false, "another account's record proves nothing: {answer}");

    let user = User::default();
    let app = service(0).await;
    let port = app.address.port().to_string();
    let server = world.server.address.to_string();
    let serve = |token: String| {
        let (user, port, server) = (&user, port.clone(), server.clone());
        async move {
            let args = ["http", &port, "--hostname", "shop.example.org", "--server", &server, "--token", &token];
            user.run(&args).await
        }
    };
    let (_, _, stderr) = serve(owner.clone()).await;
    assert!(stderr.contains("hostname_not_verified"), "{stderr}");
    let (_, answer) = verify(owner.clone()).await;
    assert_eq!((&answer["verified"], &answer["routable"]), (&json!(true), &json!(true)), "{answer}");
    assert_eq!((&answer["dns_points_at_retunnel"], &answer["dns_hint"]), (&json!(true), &Value::Null));
    let (_, _, stderr) = serve(other.clone()).await;
    assert!(stderr.contains("hostname_taken"), "{stderr}");
    let (_, refused) = world.call("POST", "/hostnames", &world.register("c@example.test").await, &add).await;
    assert_eq!(refused["code"], "hostname_taken");
    let (_, list) = world.call("GET", "/hostnames", &owner, &Value::Null).await;
    assert_eq!((list["hostnames"].as_array().unwrap().len(), &list["hostnames"][0]["verified"]), (1, &json!(true)));

    // Its owner serves it; every spelling of the name arrives.
    let args = ["http", &port, "--hostname", "shop.example.org", "--token", &owner];
    let tunnel = user.tunnel(world.server.address, &args).await;
    let url = format!("http://shop.example.org:{}", world.server.address.port());
    assert_eq!(tunnel.info["url"].as_str(), Some(url.as_str()));
    for host in ["shop.example.org", "SHOP.example.org.", "shop.example.org:8080"] {
        assert_eq!(get(world.server.address, host, "/status/404").await.text(), "status 404", "{host}");
    }
    // After removal it belongs to no one, and visitors get 404 at once.
    let (status, _) = world.call("DELETE", "/hostnames/shop.example.org", &owner, &Value::Null).await;
    assert_eq!(status, 200);
    let gone = get(world.server.address, "shop.example.org", "/").await;
    assert_eq!((gone.status, gone.header("x-retunnel-error")), (404, Some("tunnel_not_found")));
    let (status, _) = world.call("DELETE", "/hostnames/shop.example.org", &owner, &Value::Null).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn names_that_no_account_may_claim() {
    let world = World::new().await;
    let token = world.register("a@example.test").await;
    for name in
        ["", "shop", "a..b", "-a.b", "a_b.test", "1.2.3.4", "a.123", "app.tunnel.test", "tunnel.test", "x.localhost"]
    {
        let (status, answer) = world.call("POST", "/hostnames", &token, &json!({ "hostname": name })).await;
        assert_eq!((status, &answer["code"]), (400, &json!("hostname_invalid")), "{name}: {answer}");
    }
    for (method, path) in [("GET", "/hostnames"), ("POST", "/hostnames/a.example.org/verify")] {
        let (status, _) = world.call(method, path, "wrong", &Value::Null).await;
        assert_eq!(status, 401, "{path}");
    }
    let (status, answer) = world.call("POST", "/hostnames/a.example.org/verify", &token, &Value::Null).await;
    assert_eq!((status, &answer["code"]), (404, &json!("hostname_not_registered")));
}

#[tokio::test]
async fn the_published_commands() {
    let world = World::new().await;
    let token = world.register("owner@example.test").await;
    let user = PythonUser::new("3.3.2", world.server.address);
    let config = json!({ "auth_token": token, "api_url": format!("http://{}", world.server.address) });
    std::fs::write(user.home().join(".retunnel.conf"), config.to_string()).unwrap();
    let run = |args: &'static [&'static str]| {
        let user = &user;
        async move {
            let output = user.run(args).await;
            (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        }
    };
    let (code, text) = run(&["hostname", "add", "shop.example.org", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let claim: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    let (code, text) = run(&["hostname", "list"]).await;
    assert!(code == Some(0) && text.contains("shop.example.org"), "{text}");
    let (code, text) = run(&["hostname", "verify", "shop.example.org"]).await;
    assert_ne!(code, Some(0), "{text}");
    world.set(&json!({ "_retunnel-challenge.shop.example.org": { "TXT": [claim["dns"]["txt"]["value"]] } }));
    let (code, text) = run(&["hostname", "verify", "shop.example.org"]).await;
    assert_eq!(code, Some(0), "{text}");

    let app = service(0).await;
    let tunnel = json!({ "protocol": "http", "local_port": app.address.port(), "hostname": "shop.example.org" });
    let client = user.open(Use::Command, &[tunnel]).await;
    assert_eq!(client.host(0), format!("shop.example.org:{}", world.server.address.port()));
    let World { server, zone: _zone, _dns } = world;
    let server = server.restart().await;
    eventually("the client is back", || async {
        (get(server.address, "shop.example.org", "/status/404").await.text() == "status 404").then_some(())
    })
    .await;
    let (code, text) = run(&["hostname", "remove", "shop.example.org"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (_, text) = run(&["hostname", "list"]).await;
    assert!(!text.contains("shop.example.org"), "{text}");
}
