//! One visitor's request, done with the local service by HTTP/1.1: for dialects that carry requests as messages. The
//! native link carries bytes instead and needs nothing of this ([`crate::relay`]).

pub(crate) mod visit;

use std::{io, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use retunnel_proto::rules::{LocalOrigin, RESTORED};
use tokio::task::JoinSet;

use crate::{error::RelayError, service::Service, tap::Side};

/// Headers that concern one connection only (RFC 9110, 7.6.1), and an expectation that the server has answered.
const OF_ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Why an exchange with the local service failed.
pub(crate) fn failed(error: hyper::Error) -> RelayError {
    let is_malformed = error.is_parse();
    let cause = Arc::new(error);
    if is_malformed { RelayError::InvalidAnswer(cause) } else { RelayError::AnswerCut(cause) }
}

/// A body that is there as a whole.
pub(crate) fn whole(body: Bytes) -> RequestBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// A request for the local service, checked: nothing of a peer's text can end a header or name another host.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn request(
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: RequestBody,
) -> Result<Request<RequestBody>, &'static str> {
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| "the method is not valid")?;
    if method == Method::CONNECT || !(target.starts_with('/') || (target == "*" && method == Method::OPTIONS)) {
        return Err("the target is not a path");
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path_and_query(target)?;
    let fields = request.headers_mut();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name is not valid")?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| "a header's value is not valid")?;
        fields.append(name, value);
    }
    if fields.get_all(header::HOST).iter().count() > 1 {
        return Err("there are two hosts");
    }
    strip_hop(fields);
    Ok(request)
}

/// A path that begins with two slashes is not a host.
fn path_and_query(target: &str) -> Result<Uri, &'static str> {
    let invalid = "the target has characters that must be escaped";
    let parts = target.parse::<hyper::http::uri::PathAndQuery>().map_err(|_| invalid)?;
    if parts.as_str() != target {
        return Err(invalid);
    }
    Ok(Uri::from(parts))
}

/// Removes what concerns one connection only.
pub(crate) fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH))
        .collect();
    for name in named.iter().chain(&OF_ONE_HOP) {
        headers.remove(name);
    }
}

/// The local service's answer. Dropping it ends the connection.
pub(crate) struct Exchange {
    pub(crate) response: Response<Incoming>,
    /// Moves the connection's bytes while the answer is read.
    _connection: JoinSet<()>,
}

/// Sends a request and waits for the head of the answer.
///
/// # Errors
/// [`RelayError`].
pub(crate) async fn send(served: &Service, mut request: Request<RequestBody>) -> Result<Exchange, RelayError> {
    let public_origin = served.rules.local_origin.as_ref().map(|local| show(local, request.headers_mut()));
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::try_from(served.target.authority()).unwrap_or(HeaderValue::from_static("localhost"));
        request.headers_mut().insert(header::HOST, host);
    }
    let local = served.connect().await.inspect_err(|error| {
        if let Some(mut tap) = served.tap() {
            tap.seen(Side::Request, &head_of(&request));
            tap.failed(&error.to_string());
        }
    })?;
    let (mut sender, driver) =
        http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(local)).await.map_err(failed)?;
    let mut connection = JoinSet::new();
    connection.spawn(async move {
        // Its failure is the failure of the answer.
        let _ = driver.with_upgrades().await;
    });
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if let (Some(local), Some(public)) = (&served.rules.local_origin, public_origin) {
        restore(local, response.headers_mut(), &public);
    }
    Ok(Exchange { response, _connection: connection })
}

/// Shows the local service its own address in the place of the public one, as servers do it on the native link; gives the public
/// one.
fn show(local: &LocalOrigin, headers: &mut HeaderMap) -> Vec<u8> {
    const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let value = |headers: &HeaderMap, name: &HeaderName| headers.get(name).cloned();
    let host = value(headers, &header::HOST).or_else(|| value(headers, &HOST));
    let host = host.unwrap_or(HeaderValue::from_static(""));
    let proto = value(headers, &PROTO).unwrap_or(HeaderValue::from_static("http"));
    let set = |headers: &mut HeaderMap, name: HeaderName, bytes: &[u8]| {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.insert(name, value);
        }
    };
    if let Some(origin) = value(headers, &header::ORIGIN) {
        set(headers, header::ORIGIN, local.translate(origin.as_bytes(), host.as_bytes()));
    }
    set(headers, header::HOST, local.host());
    set(headers, HOST, local.host());
    set(headers, PROTO, local.scheme());
    set(headers, HeaderName::from_static("x-original-host"), host.as_bytes());
    set(headers, HeaderName::from_static("x-original-proto"), proto.as_bytes());
    [proto.as_bytes(), b"://", host.as_bytes()].concat()
}

/// Turns the local service's address in an answer back into the public one.
fn restore(local: &LocalOrigin, headers: &mut HeaderMap, public_origin: &[u8]) {
    for name in RESTORED {
        let restored = headers.get(name).and_then(|value| local.restored(value.as_bytes(), public_origin));
        if let Some(value) = restored.and_then(|value| HeaderValue::from_bytes(&value).ok()) {
            headers.insert(name, value);
        }
    }
}

/// A request's head as HTTP/1.1 has it.
fn head_of(request: &Request<RequestBody>) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
    for (name, value) in request.headers() {
        head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Whether an answer to `method` has a body, whatever its headers say.
pub(crate) fn has_body(method: &str, status: StatusCode) -> bool {
    method != "HEAD"
        && !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The headers of an answer in order, without what concerns one connection.
pub(crate) fn answer_headers(headers: &mut HeaderMap, text: fn(&[u8]) -> String) -> Vec<(String, String)> {
    strip_hop(headers);
    headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}

/// Bytes of a header as 2.x carries them.
pub(crate) fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Bytes of a header as 3.x carries them; what is not UTF-8 it cannot carry, so that the nearest is sent.
pub(crate) fn utf_8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| latin_1(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Request<RequestBody>, &'static str> {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        request(method, target, &headers, whole(Bytes::new()))
    }

    #[test]
    fn targets_are_paths_and_stay_as_they_are() {
        for target in ["/", "/a%2Fb//c?x=1&y=%20", "//host/x", "/?", "/a?b?c", "/ä", "/x|y^z"] {
            match made("GET", target, &[]) {
                Ok(request) => assert_eq!(request.uri().to_string(), target),
                Err(reason) => panic!("{target}: {reason}"),
            }
        }
        assert_eq!(made("OPTIONS", "*", &[]).expect("valid").uri(), "*");
        for target in ["http://169.254.169.254/", "*", "", "a", "/a b", "/a#b", "/\r\nX: y", "169.254.169.254:80"] {
            assert!(made("GET", target, &[]).is_err(), "{target}");
        }
        assert!(made("CONNECT", "/", &[]).is_err());
        assert!(made("GET\r\n", "/", &[]).is_err());
    }

    #[test]
    fn headers_cannot_smuggle() {
        let request = made(
            "POST",
            "/",
            &[
                ("Host", "a"),
                ("Connection", "X-One, host, content-length"),
                ("X-One", "1"),
                ("Content-Length", "3"),
                ("Transfer-Encoding", "chunked"),
                ("Expect", "100-continue"),
                ("X-Two", "1"),
                ("x-two", "2"),
            ],
        )
        .expect("valid");
        let names: Vec<_> = request.headers().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["host", "content-length", "x-two", "x-two"]);
        for (name, value) in [("X\r\nY", "1"), ("X", "1\r\nY: 2"), (":method", "GET"), ("", "x")] {
            assert!(made("GET", "/", &[(name, value)]).is_err(), "{name} {value}");
        }
        assert!(made("GET", "/", &[("Host", "a"), ("host", "b")]).is_err());
    }
}
