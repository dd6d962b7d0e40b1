//! The local API (`docs/inspector.md`): what pages and scripts ask for. Reading changes nothing.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    middleware,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, stream};
use retunnel_client::{Client, LocalTarget, Tunnel};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::broadcast::error::RecvError, time::sleep};

use super::{
    export,
    guard::{self, Guard},
    mask::Mask,
    ngrok, pages,
    replay::{self, Edits, Prepared},
    store::{Change, Entry, Store},
    view::View,
};

/// Bytes of a request to the API; an edited body is the largest.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Bytes of a refusal's text.
const MAX_REFUSAL: usize = 4096;
/// Changes of this time are told together.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// What the API works on.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(crate) store: Arc<Store>,
    pub(crate) mask: Mask,
    pub(crate) guard: Guard,
    pub(crate) client: Arc<Client>,
    /// Tunnels that were opened through the API.
    pub(crate) opened: std::sync::Mutex<Vec<Tunnel>>,
}

pub(crate) type Inspected = Arc<Inspection>;

retunnel_proto::stable_codes! {
    /// Why a call failed.
    pub(crate) enum FailureCode {
        /// The API cannot read the request.
        InvalidRequest = "invalid_request";
        /// An edited request is not valid or would send masks.
        ReplayInvalid = "replay_invalid";
        /// A tunnel cannot be opened as asked.
        TunnelInvalid = "tunnel_invalid";
        /// The host name is not the inspector's.
        HostNotAllowed = "host_not_allowed";
        /// A page of another site asked.
        OriginNotAllowed = "origin_not_allowed";
        /// Something acts without a token and does not look like a script.
        TokenRequired = "token_required";
        /// The page is of an earlier run.
        TokenInvalid = "token_invalid";
        /// There is no such exchange, tunnel or page.
        NotFound = "not_found";
        /// The path is asked for with another method.
        MethodNotAllowed = "method_not_allowed";
        /// A replay needs a body of which only the beginning was kept.
        BodyNotCaptured = "body_not_captured";
        /// The local service takes no connection.
        LocalUnreachable = "local_unreachable";
        /// The server does not open the tunnel.
        TunnelRefused = "tunnel_refused";
    }
}

/// A failed call.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    pub(crate) code: FailureCode,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: FailureCode, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            FailureCode::NotFound,
            format!("there is no such {what}; it may have been dropped"),
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // The second half is what scripts for ngrok's agent look at.
        let body = json!({
            "code": self.code.as_str(), "detail": self.detail,
            "error_code": if self.status == StatusCode::NOT_FOUND { 100 } else { 102 },
            "status_code": self.status.as_u16(), "msg": self.detail, "details": { "err": self.detail },
        });
        (self.status, Json(body)).into_response()
    }
}

pub(crate) type Answer = Result<Json<Value>, Failure>;

/// How something is to be shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Shown {
    reveal: String,
    raw: String,
}

fn is_set(text: &str) -> bool {
    matches!(text, "1" | "true")
}

impl Inspection {
    pub(crate) fn view(&self, shown: &Shown) -> View<'_> {
        View::new(&self.mask, is_set(&shown.reveal))
    }

    pub(crate) fn entry(&self, id: u64) -> Result<Arc<Entry>, Failure> {
        self.store.find(id).ok_or_else(|| Failure::not_found("exchange"))
    }

    /// Where a tunnel's requests go.
    pub(crate) fn target(&self, name: &str) -> Result<LocalTarget, Failure> {
        let mut tunnels = self.client.tunnels().into_iter().map(|(info, _)| info);
        tunnels.find(|info| info.name == name).map(|info| info.target).ok_or_else(|| Failure::not_found("tunnel"))
    }
}

/// All routes.
pub(crate) fn router(state: Inspected) -> Router {
    Router::new()
        .route("/api/status", get(status))
        .route("/api/events", get(events))
        .route("/api/requests", get(list).delete(clear))
        .route("/api/requests/{id}", get(detail))
        .route("/api/requests/{id}/body/{side}", get(body))
        .route("/api/requests/{id}/curl", get(curl))
        .route("/api/requests/{id}/replay", post(replay))
        .route("/api/har", get(har))
        .route("/api/pause", post(pause))
        .merge(ngrok::routes())
        .fallback(get(pages::page))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::map_response(as_failure))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard::guard))
        .with_state(state)
}

/// What the router and the readers of requests refuse has the form of every other failure.
async fn as_failure(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !status.is_client_error() || is_json {
        return response;
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return Failure::new(status, FailureCode::MethodNotAllowed, "this is asked for with another method")
            .into_response();
    }
    let text = axum::body::to_bytes(response.into_body(), MAX_REFUSAL).await.unwrap_or_default();
    Failure::new(status, FailureCode::InvalidRequest, String::from_utf8_lossy(&text)).into_response()
}

async fn status(State(state): State<Inspected>) -> Json<Value> {
    let session = state.client.session();
    Json(json!({
        "version": retunnel_client::VERSION,
        "online": session.is_some(),
        "server": session.map(|session| session.server),
        "paused": state.store.is_paused(),
        "body_limit": state.store.body_limit,
        "tunnels": state.client.tunnels().iter().map(|(info, _)| json!({
            "name": info.name, "url": info.url, "target": info.target.to_string(), "protocol": info.protocol.as_str(),
        })).collect::<Vec<_>>(),
    }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Search {
    text: String,
}

/// All exchanges, or those with a text somewhere in their heads, bodies or messages.
async fn list(State(state): State<Inspected>, Query(shown): Query<Shown>, Query(search): Query<Search>) -> Json<Value> {
    let view = state.view(&shown);
    let text = search.text.to_lowercase();
    let all = state.store.all();
    let found = all.iter().filter(|entry| text.is_empty() || view.contains(&entry.record(), &text));
    let requests: Vec<Value> = found.map(|entry| view.summary(entry)).collect();
    Json(json!({ "requests": requests, "paused": state.store.is_paused() }))
}

async fn detail(State(state): State<Inspected>, Path(id): Path<u64>, Query(shown): Query<Shown>) -> Answer {
    Ok(Json(state.view(&shown).detail(&*state.entry(id)?)))
}

/// A body as a file: decoded and masked, or with `raw` and `reveal` the bytes that passed.
async fn body(
    State(state): State<Inspected>,
    Path((id, side)): Path<(u64, String)>,
    Query(shown): Query<Shown>,
) -> Result<Response, Failure> {
    let entry = state.entry(id)?;
    let record = entry.record();
    let part = match side.as_str() {
        "request" => record.request(),
        "response" => record.response(),
        _ => return Err(Failure::not_found("side")),
    };
    let raw = is_set(&shown.raw) && is_set(&shown.reveal);
    let bytes = if raw { part.body.clone() } else { state.view(&shown).body(part).bytes };
    let name = format!("attachment; filename=\"{side}-{id}.bin\"");
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CONTENT_DISPOSITION, name.as_str())];
    Ok((headers, bytes).into_response())
}

async fn curl(
    State(state): State<Inspected>,
    Path(id): Path<u64>,
    Query(shown): Query<Shown>,
) -> Result<String, Failure> {
    let entry = state.entry(id)?;
    let record = entry.record();
    Ok(export::curl(&record, state.view(&shown)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chosen {
    id: Option<u64>,
    reveal: String,
}

async fn har(State(state): State<Inspected>, Query(chosen): Query<Chosen>) -> Result<Response, Failure> {
    let entries = match chosen.id {
        Some(id) => vec![state.entry(id)?],
        None => state.store.all(),
    };
    let har = export::har(&entries, View::new(&state.mask, is_set(&chosen.reveal)));
    let headers = [(header::CONTENT_DISPOSITION, "attachment; filename=\"retunnel.har\"")];
    Ok((headers, Json(har)).into_response())
}

async fn clear(State(state): State<Inspected>) -> StatusCode {
    state.store.clear();
    StatusCode::NO_CONTENT
}

#[derive(Debug, Deserialize)]
struct Pause {
    paused: bool,
}

async fn pause(State(state): State<Inspected>, Json(pause): Json<Pause>) -> Json<Value> {
    state.store.pause(pause.paused);
    Json(json!({ "paused": pause.paused }))
}

async fn replay(State(state): State<Inspected>, Path(id): Path<u64>, Json(edits): Json<Edits>) -> Answer {
    let times = edits.times.unwrap_or(1);
    if times == 0 || times > replay::MAX_TIMES {
        let detail = format!("a request can be sent 1 to {} times", replay::MAX_TIMES);
        return Err(Failure::new(StatusCode::BAD_REQUEST, FailureCode::ReplayInvalid, detail));
    }
    let ids = replay_times(&state, id, &edits, times).await?;
    Ok(Json(json!({ "ids": ids })))
}

/// Sends a request again, one after the other, and gives the ids of the new exchanges.
pub(crate) async fn replay_times(state: &Inspection, id: u64, edits: &Edits, times: u32) -> Result<Vec<u64>, Failure> {
    let entry = state.entry(id)?;
    let (prepared, tunnel) = {
        let record = entry.record();
        (Prepared::new(&record, edits, &state.mask)?, record.tunnel.clone())
    };
    let target = state.target(&tunnel)?;
    let mut ids = Vec::new();
    for _ in 0..times {
        ids.extend(prepared.send(&state.store, &target, &tunnel, id).await?);
    }
    Ok(ids)
}

/// Changes as they happen. A page that was too slow is told to read everything anew.
async fn events(
    State(state): State<Inspected>,
    Query(shown): Query<Shown>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = state.store.changes();
    let reveal = is_set(&shown.reveal);
    let first = vec![told(&state, reveal, &BTreeSet::new(), true, false)];
    let later = stream::unfold((state, changes), move |(state, mut changes)| async move {
        let (mut ids, mut is_state, mut missed) = (BTreeSet::new(), false, false);
        let mut next = changes.recv().await;
        sleep(TOLD_EVERY).await;
        loop {
            match next {
                Ok(Change::Exchange(id)) => drop(ids.insert(id)),
                Ok(Change::State) => (is_state, missed) = (true, true),
                Err(RecvError::Lagged(_)) => missed = true,
                Err(RecvError::Closed) => return None,
            }
            next = match changes.try_recv() {
                Ok(change) => Ok(change),
                Err(tokio::sync::broadcast::error::TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(_) => break,
            };
        }
        let event = told(&state, reveal, &ids, is_state, missed);
        Some((event, (state, changes)))
    });
    let all = futures_util::StreamExt::chain(stream::iter(first), later);
    Sse::new(all).keep_alive(KeepAlive::default())
}

fn told(
    state: &Inspection,
    reveal: bool,
    ids: &BTreeSet<u64>,
    is_state: bool,
    reload: bool,
) -> Result<Event, Infallible> {
    let view = View::new(&state.mask, reveal);
    let exchanges: Vec<Value> =
        ids.iter().filter_map(|id| state.store.find(*id)).map(|entry| view.summary(&entry)).collect();
    let mut data = json!({ "exchanges": exchanges, "reload": reload });
    if is_state {
        data["paused"] = state.store.is_paused().into();
    }
    Ok(Event::default().data(data.to_string()))
}
