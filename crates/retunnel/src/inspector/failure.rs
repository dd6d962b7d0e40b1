//! Why a call of the local API failed.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// Maximum bytes of the text of a rejected request.
const MAX_DETAIL: usize = 4096;

retunnel_proto::stable_codes! {
    /// Why a call failed.
    pub(crate) enum FailureCode {
        /// The request cannot be parsed.
        InvalidRequest = "invalid_request";
        /// The edited request is not valid or would send masked values.
        ReplayInvalid = "replay_invalid";
        /// The tunnel's settings are not valid.
        TunnelInvalid = "tunnel_invalid";
        /// The host name does not belong to the inspector.
        HostNotAllowed = "host_not_allowed";
        /// The request came from a page of another site.
        OriginNotAllowed = "origin_not_allowed";
        /// A request that changes something has no token and does not look like one of a script.
        TokenRequired = "token_required";
        /// The page was loaded from an earlier run.
        TokenInvalid = "token_invalid";
        /// There is no such exchange, tunnel or page.
        NotFound = "not_found";
        /// The path does not support the method.
        MethodNotAllowed = "method_not_allowed";
        /// The replay needs a body of which only the beginning was captured.
        BodyNotCaptured = "body_not_captured";
        /// The local service does not accept connections.
        LocalUnreachable = "local_unreachable";
        /// The server refused the tunnel.
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
        Self::new(StatusCode::NOT_FOUND, FailureCode::NotFound, format!("{what} not found; it may have been dropped"))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // The second half is for scripts written for ngrok's agent.
        let body = json!({
            "code": self.code.as_str(), "detail": self.detail,
            "error_code": if self.status == StatusCode::NOT_FOUND { 100 } else { 102 },
            "status_code": self.status.as_u16(), "msg": self.detail, "details": { "err": self.detail },
        });
        (self.status, Json(body)).into_response()
    }
}

pub(crate) type Answer = Result<Json<Value>, Failure>;

/// Gives rejections of the router and of extractors the same form as every other failure.
pub(crate) async fn as_failure(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !status.is_client_error() || is_json {
        return response;
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return Failure::new(status, FailureCode::MethodNotAllowed, "this path does not support the method")
            .into_response();
    }
    let text = axum::body::to_bytes(response.into_body(), MAX_DETAIL).await.unwrap_or_default();
    Failure::new(status, FailureCode::InvalidRequest, String::from_utf8_lossy(&text)).into_response()
}
