//! The API of ngrok's agent, so that scripts that read `localhost:4040/api/tunnels` keep working.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use data_encoding::BASE64;
use retunnel_client::{LocalTarget, StatsSnapshot, TunnelInfo, TunnelProtocol, TunnelSpec};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    context::{SharedContext, ViewOptions},
    decode::Budget,
    failure::{Answer, Failure, FailureCode},
    head::Head,
    replay::Edits,
    store::Entry,
    streamed,
    view::{View, duration, rfc3339, status},
};

/// Tunnels that may be opened through the API.
const MAX_OPENED: usize = 100;
/// Requests in a response if the caller sets no limit.
const DEFAULT_LIMIT: usize = 50;

pub(crate) fn routes() -> Router<SharedContext> {
    Router::new()
        .route("/api/tunnels", get(tunnels).post(open))
        .route("/api/tunnels/{name}", get(tunnel).delete(close))
        .route("/api/requests/http", get(requests).post(replay).delete(clear))
        .route("/api/requests/http/{id}", get(request))
}

fn described(info: &TunnelInfo, stats: &StatsSnapshot) -> Value {
    let is_http = info.protocol == TunnelProtocol::Http;
    let target = info.target.to_string();
    let has_scheme = target.contains("://") || target.starts_with("unix:");
    let rates = json!({ "rate1": 0, "rate5": 0, "rate15": 0, "p50": 0, "p90": 0, "p95": 0, "p99": 0 });
    let (mut conns, mut http) = (rates.clone(), rates);
    conns["count"] = stats.connections.into();
    conns["gauge"] = stats.open_connections.into();
    http["count"] = if is_http { stats.requests.into() } else { 0.into() };
    json!({
        "name": info.name,
        "ID": info.name,
        "uri": format!("/api/tunnels/{}", info.name),
        "public_url": info.url,
        "proto": if info.url.starts_with("https:") { "https" } else { info.protocol.as_str() },
        "config": {
            "addr": if is_http && !has_scheme { format!("http://{target}") } else { target },
            "inspect": is_http,
        },
        "metrics": { "conns": conns, "http": http },
    })
}

async fn tunnels(State(state): State<SharedContext>) -> Json<Value> {
    let tunnels: Vec<Value> = state.client.tunnels().iter().map(|(info, stats)| described(info, stats)).collect();
    Json(json!({ "tunnels": tunnels, "uri": "/api/tunnels" }))
}

async fn tunnel(State(state): State<SharedContext>, Path(name): Path<String>) -> Answer {
    let tunnels = state.client.tunnels();
    let found = tunnels.iter().find(|(info, _)| info.name == name);
    found.map(|(info, stats)| Json(described(info, stats))).ok_or_else(|| Failure::not_found("tunnel"))
}

async fn close(State(state): State<SharedContext>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    let is_closed = state.client.close_tunnel(&name);
    state.opened.lock().expect("no code panics while it holds the tunnels").retain(|tunnel| tunnel.name() != name);
    if is_closed { Ok(StatusCode::NO_CONTENT) } else { Err(Failure::not_found("tunnel")) }
}

/// A request for a tunnel in the form of ngrok's agent. Keys without a meaning here are ignored, because scripts send them.
#[derive(Debug, Deserialize)]
struct TunnelRequest {
    name: String,
    proto: String,
    addr: Value,
    subdomain: Option<String>,
    hostname: Option<String>,
    domain: Option<String>,
    auth: Option<String>,
    basic_auth: Option<Vec<String>>,
    remote_addr: Option<String>,
    inspect: Option<Value>,
}

impl TunnelRequest {
    fn spec(&self) -> Result<TunnelSpec, String> {
        let addr = self.addr.as_str().map_or_else(|| self.addr.to_string(), str::to_owned);
        let target: LocalTarget = addr.parse().map_err(|error| format!("addr: {error}"))?;
        let mut spec = match self.proto.as_str() {
            "http" | "https" => TunnelSpec::http(target),
            "tcp" => TunnelSpec::tcp(target),
            other => return Err(format!("proto: expected http or tcp (got `{other}`)")),
        };
        if self.name.is_empty() {
            return Err("name: missing".into());
        }
        spec = spec.name(&self.name);
        if let Some(subdomain) = &self.subdomain {
            spec = spec.subdomain(subdomain).map_err(|error| error.to_string())?;
        }
        if let Some(hostname) = self.hostname.as_ref().or(self.domain.as_ref()) {
            spec = spec.hostname(hostname);
        }
        // An empty list must not leave a tunnel open that was meant to be protected.
        match (&self.auth, self.basic_auth.as_deref()) {
            (Some(auth), None) => spec = spec.auth(auth).map_err(|error| error.to_string())?,
            (None, Some([auth])) => spec = spec.auth(auth).map_err(|error| error.to_string())?,
            (None, None) => {}
            _ => return Err("auth, basic_auth: expected one USER:PASSWORD in one of them".into()),
        }
        if let Some(address) = &self.remote_addr {
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            spec = spec.remote_port(port.ok_or("remote_addr: expected a port")?);
        }
        let inspect = self.inspect.as_ref().is_none_or(|value| *value != json!(false) && *value != json!("false"));
        Ok(spec.inspect(inspect))
    }
}

async fn open(State(state): State<SharedContext>, Json(request): Json<TunnelRequest>) -> Result<Response, Failure> {
    let invalid = |detail: String| Failure::new(StatusCode::BAD_REQUEST, FailureCode::TunnelInvalid, detail);
    let spec = request.spec().map_err(invalid)?;
    if state.client.tunnels().iter().any(|(info, _)| info.name == request.name) {
        return Err(invalid(format!("tunnel `{}` already exists", request.name)));
    }
    if state.opened.lock().expect("no code panics while it holds the tunnels").len() >= MAX_OPENED {
        return Err(invalid(format!("the limit of {MAX_OPENED} tunnels is reached; close one first")));
    }
    let tunnel = state.client.open(spec).await;
    let tunnel =
        tunnel.map_err(|error| Failure::new(StatusCode::BAD_GATEWAY, FailureCode::TunnelRefused, error.to_string()))?;
    let answer = described(tunnel.info(), &tunnel.stats());
    state.opened.lock().expect("no code panics while it holds the tunnels").push(tunnel);
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestFilter {
    limit: Option<usize>,
    tunnel_name: Option<String>,
}

async fn requests(
    State(state): State<SharedContext>,
    Query(filter): Query<RequestFilter>,
    Query(options): Query<ViewOptions>,
) -> Response {
    let matching = state.store.all().into_iter().rev().filter(|entry| match &filter.tunnel_name {
        Some(name) => entry.record().tunnel == *name,
        None => true,
    });
    let matching = matching.take(filter.limit.unwrap_or(DEFAULT_LIMIT)).collect();
    let before = r#"{"uri":"/api/requests/http","requests":["#.to_owned();
    let body = streamed::list(state, matching, before, "]}", move |state, entry, budget| {
        described_request(entry, state.view(&options), budget)
    });
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn request(
    State(state): State<SharedContext>,
    Path(id): Path<u64>,
    Query(options): Query<ViewOptions>,
) -> Answer {
    let entry = state.entry(id)?;
    let described =
        state.work(move |state| described_request(&entry, state.view(&options), &mut Budget::of_answer())).await;
    Ok(Json(described))
}

fn described_request(entry: &Entry, view: View<'_>, budget: &mut Budget) -> Value {
    let record = entry.snapshot();
    let (request, response) = (view.head(record.request()), view.head(record.response()));
    let raw = |head: &Head, body: Vec<u8>| {
        let lines = head.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let text = format!("{}\r\n{}\r\n", head.first.join(" ").trim_end(), lines.collect::<String>());
        BASE64.encode(&[text.into_bytes(), body].concat())
    };
    let visitor = request.header("x-forwarded-for").unwrap_or_default();
    let nanoseconds = duration(&record).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    json!({
        "uri": format!("/api/requests/http/{}", entry.id),
        "id": entry.id.to_string(),
        "tunnel_name": record.tunnel,
        "remote_addr": visitor,
        "start": rfc3339(record.started),
        "duration": nanoseconds,
        "request": {
            "method": request.method(), "proto": request.first[2], "headers": grouped(&request), "uri": request.path(),
            "raw": raw(&request, view.body(record.request(), budget).bytes),
        },
        "response": {
            "status": format!("{} {}", status(&record), response.reason()).trim_end(),
            "status_code": status(&record), "proto": response.first[0], "headers": grouped(&response),
            "raw": raw(&response, view.body(record.response(), budget).bytes),
        },
    })
}

fn grouped(head: &Head) -> Value {
    let mut grouped = serde_json::Map::new();
    for (name, value) in &head.headers {
        if let Value::Array(values) = grouped.entry(name.clone()).or_insert_with(|| json!([])) {
            values.push(value.clone().into());
        }
    }
    grouped.into()
}

#[derive(Debug, Deserialize)]
struct ReplayRequest {
    id: Value,
    tunnel_name: Option<String>,
}

async fn replay(State(state): State<SharedContext>, Json(request): Json<ReplayRequest>) -> Result<StatusCode, Failure> {
    let id = request.id.as_u64().or_else(|| request.id.as_str()?.parse().ok());
    let id = id.ok_or_else(|| Failure::not_found("exchange"))?;
    if let Some(name) = request.tunnel_name.filter(|name| !name.is_empty())
        && state.entry(id)?.record().tunnel != name
    {
        return Err(Failure::not_found("exchange of this tunnel"));
    }
    state.replay(id, &Edits::default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clear(State(state): State<SharedContext>) -> StatusCode {
    state.store.clear();
    StatusCode::NO_CONTENT
}
