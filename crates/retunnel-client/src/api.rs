//! The server's REST API, over the same kind of connection as sessions.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use retunnel_proto::message::Token;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    endpoint::ServerEndpoint,
    error::{ApiError, ConnectError},
    transport::{
        Dialer, Socket,
        dialer::ANSWER_WITHIN,
        upgrade::{ERROR, HTTPS_REQUIRED, TUNNEL_NOT_FOUND},
    },
    trust::Trust,
};

const HOSTNAMES: &str = "/api/v1/hostnames";
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// An account as the server reports it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AccountInfo {
    /// The account's id.
    pub id: String,
    /// Its e-mail address.
    pub email: String,
}

/// A custom host name of an account, as the server reports it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Hostname {
    /// The name.
    pub name: String,
    /// Whether the DNS has proven that it belongs to the account.
    pub is_verified: bool,
    /// What the last verification found; empty before the first one.
    pub detail: String,
    /// Name and value of the TXT record that proves it.
    pub txt: (String, String),
    /// Name and value of the CNAME record that leads visitors to the server.
    pub cname: (String, String),
    /// Why visitors do not reach the server by this name, if a verification found that.
    pub dns_hint: Option<String>,
}

/// Calls the REST API of one server.
#[doc(alias = "ReTunnelAPIClient")]
#[doc(alias = "APIClient")]
#[derive(Debug, Clone)]
pub struct ApiClient {
    dialer: Dialer,
}

impl ApiClient {
    /// A client for this server without a proxy. [`crate::ClientBuilder::api`] returns one with all values of a client.
    /// `insecure` accepts any certificate.
    #[must_use]
    pub fn new(endpoint: ServerEndpoint, insecure: bool) -> Self {
        let trust = if insecure { Trust::everything() } else { Trust::default() };
        Self { dialer: Dialer::direct(endpoint, trust) }
    }

    pub(crate) const fn over(dialer: Dialer) -> Self {
        Self { dialer }
    }

    /// Creates an account and returns its token. `email: None` creates an anonymous one.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn register(&self, email: Option<&str>, invite: Option<&str>) -> Result<Token, ApiError> {
        let anonymous;
        let email = match email {
            Some(email) => email,
            None => {
                anonymous = format!("anon-{}@retunnel.com", retunnel_proto::random_text(12));
                &anonymous
            }
        };
        let mut body = json!({ "email": email });
        if let Some(invite) = invite {
            body["invite"] = invite.into();
        }
        token_in(&self.call(Method::POST, "/api/v1/auth/register", None, Some(body)).await?)
    }

    /// The account that a token belongs to.
    ///
    /// # Errors
    /// [`ApiError`]; status 401 when it is not valid.
    pub async fn verify_token(&self, token: &Token) -> Result<AccountInfo, ApiError> {
        let body = json!({ "old_token": token.expose() });
        account_in(&self.call(Method::POST, "/api/v1/auth/verify-token", None, Some(body)).await?)
    }

    /// The account of a token.
    ///
    /// # Errors
    /// [`ApiError`]; status 401 when it is not valid.
    pub async fn me(&self, token: &Token) -> Result<AccountInfo, ApiError> {
        account_in(&self.call(Method::GET, "/api/v1/users/me", Some(token), None).await?)
    }

    /// Whether a token is valid.
    ///
    /// # Errors
    /// [`ApiError`] when the server does not say.
    pub async fn verify(&self, token: &Token) -> Result<bool, ApiError> {
        match self.call(Method::GET, "/api/v1/auth/verify", Some(token), None).await {
            Ok(_) => Ok(true),
            Err(ApiError::Status { status: 401, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Replaces a token by a new one. The old one stops working.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn refresh(&self, token: &Token) -> Result<Token, ApiError> {
        token_in(&self.call(Method::POST, "/api/v1/auth/refresh", Some(token), None).await?)
    }

    /// The same as [`Self::refresh`], by the name that `token rotate` of the published clients uses.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn login(&self, token: &Token) -> Result<Token, ApiError> {
        token_in(&self.call(Method::POST, "/api/v1/auth/login", Some(token), None).await?)
    }

    /// A token for an account whose token expired.
    ///
    /// # Errors
    /// [`ApiError`]; status 404 when the token was never known or was replaced.
    pub async fn reactivate_token(&self, old: &Token) -> Result<Token, ApiError> {
        let body = json!({ "old_token": old.expose() });
        token_in(&self.call(Method::POST, "/api/v1/auth/reactivate-token", None, Some(body)).await?)
    }

    /// Whether what answers is a ReTunnel server of this project. Sends no token.
    ///
    /// # Errors
    /// [`ApiError`] when there is no answer.
    pub async fn is_retunnel(&self) -> Result<bool, ApiError> {
        match self.call(Method::GET, "/api/v1/server", None, None).await {
            Ok(about) => Ok(about["server"] == "retunnel"),
            Err(ApiError::Status { .. } | ApiError::Answer(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The custom host names of an account.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn hostnames(&self, token: &Token) -> Result<Vec<Hostname>, ApiError> {
        let value = self.call(Method::GET, HOSTNAMES, Some(token), None).await?;
        let list =
            value["hostnames"].as_array().ok_or_else(|| ApiError::Answer("no host names in the answer".into()))?;
        list.iter().map(hostname_in).collect()
    }

    /// Claims a custom host name for an account.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn add_hostname(&self, token: &Token, name: &str) -> Result<Hostname, ApiError> {
        let body = json!({ "hostname": name });
        hostname_in(&self.call(Method::POST, HOSTNAMES, Some(token), Some(body)).await?)
    }

    /// Lets the server look for the DNS records of a host name.
    ///
    /// # Errors
    /// [`ApiError`]. A name that is not proven is not an error: see [`Hostname::is_verified`].
    pub async fn verify_hostname(&self, token: &Token, name: &str) -> Result<Hostname, ApiError> {
        let path = format!("{HOSTNAMES}/{}/verify", in_path(name));
        hostname_in(&self.call(Method::POST, &path, Some(token), None).await?)
    }

    /// Gives a host name up and closes its tunnel.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn remove_hostname(&self, token: &Token, name: &str) -> Result<(), ApiError> {
        let path = format!("{HOSTNAMES}/{}", in_path(name));
        self.call(Method::DELETE, &path, Some(token), None).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&Token>,
        body: Option<Value>,
    ) -> Result<Value, ApiError> {
        let call = self.exchange(method, path, token, body);
        timeout(ANSWER_WITHIN, call)
            .await
            .unwrap_or_else(|_| Err(ApiError::Connect(Box::new(self.dialer.too_slow(ANSWER_WITHIN)))))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        token: Option<&Token>,
        body: Option<Value>,
    ) -> Result<Value, ApiError> {
        let socket = self.dialer.connect().await.map_err(|error: ConnectError| ApiError::Connect(Box::new(error)))?;
        let Answer { status, headers, value } =
            ask(socket, &self.dialer.endpoint.authority(), method, path, token, body).await?;
        let endpoint = || self.dialer.endpoint.clone();
        match headers.get(ERROR).and_then(|code| code.to_str().ok()) {
            Some(HTTPS_REQUIRED) => {
                return Err(ApiError::Connect(Box::new(ConnectError::TlsRequired { endpoint: endpoint() })));
            }
            Some(TUNNEL_NOT_FOUND) => {
                return Err(ApiError::Connect(Box::new(ConnectError::OtherDomain { endpoint: endpoint() })));
            }
            _ => {}
        }
        if status >= 400 {
            let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
            let detail = text("detail").or_else(|| text("error")).unwrap_or_else(|| "Unknown error".into());
            let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(ApiError::Status { status, code: text("code").unwrap_or_default(), detail, retry_after });
        }
        if value.is_object() { Ok(value) } else { Err(ApiError::Answer("not a JSON object".into())) }
    }
}

/// The answer to a request, whatever its status.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Null when the body is not JSON.
    pub(crate) value: Value,
}

/// One request and its answer on a separate connection.
pub(crate) async fn ask(
    socket: Socket,
    host: &str,
    method: Method,
    path: &str,
    token: Option<&Token>,
    body: Option<Value>,
) -> Result<Answer, ApiError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(failed)?;
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let request = request.body(Full::new(body)).map_err(|error| ApiError::Answer(error.to_string()))?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| ApiError::Answer(error.to_string()))?.to_bytes();
        let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, value })
    };
    // This task drives the connection while it waits for the answer.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        ended = &mut connection => {
            ended.map_err(failed)?;
            answer.await
        }
    }
}

fn failed(error: hyper::Error) -> ApiError {
    ApiError::Http(Arc::new(error))
}

fn token_in(value: &Value) -> Result<Token, ApiError> {
    value["auth_token"]
        .as_str()
        .or_else(|| value["token"].as_str())
        .map(Token::new)
        .ok_or_else(|| ApiError::Answer("no token in the answer".into()))
}

fn hostname_in(value: &Value) -> Result<Hostname, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let record = |kind: &str| (text(&value["dns"][kind]["name"]), text(&value["dns"][kind]["value"]));
    let name = value["hostname"].as_str().ok_or_else(|| ApiError::Answer("no host name in the answer".into()))?;
    Ok(Hostname {
        name: name.to_owned(),
        is_verified: value["verified"].as_bool().unwrap_or_default(),
        detail: value["detail"]
            .as_str()
            .or_else(|| value["verification_error"].as_str())
            .unwrap_or_default()
            .to_owned(),
        txt: record("txt"),
        cname: record("cname"),
        dns_hint: value["dns_hint"].as_str().map(str::to_owned),
    })
}

/// A name as one segment of a path. What no host name contains is replaced, so that the server refuses it.
fn in_path(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '_' }).collect()
}

fn account_in(value: &Value) -> Result<AccountInfo, ApiError> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let id = text("user_id").or_else(|| text("id"));
    match (id, text("email")) {
        (Some(id), Some(email)) => Ok(AccountInfo { id, email }),
        _ => Err(ApiError::Answer("no account in the answer".into())),
    }
}
