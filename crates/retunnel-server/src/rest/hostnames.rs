//! Custom host names over REST, with the fields that the published clients read.

use axum::{
    Router,
    extract::{Extension, Path, State},
    http::{HeaderMap, StatusCode},
    routing::{delete, get, post},
};
use retunnel_proto::message::{Refusal, RefusalCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{Answer, ApiCode, ApiError, Input, PeerAddr, RestState};
use crate::{hostnames::Claim, tunnel::address::PublicAddress};

pub(super) fn routes() -> Router<RestState> {
    Router::new()
        .route("/", get(list).post(add))
        .route("/{hostname}", delete(remove))
        .route("/{hostname}/verify", post(verify))
}

fn object(claim: &Claim) -> Value {
    json!({
        "hostname": claim.stored.hostname,
        "verified": claim.stored.is_verified,
        "routable": claim.stored.is_verified,
        // Certificates belong to the proxy that terminates TLS in front of the server.
        "certificate": false,
        "certificate_state": "not_requested",
        "certificate_attempts": 0,
        "certificate_error": null,
        "verification_error": claim.stored.last_error,
        "dns": {
            "cname": { "name": claim.stored.hostname, "value": claim.target },
            "txt": { "name": claim.challenge_name(), "value": claim.stored.challenge },
        },
    })
}

fn invalid(refusal: Refusal) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, ApiCode::HostnameInvalid, refusal.message)
}

fn unknown(hostname: &str) -> ApiError {
    let detail = format!("the host name `{hostname}` is not registered for this account");
    ApiError::new(StatusCode::NOT_FOUND, ApiCode::HostnameNotRegistered, detail)
}

async fn list(State(state): State<RestState>, Extension(peer): Extension<PeerAddr>, headers: HeaderMap) -> Answer {
    let account = state.account(&headers, peer).await?;
    let claims = state.hostnames.list(account.id).await?;
    Ok(axum::Json(json!({ "hostnames": claims.iter().map(object).collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
struct Add {
    hostname: String,
}

async fn add(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    headers: HeaderMap,
    Input(request): Input<Add>,
) -> Answer {
    let account = state.account(&headers, peer).await?;
    let hostname = state.hostnames.valid(request.hostname.trim()).map_err(invalid)?;
    let claim = state.hostnames.add(&hostname, account.id).await?;
    info!(%hostname, account = %account.email, "host name registered");
    Ok(axum::Json(object(&claim)))
}

async fn verify(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    headers: HeaderMap,
    Path(hostname): Path<String>,
) -> Answer {
    let account = state.account(&headers, peer).await?;
    let hostname = state.hostnames.valid(&hostname).map_err(invalid)?;
    let found = state.hostnames.verify(&hostname, &account).await?.ok_or_else(|| unknown(&hostname))?;
    let claim = &found.claim;
    let detail = match (&claim.stored.last_error, claim.stored.is_verified) {
        (Some(error), false) => error.clone(),
        (Some(_), true) => format!("`{hostname}` was verified earlier; its TXT record is gone, which does no harm"),
        (None, _) => format!("`{hostname}` is verified"),
    };
    let hint = (!found.points_here).then(|| {
        format!("`{hostname}` does not point at this server yet: add a CNAME record with the value {}", claim.target)
    });
    let mut answer = object(claim);
    answer["detail"] = detail.into();
    answer["dns_points_at_retunnel"] = found.points_here.into();
    answer["dns_hint"] = hint.into();
    Ok(axum::Json(answer))
}

async fn remove(
    State(state): State<RestState>,
    Extension(peer): Extension<PeerAddr>,
    headers: HeaderMap,
    Path(hostname): Path<String>,
) -> Answer {
    let account = state.account(&headers, peer).await?;
    let hostname = state.hostnames.valid(&hostname).map_err(invalid)?;
    if !state.hostnames.remove(&hostname, account.id).await? {
        return Err(unknown(&hostname));
    }
    let message = format!("the host name `{hostname}` was removed");
    let refusal = Refusal::new(RefusalCode::HostnameNotRegistered, message);
    state.registry.withdraw(&PublicAddress::Host(hostname.clone()), account.id, refusal);
    info!(%hostname, account = %account.email, "host name removed");
    Ok(axum::Json(json!({ "hostname": hostname, "removed": true })))
}
