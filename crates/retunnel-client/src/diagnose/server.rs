//! Checks of the server itself: its version, whether a session can open, its clock, and whether it accepts the token.

use std::time::{Duration, SystemTime};

use hyper::{HeaderMap, Method, header};
use retunnel_proto::{message::Token, native};
use serde_json::{Value, json};

use super::check::{Finding, Problem, plain};
use crate::{
    api::{self, ApiClient},
    credentials::Credentials,
    dialect::Dialect,
    error::{ApiError, ConnectError},
    transport::{
        Dialer, Socket,
        upgrade::{ERROR, HTTPS_REQUIRED, TUNNEL_NOT_FOUND},
        websocket,
    },
};

/// Clocks may differ by this much. Certificates and sessions tolerate more; people who compare logs do not.
const CLOCK_MAY_DIFFER: Duration = Duration::from_secs(30);
/// Where published dialects open a session.
const SESSION: &str = "/api/v1/ws/tunnel";
/// Largest message of a WebSocket that is opened for a check only.
const MAX_MESSAGE: usize = 1024;

/// What a server reports about itself.
pub(super) struct Server {
    /// Its answer; null when it does not support the request.
    about: Value,
    /// Its time, and ours in the middle of the exchange.
    clocks: Option<(SystemTime, SystemTime)>,
}

/// Asks the server about itself, over the connection of the earlier checks.
pub(super) async fn api(dialer: &Dialer, socket: Socket) -> (Finding, Option<Server>) {
    let began = SystemTime::now();
    let asked = api::ask(socket, &dialer.endpoint.authority(), Method::GET, "/api/v1/server", None, None).await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(ApiError::Http(error)) if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) => {
            return (Finding::failed(Problem::NotAServer, "the server does not speak HTTP"), None);
        }
        Err(error) => {
            return (Finding::failed(Problem::NoAnswer, format!("no answer: {}", plain(&error.to_string()))), None);
        }
    };
    let took = began.elapsed().unwrap_or_default();
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok()).map(plain);
    let by = header(header::SERVER).map_or_else(String::new, |server| format!(" (Server: {server})"));
    let details = json!({ "status": answer.status, "server": answer.value });
    let clocks = date(&answer.headers).map(|theirs| (theirs, began + took / 2));
    if answer.status == 200 && answer.value["server"] == "retunnel" {
        let finding = version(&answer.value).with(details);
        return (finding, Some(Server { about: answer.value, clocks }));
    }
    if header(header::HeaderName::from_static(ERROR)).as_deref() == Some(HTTPS_REQUIRED) {
        return (Finding::failed(Problem::HttpsRequired, "this server accepts TLS only").with(details), None);
    }
    if header(header::HeaderName::from_static(ERROR)).as_deref() == Some(TUNNEL_NOT_FOUND) {
        let found = format!("a ReTunnel server, but `{}` is not its domain", dialer.endpoint.host());
        return (Finding::failed(Problem::NotAServer, found).with(details), None);
    }
    let finding = match answer.status {
        301 | 302 | 303 | 307 | 308 => {
            let to = header(header::LOCATION).unwrap_or_default();
            Finding::failed(Problem::Redirected, format!("it redirects clients to {to}{by}"))
        }
        status @ (429 | 502 | 503 | 504) => {
            Finding::failed(Problem::ServerUnavailable, format!("it answers with status {status}{by}"))
        }
        status => {
            // Servers of the published dialects do not support this request, but open sessions.
            if opens_websocket(dialer).await.is_ok() {
                let found = "a server that does not report its version: an older one, or another implementation";
                let finding = Finding::warning(Problem::VersionUnknown, found).with(details);
                return (finding, Some(Server { about: Value::Null, clocks }));
            }
            Finding::failed(Problem::NotAServer, format!("not a ReTunnel server: status {status}{by}"))
        }
    };
    (finding.with(details), None)
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

fn version(about: &Value) -> Finding {
    let text = |key: &str| about[key].as_str().map(plain).unwrap_or_default();
    let dialects: Vec<_> = about["dialects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let found = format!("ReTunnel server {}, dialects {}", text("version"), plain(&dialects.join(", ")));
    match about["link_version"].as_u64() {
        Some(theirs) if theirs != u64::from(native::VERSION) => {
            let found = format!("{found}; its link has version {theirs}, ours has {}", native::VERSION);
            Finding::warning(Problem::VersionDiffers, found)
        }
        _ => Finding::fine(found),
    }
}

/// Opens a session's WebSocket and closes it again without a message.
async fn opens_websocket(dialer: &Dialer) -> Result<(), ConnectError> {
    let socket = dialer.websocket(SESSION, None, MAX_MESSAGE).await?;
    websocket::close(socket).await;
    Ok(())
}

/// Whether a session can open.
pub(super) async fn upgrade(dialer: &Dialer, wanted: &[Dialect], server: &Server) -> (Finding, Option<()>) {
    let knows_links = !server.about.is_null();
    let mut answered = None;
    if wanted.contains(&Dialect::Native) {
        match dialer.upgraded(None, &[]).await {
            Ok(_) => return (Finding::fine("a link opens").with(json!({ "transport": "link" })), Some(())),
            Err(ConnectError::NotAServer { answer, .. }) => {
                if knows_links && dialer.in_messages(None).await.is_ok() {
                    let found = format!(
                        "a proxy removes the upgrade to a link (it answers `{answer}`); WebSockets pass and carry links instead"
                    );
                    let details = json!({ "transport": "websocket", "link_answer": answer });
                    return (Finding::warning(Problem::UpgradeStripped, found).with(details), Some(()));
                }
                answered = Some(answer);
            }
            Err(error) => return (Finding::failed(Problem::UpgradeRefused, plain(&error.to_string())), None),
        }
    }
    let websocket = opens_websocket(dialer).await;
    let details = json!({ "transport": websocket.is_ok().then_some("websocket"), "link_answer": answered });
    let between =
        format!("a proxy removes the upgrade to a link (it answers `{}`)", answered.as_deref().unwrap_or_default());
    let finding = match (websocket, wanted) {
        (Ok(()), [Dialect::Native]) if knows_links => Finding::failed(Problem::UpgradeStripped, between),
        (Ok(()), [Dialect::Native]) => Finding::failed(
            Problem::DialectNotChosen,
            "this server does not support links, only WebSockets: it speaks an older dialect",
        ),
        (Ok(()), [Dialect::Native, ..]) if knows_links => {
            let found = format!("{between}; WebSockets pass, and sessions use one");
            Finding::warning(Problem::UpgradeStripped, found)
        }
        (Ok(()), _) => Finding::fine("a WebSocket opens"),
        (Err(error), _) if answered.is_some() && knows_links => Finding::failed(
            Problem::UpgradeRefused,
            format!("{between}, nor WebSockets: {}", plain(&error.to_string())),
        ),
        (Err(error), _) => Finding::failed(Problem::UpgradeRefused, plain(&error.to_string())),
    };
    (finding.with(details), None)
}

impl Server {
    /// Compares the clocks.
    pub(super) fn clock(&self) -> Finding {
        let Some((theirs, ours)) = self.clocks else {
            return Finding::fine("the server does not report its time");
        };
        let (apart, direction) = match ours.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let sign = if direction == "behind" { -1.0 } else { 1.0 };
        let details = json!({ "ahead_of_server_seconds": sign * apart.as_secs_f64().round() });
        // The server reports whole seconds.
        if apart < Duration::from_secs(2) {
            return Finding::fine("equal to the server's").with(details);
        }
        let found = format!("this machine's clock is {} s {direction} the server's", apart.as_secs());
        let finding = if apart > CLOCK_MAY_DIFFER {
            Finding::warning(Problem::ClockDiffers, found)
        } else {
            Finding::fine(found)
        };
        finding.with(details)
    }
}

/// Whether the server accepts the token; without one, whether it would create an account.
pub(super) async fn token(dialer: &Dialer, credentials: &Credentials, server: &Server) -> (Finding, Option<()>) {
    let token = credentials.token();
    let registration = server.about["registration"].as_str().map(plain);
    let details = json!({ "token": token.map(Token::masked), "registration": registration });
    let is_open = match registration.as_deref() {
        Some(policy) => policy == "open",
        // Published servers register anyone, or it cannot be known.
        None => true,
    };
    let Some(token) = token else {
        let finding = match registration.as_deref() {
            Some("open") => Finding::fine("none yet; the server creates an account with the first tunnel"),
            Some("invite") => {
                Finding::failed(Problem::TokenMissing, "none, and the server creates accounts by invitation only")
            }
            Some(_) => Finding::failed(Problem::TokenMissing, "none, and the server creates no accounts"),
            None => Finding::fine("none yet; the server does not report whether it creates accounts"),
        };
        return (finding.with(details), None);
    };
    let shown = token.masked();
    if server.about.is_null() && !credentials.is_of_server() {
        let found = format!("{shown} is not shown to a server that does not say what it is");
        return (Finding::warning(Problem::TokenNotChecked, found).with(details), None);
    }
    let api = ApiClient::over(dialer.clone());
    let mut answer = api.me(token).await;
    if matches!(answer, Err(ApiError::Status { status: 404 | 405, .. })) {
        answer = api.verify_token(token).await;
    }
    let finding = match answer {
        Ok(account) => Finding::fine(format!("{shown} is accepted: {}", plain(&account.email))),
        Err(ApiError::Status { status: 401, .. }) if credentials.may_register() && is_open => {
            let found = format!(
                "the saved token {shown} is not valid on this server; a new account is created instead, without the names of the old one"
            );
            Finding::warning(Problem::TokenRefused, found)
        }
        Err(ApiError::Status { status: 401, .. }) => Finding::failed(
            Problem::TokenRefused,
            format!("{shown} is not valid on this server: unknown, revoked or expired"),
        ),
        Err(ApiError::Status { status: 404 | 405, .. }) => {
            Finding::warning(Problem::TokenNotChecked, "this server cannot check tokens")
        }
        Err(error) => Finding::warning(Problem::TokenNotChecked, plain(&error.to_string())),
    };
    (finding.with(details), None)
}
