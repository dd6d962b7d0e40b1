//! The local API for pages and scripts (`docs/inspector.md`). Reading changes nothing.

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
use retunnel_client::tap::Side;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::broadcast::error::RecvError, time::sleep};

use super::{
    context::{Context, SharedContext, ViewOptions},
    decode::Budget,
    export,
    failure::{Answer, Failure, as_failure},
    guard, ngrok, pages,
    replay::Edits,
    store::Change,
    streamed,
    view::View,
};

/// Maximum bytes of a request to the API. Edited bodies are the largest.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Changes within this time are sent as one event.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// All routes.
pub(crate) fn router(state: SharedContext) -> Router {
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
        .layer(middleware::from_fn_with_state(Arc::clone(&state.guard), guard::guard))
        .with_state(state)
}

async fn status(State(state): State<SharedContext>) -> Json<Value> {
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

/// All exchanges, or those that contain a text in their heads, bodies or messages. The newest are searched first, because
/// the budget may not last for all.
async fn list(
    State(state): State<SharedContext>,
    Query(options): Query<ViewOptions>,
    Query(search): Query<Search>,
) -> Json<Value> {
    let mut found = state.store.all();
    let mut is_complete = true;
    if !search.text.is_empty() {
        let text: Arc<str> = search.text.to_lowercase().into();
        let mut budget = Budget::of_answer();
        for entry in std::mem::take(&mut found).into_iter().rev() {
            let (text, options, searched) = (Arc::clone(&text), options.clone(), Arc::clone(&entry));
            let contains;
            (contains, budget) = state
                .work(move |state| {
                    let contains = state.view(&options).contains(&searched.snapshot(), &text, &mut budget);
                    (contains, budget)
                })
                .await;
            is_complete &= contains.is_some();
            if contains == Some(true) {
                found.push(entry);
            }
        }
        found.reverse();
    }
    let requests: Vec<Value> = state
        .work(move |state| {
            let view = state.view(&options);
            found.iter().map(|entry| view.summary(entry)).collect()
        })
        .await;
    Json(json!({ "requests": requests, "paused": state.store.is_paused(), "complete": is_complete }))
}

async fn detail(State(state): State<SharedContext>, Path(id): Path<u64>, Query(options): Query<ViewOptions>) -> Answer {
    let entry = state.entry(id)?;
    Ok(Json(state.work(move |state| state.view(&options).detail(&entry)).await))
}

/// A body as a file: decoded and masked, or with `raw` and `reveal` the original bytes.
async fn body(
    State(state): State<SharedContext>,
    Path((id, side)): Path<(u64, String)>,
    Query(options): Query<ViewOptions>,
) -> Result<Response, Failure> {
    let entry = state.entry(id)?;
    let wanted = match side.as_str() {
        "request" => Side::Request,
        "response" => Side::Response,
        _ => return Err(Failure::not_found("side")),
    };
    let bytes = state
        .work(move |state| {
            let part = entry.record().parts[wanted].clone();
            if options.raw() { part.body } else { state.view(&options).body(&part, &mut Budget::of_answer()).bytes }
        })
        .await;
    let name = format!("attachment; filename=\"{side}-{id}.bin\"");
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CONTENT_DISPOSITION, name.as_str())];
    Ok((headers, bytes).into_response())
}

async fn curl(
    State(state): State<SharedContext>,
    Path(id): Path<u64>,
    Query(options): Query<ViewOptions>,
) -> Result<String, Failure> {
    let entry = state.entry(id)?;
    Ok(state.work(move |state| export::curl(&entry.snapshot(), state.view(&options))).await)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HarOptions {
    id: Option<u64>,
}

async fn har(
    State(state): State<SharedContext>,
    Query(har): Query<HarOptions>,
    Query(options): Query<ViewOptions>,
) -> Result<Response, Failure> {
    let entries = match har.id {
        Some(id) => vec![state.entry(id)?],
        None => state.store.all(),
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"retunnel.har\""),
    ];
    let (before, after) = export::har_frame();
    let body = streamed::list(state, entries, before, after, move |state, entry, budget| {
        export::har_entry(&entry.snapshot(), state.view(&options), budget)
    });
    Ok((headers, body).into_response())
}

async fn clear(State(state): State<SharedContext>) -> StatusCode {
    state.store.clear();
    StatusCode::NO_CONTENT
}

#[derive(Debug, Deserialize)]
struct Pause {
    paused: bool,
}

async fn pause(State(state): State<SharedContext>, Json(pause): Json<Pause>) -> Json<Value> {
    state.store.pause(pause.paused);
    Json(json!({ "paused": pause.paused }))
}

async fn replay(State(state): State<SharedContext>, Path(id): Path<u64>, Json(edits): Json<Edits>) -> Answer {
    let ids = state.replay(id, &edits).await?;
    Ok(Json(json!({ "ids": ids })))
}

/// Changes as they happen. A page that was too slow is asked to reload everything.
async fn events(
    State(state): State<SharedContext>,
    Query(options): Query<ViewOptions>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = state.store.changes();
    let reveal = options.reveal();
    let first = vec![change_event(&state, reveal, &BTreeSet::new(), true, false)];
    let later = stream::unfold((state, changes), move |(state, mut changes)| async move {
        let (mut ids, mut is_state, mut missed) = (BTreeSet::new(), false, false);
        let mut next = changes.recv().await;
        sleep(EVENT_INTERVAL).await;
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
        let event = state.work(move |state| change_event(state, reveal, &ids, is_state, missed)).await;
        Some((event, (state, changes)))
    });
    let all = futures_util::StreamExt::chain(stream::iter(first), later);
    Sse::new(all).keep_alive(KeepAlive::default())
}

fn change_event(
    state: &Context,
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
