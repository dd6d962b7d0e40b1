//! The web pages. The main page carries the token.

use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{Html, IntoResponse, Response},
};
use rust_embed::RustEmbed;

use super::{
    context::SharedContext,
    failure::{Failure, FailureCode},
};

/// Debug builds read the files from the source tree, so that edits need no new build.
#[derive(RustEmbed)]
#[folder = "web"]
struct Files;

/// A file, or the main page.
pub(crate) async fn page(State(state): State<SharedContext>, uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    let name = if path.is_empty() || path == "inspect/http" { "index.html" } else { path };
    let Some(file) = Files::get(name) else {
        return Failure::new(StatusCode::NOT_FOUND, FailureCode::NotFound, "page not found").into_response();
    };
    if name == "index.html" {
        let text = String::from_utf8_lossy(&file.data).replace("{{token}}", &state.guard.token);
        return Html(text).into_response();
    }
    let kind = match name.rsplit('.').next() {
        Some("mjs" | "js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind)], file.data.into_owned()).into_response()
}
