//! A visitor's request, and its checks: nothing of a peer's text can end a header or name another host.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request as HttpRequest, StatusCode, Uri,
    header::{self, HeaderName, HeaderValue},
};
use retunnel_proto::{PageCode, rules::BasicAuth};

use super::{headers::strip_hop, own::OwnAnswer};

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A complete body.
pub(crate) fn whole(body: Bytes) -> RequestBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// A visitor's request, as a dialect hands it over. Its texts come from a peer and are not checked yet.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: RequestBody,
    /// The body is complete: its own length counts, whatever the headers say.
    pub(crate) is_whole: bool,
    /// Headers for the connection to the local service, for example `Upgrade`.
    pub(crate) hop: HeaderMap,
}

impl Request {
    /// The request for the local service.
    ///
    /// # Errors
    /// The answer for the visitor, who may not make this request or whose request is not valid.
    pub(super) fn checked(mut self, passwords: &[BasicAuth]) -> Result<HttpRequest<RequestBody>, OwnAnswer> {
        if !passwords.is_empty() {
            let is_credentials = |(name, _): &mut (String, String)| name.eq_ignore_ascii_case("authorization");
            // They are removed: the local service does not receive them.
            let given: Vec<(String, String)> = self.headers.extract_if(.., is_credentials).collect();
            if !passwords.iter().all(|password| password.admits(given.iter().map(|(_, value)| value.as_bytes()))) {
                return Err(OwnAnswer::unauthorized());
            }
        }
        self.http().map_err(|reason| OwnAnswer::new(StatusCode::BAD_REQUEST, PageCode::BadRequest, reason))
    }

    fn http(self) -> Result<HttpRequest<RequestBody>, &'static str> {
        let Self { method, target, headers, body, is_whole, hop } = self;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| "the method is not valid")?;
        if method == Method::CONNECT || !(target.starts_with('/') || (target == "*" && method == Method::OPTIONS)) {
            return Err("the target is not a path");
        }
        let mut request = HttpRequest::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path_and_query(&target)?;
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
        // The server has answered the expectation already.
        fields.remove(header::EXPECT);
        if is_whole {
            fields.remove(header::CONTENT_LENGTH);
        }
        fields.extend(hop);
        Ok(request)
    }
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

#[cfg(test)]
mod tests {
    use retunnel_proto::message::HttpAuth;

    use super::*;

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (method, target) = (method.to_owned(), target.to_owned());
        Request { method, target, headers, body: whole(Bytes::new()), is_whole: false, hop: HeaderMap::new() }
    }

    fn made(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<HttpRequest<RequestBody>, &'static str> {
        request(method, target, headers).http()
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
        let headers = [
            ("Host", "a"),
            ("Connection", "X-One, host, content-length"),
            ("X-One", "1"),
            ("Content-Length", "3"),
            ("Transfer-Encoding", "chunked"),
            ("Proxy-Authorization", "Basic x"),
            ("Expect", "100-continue"),
            ("X-Two", "1"),
            ("x-two", "2"),
        ];
        let names = |request: &HttpRequest<RequestBody>| -> Vec<String> {
            request.headers().iter().map(|(name, _)| name.to_string()).collect()
        };
        let made_here = made("POST", "/", &headers).expect("valid");
        assert_eq!(names(&made_here), ["host", "content-length", "x-two", "x-two"]);
        let mut complete = request("POST", "/", &headers);
        complete.is_whole = true;
        assert_eq!(names(&complete.http().expect("valid")), ["host", "x-two", "x-two"]);
        for (name, value) in [("X\r\nY", "1"), ("X", "1\r\nY: 2"), (":method", "GET"), ("", "x")] {
            assert!(made("GET", "/", &[(name, value)]).is_err(), "{name} {value}");
        }
        assert!(made("GET", "/", &[("Host", "a"), ("host", "b")]).is_err());
    }

    #[test]
    fn only_the_password_is_let_in_and_it_is_not_passed_on() {
        let passwords = [BasicAuth::new(&HttpAuth("me:secret".into())).expect("valid")];
        for (values, granted) in [
            (&["Basic bWU6c2VjcmV0"][..], true),
            (&["basic  bWU6c2VjcmV0"], true),
            (&["Basic bWU6d3Jvbmc="], false),
            (&["Basic bWU6c2VjcmV0", "Basic bWU6c2VjcmV0"], false),
            (&["Bearer bWU6c2VjcmV0"], false),
            (&["Basic"], false),
            (&["Basic ***"], false),
            (&[], false),
        ] {
            let headers: Vec<_> =
                std::iter::once(("Host", "a")).chain(values.iter().map(|value| ("AUTHORIZATION", *value))).collect();
            match request("GET", "/", &headers).checked(&passwords) {
                Ok(request) => assert!(granted && request.headers().len() == 1, "{values:?}"),
                Err(own) => assert!(!granted && own.status() == StatusCode::UNAUTHORIZED, "{values:?}"),
            }
        }
        let request = request("GET", "/", &[("Authorization", "Basic x")]).checked(&[]).expect("valid");
        assert_eq!(request.headers().len(), 1, "without a password of the tunnel the header is the local service's");
    }
}
