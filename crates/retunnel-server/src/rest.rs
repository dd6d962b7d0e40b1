//! The REST API: accounts, tokens, health. Paths and fields are those the published clients use
//! (`docs/protocol.md`); every answer below `/api` is a JSON object.

mod code;
mod hostnames;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Extension, FromRequest, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use retunnel_proto::{message::Token, native};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info};

pub use code::ApiCode;

use crate::{
    auth::{Account, Auth, AuthError},
    config::{Registration, ServerConfig},
    hostnames::Hostnames,
    html::escape,
    limits::RateLimits,
    net::{handover::ApiRequest, rewind::Rewind},
    registry::Registry,
    running::Running,
    store::StoreError,
};

/// Largest request body. The largest real one is a token.
const MAX_BODY: usize = 16 * 1024;
/// Longest e-mail address (RFC 5321).
const MAX_EMAIL: usize = 254;

/// How long a request may take to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long request and answer may take together. The slowest call looks up host names.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(30);

/// How long the database may take to show that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// How long the result of a readiness check is kept.
const READINESS_KEPT: Duration = Duration::from_secs(1);

/// Who sent a request.
#[derive(Debug, Clone, Copy)]
struct PeerAddr(SocketAddr);

/// The API as a service of connections.
#[derive(Debug)]
pub(crate) struct Rest {
    router: Router,
    running: Arc<Running>,
}

impl Rest {
    pub(crate) fn new(state: RestState) -> Self {
        Self { running: Arc::clone(&state.running), router: router(state) }
    }

    /// Serves one request. The connection is closed after it, so that a later request cannot name another host.
    pub(crate) async fn serve(&self, request: ApiRequest) {
        let peer = request.visitor;
        let io = Rewind::new(request.received, request.socket);
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer));
            let router = router.clone();
            async move {
                let answer = hyper::service::Service::call(&router, request).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
            }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WITHIN)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service);
        tokio::select! {
            result = timeout(EXCHANGE_WITHIN, serving) => match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%peer, %error, "REST connection failed"),
                Err(_) => debug!(%peer, "REST exchange took too long"),
            },
            () = self.running.stopping.cancelled() => {}
        }
    }
}

/// What the API needs.
#[derive(Debug, Clone)]
pub(crate) struct RestState {
    pub(crate) auth: Auth,
    pub(crate) hostnames: Arc<Hostnames>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rates: Arc<RateLimits>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) address: SocketAddr,
    pub(crate) running: Arc<Running>,
    pub(crate) readiness: Arc<Readiness>,
}

/// Whether the accounts can be read and written. The result is kept for a moment, so that nobody makes the server write all
/// the time.
#[derive(Debug, Default)]
pub(crate) struct Readiness(tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>);

impl Readiness {
    async fn check(&self, auth: &Auth) -> Result<(), String> {
        let mut last = self.0.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < READINESS_KEPT
        {
            return result.clone();
        }
        let result = match timeout(READY_WITHIN, auth.check()).await {
            Ok(result) => result.map_err(|cause| cause.to_string()),
            Err(_) => Err("the database does not answer; it may be locked".into()),
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

/// A failed call.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    code: ApiCode,
    detail: String,
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, code: ApiCode, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }

    fn invalid_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ApiCode::Unauthorized, "Invalid auth token")
    }

    fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ApiCode::InvalidRequest, detail)
    }
}

impl From<StoreError> for ApiError {
    fn from(cause: StoreError) -> Self {
        if matches!(cause, StoreError::EmailTaken) {
            return Self::new(StatusCode::CONFLICT, ApiCode::EmailTaken, cause.to_string());
        }
        if matches!(cause, StoreError::InviteInvalid) {
            return Self::new(StatusCode::FORBIDDEN, ApiCode::InviteInvalid, cause.to_string());
        }
        if matches!(cause, StoreError::HostnameTaken) {
            return Self::new(StatusCode::CONFLICT, ApiCode::HostnameTaken, cause.to_string());
        }
        if matches!(cause, StoreError::HostnameLimit(_)) {
            return Self::new(StatusCode::FORBIDDEN, ApiCode::HostnameLimit, cause.to_string());
        }
        error!(%cause, "accounts cannot be read or written");
        let detail = "the server cannot reach its accounts now; try again in a moment";
        Self { retry_after: Some(2), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, ApiCode::StoreUnavailable, detail) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "detail": self.detail, "code": self.code.as_str() });
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

type Answer = Result<axum::Json<Value>, ApiError>;

/// All routes.
fn router(state: RestState) -> Router {
    let auth = Router::new()
        .route("/register", post(register))
        .route("/verify", get(verify))
        .route("/verify-token", post(verify_token))
        .route("/refresh", post(refresh))
        .route("/login", post(login))
        .route("/reactivate-token", post(reactivate));
    Router::new()
        .route("/", get(landing))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .nest("/api/v1/auth", auth)
        .nest("/api/v1/hostnames", hostnames::routes())
        .route("/api/v1/server", get(about))
        .route("/api/v1/users/me", get(me))
        .route("/api/v1/link", get(upgrade_required))
        .route("/api/v1/ws/tunnel", get(upgrade_required))
        .route("/api/v1/ws/proxy", get(upgrade_required))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, ApiCode::NotFound, "this path does not exist") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ApiCode::MethodNotAllowed,
                "this path does not support the method",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

async fn upgrade_required() -> Response {
    let detail = "this path opens a session: send `Upgrade: retunnel` or `Upgrade: websocket`";
    let mut response = ApiError::new(StatusCode::UPGRADE_REQUIRED, ApiCode::UpgradeRequired, detail).into_response();
    response.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("retunnel, websocket"));
    response
}

/// A request's JSON. The content type is not checked: the published clients differ there.
struct Input<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Ok(arrived) = timeout(REQUEST_WITHIN, Bytes::from_request(request, state)).await else {
            let detail = "the body did not arrive in time";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, ApiCode::InvalidRequest, detail));
        };
        let body = arrived.map_err(|refused| match refused.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("the body is larger than {MAX_BODY} bytes");
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, ApiCode::RequestTooLarge, detail)
            }
            _ => ApiError::bad_request("the body did not arrive"),
        })?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| ApiError::bad_request(format!("the body is not the expected JSON: {error}")))
    }
}

fn bearer(headers: &HeaderMap) -> Result<Token, ApiError> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Token::new(token.trim()))
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                ApiCode::AuthRequired,
                "the request has no `Authorization: Bearer` header",
            )
        })
}

impl RestState {
    /// Maps a failed check to an answer and counts it against the peer.
    fn failed(&self, peer: PeerAddr, cause: AuthError) -> ApiError {
        match cause {
            AuthError::Invalid => match self.rates.failed_authentication(peer.0.ip()) {
                Ok(()) => ApiError::invalid_token(),
                Err(seconds) => ApiError {
                    retry_after: Some(seconds),
                    ..ApiError::new(
                        StatusCode::TOO_MANY_REQUESTS,
                        ApiCode::RateLimited,
                        "too many failed authentications",
                    )
                },
            },
            AuthError::Store(cause) => cause.into(),
        }
    }

    async fn account(&self, headers: &HeaderMap, peer: PeerAddr) -> Result<Account, ApiError> {
        let token = bearer(headers)?;
        self.auth.authenticate(&token).await.map_err(|cause| self.failed(peer, cause))
    }
}

#[derive(Deserialize)]
struct Register {
    email: String,
    #[serde(default)]
    invite: Option<String>,
}

async fn register(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    Input(request): Input<Register>,
) -> Answer {
    let email = request.email.trim();
    let is_address = email.split_once('@').is_some_and(|(user, domain)| !user.is_empty() && !domain.is_empty());
    if !is_address || email.len() > MAX_EMAIL || email.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(ApiError::bad_request("`email` is not an e-mail address"));
    }
    state.rates.registration(peer.0.ip()).map_err(|seconds| ApiError {
        retry_after: Some(seconds),
        ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, ApiCode::RateLimited, "too many registrations from this address")
    })?;
    let invite = match state.config.registration {
        Registration::Open => None,
        Registration::Invite => Some(request.invite.as_deref().ok_or_else(|| {
            let detail = "this server registers accounts by invitation only; ask its operator for a token or a code";
            ApiError::new(StatusCode::FORBIDDEN, ApiCode::InviteRequired, detail)
        })?),
        Registration::Closed => {
            let detail = "this server registers no accounts; ask its operator for a token";
            return Err(ApiError::new(StatusCode::FORBIDDEN, ApiCode::RegistrationClosed, detail));
        }
    };
    let (id, token) = state.auth.register(email, invite).await?;
    info!(account = %email, peer = %peer.0, "account registered");
    let id = id.to_string();
    Ok(axum::Json(json!({
        "id": id, "user_id": id, "email": email, "auth_token": token.expose(), "token": token.expose(),
    })))
}

async fn verify(State(state): State<RestState>, Extension(peer): Extension<PeerAddr>, headers: HeaderMap) -> Answer {
    let account = state.account(&headers, peer).await?;
    Ok(axum::Json(json!({ "valid": true, "user_id": account.id.to_string(), "email": account.email })))
}

async fn me(State(state): State<RestState>, Extension(peer): Extension<PeerAddr>, headers: HeaderMap) -> Answer {
    let account = state.account(&headers, peer).await?;
    let id = account.id.to_string();
    Ok(axum::Json(json!({ "id": id, "user_id": id, "email": account.email })))
}

#[derive(Deserialize)]
struct OldToken {
    old_token: Token,
}

async fn verify_token(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    Input(request): Input<OldToken>,
) -> Answer {
    let account = state.auth.authenticate(&request.old_token).await.map_err(|cause| state.failed(peer, cause))?;
    Ok(axum::Json(json!({ "valid": true, "user_id": account.id.to_string(), "email": account.email })))
}

async fn reactivate(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    Input(request): Input<OldToken>,
) -> Answer {
    let (account, token) = match state.auth.reactivate(&request.old_token).await {
        Ok(done) => done,
        // The published clients register again on 404.
        Err(AuthError::Invalid) => {
            let refused = state.failed(peer, AuthError::Invalid);
            return Err(match refused.status {
                StatusCode::UNAUTHORIZED => {
                    ApiError::new(StatusCode::NOT_FOUND, ApiCode::TokenUnknown, "this token is not known")
                }
                _ => refused,
            });
        }
        Err(cause) => return Err(state.failed(peer, cause)),
    };
    Ok(axum::Json(json!({ "auth_token": token.expose(), "token": token.expose(), "email": account.email })))
}

async fn rotate(state: &RestState, peer: PeerAddr, headers: &HeaderMap) -> Answer {
    let (account, token) = state.auth.rotate(&bearer(headers)?).await.map_err(|cause| state.failed(peer, cause))?;
    info!(account = %account.email, "token replaced");
    Ok(axum::Json(json!({
        "auth_token": token.expose(), "token": token.expose(), "user_id": account.id.to_string(), "email": account.email,
    })))
}

async fn refresh(State(state): State<RestState>, Extension(peer): Extension<PeerAddr>, headers: HeaderMap) -> Answer {
    rotate(&state, peer, &headers).await
}

async fn login(State(state): State<RestState>, Extension(peer): Extension<PeerAddr>, headers: HeaderMap) -> Answer {
    rotate(&state, peer, &headers).await
}

/// What may connect, and who may create an account: for clients that diagnose a failure.
async fn about(State(state): State<RestState>) -> axum::Json<Value> {
    axum::Json(json!({
        "server": "retunnel",
        "version": crate::version::VERSION,
        "link_version": native::VERSION,
        "dialects": ["native", "3", "2"],
        "registration": state.config.registration,
    }))
}

async fn readyz(State(state): State<RestState>) -> Result<&'static str, ApiError> {
    let (code, detail) = if !state.running.is_ready() {
        (ApiCode::ShuttingDown, "the server is stopping".to_owned())
    } else if let Err(reason) = state.readiness.check(&state.auth).await {
        (ApiCode::StoreUnavailable, reason)
    } else {
        return Ok("ready\n");
    };
    Err(ApiError { retry_after: Some(2), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) })
}

/// The page at the server's own address.
async fn landing(State(state): State<RestState>) -> Html<String> {
    let base = state.config.base_url(state.address.port());
    let server = escape(base.strip_prefix("http://").unwrap_or(&base));
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>ReTunnel</title>\
         <style>:root{{color-scheme:light dark}}body{{margin:0;min-height:100vh;display:grid;place-items:center;\
         font:16px/1.6 system-ui,sans-serif;background:light-dark(#f5f6f8,#14161a);color:light-dark(#1c1f24,#e8eaed)}}\
         main{{max-width:38rem;margin:1.5rem}}pre{{padding:1rem 1.2rem;border-radius:10px;overflow:auto;\
         background:light-dark(#e9ebef,#23262d)}}</style></head><body><main><h1>ReTunnel</h1>\
         <p>This server gives local services a public address. To publish port 8080 of your machine:</p>\
         <pre>retunnel http 8080 --server {server}</pre>\
         <p>The tunnel's URL is printed when it is open.</p></main></body></html>\n"
    ))
}
