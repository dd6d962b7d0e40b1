//! Answers of the edge itself: one place maps failures to status, stable code and text (`docs/errors.md`).

use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use retunnel_proto::{PageCode, http1::request::RequestError};

use crate::{html::escape, tunnel::policy::Denied};

/// Why the edge answers instead of the local service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EdgeError {
    BadRequest(&'static str),
    /// An unencrypted request where TLS is spoken.
    HttpsRequired,
    /// A rule of the tunnel does not admit the visitor.
    Denied(&'static Denied),
    TunnelNotFound,
    /// The owner's session was lost; seconds until a retry makes sense.
    TunnelOffline(u64),
    MethodNotAllowed,
    RequestTimeout,
    RequestTooLarge(usize),
    UriTooLong,
    HeadersTooLarge,
    ExpectationFailed,
    /// The client's reason, such as `connection refused: 127.0.0.1:3000`.
    LocalUnreachable(String),
    LocalClosedEarly,
    /// What is wrong with its answer.
    LocalInvalidResponse(&'static str),
    LocalTimeout,
    UpgradeUnsupported,
    TooManyConnections,
    ShuttingDown,
    HttpVersion,
}

impl From<RequestError> for EdgeError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::MethodNotAllowed => Self::MethodNotAllowed,
            RequestError::UriTooLong => Self::UriTooLong,
            RequestError::HeadersTooLarge => Self::HeadersTooLarge,
            RequestError::ExpectationFailed => Self::ExpectationFailed,
            RequestError::HttpVersion => Self::HttpVersion,
            RequestError::Malformed(reason) => Self::BadRequest(reason),
            _ => Self::BadRequest("the request cannot be parsed"),
        }
    }
}

impl EdgeError {
    pub(crate) const fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::HttpsRequired => 400,
            Self::Denied(denied) => denied.status,
            Self::TunnelNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::RequestTooLarge(_) => 413,
            Self::UriTooLong => 414,
            Self::ExpectationFailed => 417,
            Self::HeadersTooLarge => 431,
            Self::UpgradeUnsupported => 501,
            Self::LocalUnreachable(_) | Self::LocalClosedEarly | Self::LocalInvalidResponse(_) => 502,
            Self::TunnelOffline(_) | Self::TooManyConnections | Self::ShuttingDown => 503,
            Self::LocalTimeout => 504,
            Self::HttpVersion => 505,
        }
    }

    /// The stable code: header `X-Retunnel-Error`, field `code`.
    pub(crate) const fn code(&self) -> &'static str {
        let code = match self {
            Self::BadRequest(_) => PageCode::BadRequest,
            Self::HttpsRequired => PageCode::HttpsRequired,
            Self::Denied(denied) => denied.code,
            Self::TunnelNotFound => PageCode::TunnelNotFound,
            Self::TunnelOffline(_) => PageCode::TunnelOffline,
            Self::MethodNotAllowed => PageCode::MethodNotAllowed,
            Self::RequestTimeout => PageCode::RequestTimeout,
            Self::RequestTooLarge(_) => PageCode::RequestTooLarge,
            Self::UriTooLong => PageCode::UriTooLong,
            Self::HeadersTooLarge => PageCode::HeadersTooLarge,
            Self::ExpectationFailed => PageCode::ExpectationFailed,
            Self::LocalUnreachable(_) => PageCode::LocalUnreachable,
            Self::LocalClosedEarly => PageCode::LocalClosedEarly,
            Self::LocalInvalidResponse(_) => PageCode::LocalInvalidResponse,
            Self::LocalTimeout => PageCode::LocalTimeout,
            Self::UpgradeUnsupported => PageCode::UpgradeUnsupported,
            Self::TooManyConnections => PageCode::TooManyConnections,
            Self::ShuttingDown => PageCode::ShuttingDown,
            Self::HttpVersion => PageCode::HttpVersion,
        };
        code.as_str()
    }

    const fn title(&self) -> &'static str {
        match self.status() {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            413 => "Content Too Large",
            414 => "URI Too Long",
            417 => "Expectation Failed",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => "HTTP Version Not Supported",
        }
    }

    fn heading(&self) -> &'static str {
        match self {
            Self::HttpsRequired => "This address uses HTTPS",
            Self::TunnelNotFound => "There is no tunnel here",
            Self::TunnelOffline(_) => "This tunnel is offline",
            Self::LocalUnreachable(_) => "The local service is not running",
            Self::LocalClosedEarly => "The local service closed the connection",
            Self::LocalInvalidResponse(_) => "The local service sent an invalid answer",
            Self::LocalTimeout => "The local service did not answer in time",
            Self::Denied(denied) => denied.heading,
            _ => self.title(),
        }
    }

    /// What failed and what to do next.
    fn detail(&self) -> String {
        match self {
            Self::BadRequest(why) => format!("The request is not valid HTTP/1.1: {why}."),
            Self::HttpsRequired => "The request was not encrypted. Use the same address with https:// in front.".into(),
            Self::Denied(denied) => denied.detail.into(),
            Self::TunnelNotFound => {
                "Nothing is served at this address. Check the spelling, or start the tunnel with `retunnel http PORT`."
                    .into()
            }
            Self::TunnelOffline(_) => {
                "Its client lost the connection to this server and is expected back. Try again in a moment.".into()
            }
            Self::MethodNotAllowed => "The method CONNECT is not supported.".into(),
            Self::RequestTimeout => "The request did not arrive in time.".into(),
            Self::RequestTooLarge(max) => {
                format!("The client of this tunnel speaks a protocol that carries request bodies up to {max} bytes.")
            }
            Self::UriTooLong => "The request target is longer than 16 KiB.".into(),
            Self::HeadersTooLarge => "The request has more headers, or longer ones, than this server accepts.".into(),
            Self::ExpectationFailed => "The only supported expectation is 100-continue.".into(),
            Self::LocalUnreachable(reason) => {
                format!(
                    "The tunnel works, but its client cannot reach the local service ({reason}). Start the service and reload."
                )
            }
            Self::LocalClosedEarly => "It closed the connection before its answer was complete.".into(),
            Self::LocalInvalidResponse(why) => format!("Its answer cannot be passed on safely: {why}."),
            Self::LocalTimeout => "The request was passed on, but no answer came back.".into(),
            Self::UpgradeUnsupported => {
                "The client of this tunnel speaks a protocol that cannot carry WebSocket and other upgrades.".into()
            }
            Self::TooManyConnections => {
                "The server has reached its limit of connections. Try again in a moment.".into()
            }
            Self::ShuttingDown => "The server is restarting. Try again in a moment.".into(),
            Self::HttpVersion => "Only HTTP/1.0 and HTTP/1.1 are supported.".into(),
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TunnelOffline(seconds) => Some((*seconds).clamp(1, 60)),
            Self::TooManyConnections | Self::ShuttingDown => Some(2),
            _ => None,
        }
    }

    /// The whole answer: HTML for browsers, JSON for programs that ask for it, otherwise text.
    pub(crate) fn render(&self, accept: &[u8], to_head: bool, close: bool) -> Bytes {
        let accepts = |kind: &[u8]| accept.windows(kind.len()).any(|part| part.eq_ignore_ascii_case(kind));
        let (kind, body) = if accepts(b"application/json") && !accepts(b"text/html") {
            ("application/json", self.json())
        } else if accepts(b"text/html") {
            ("text/html; charset=utf-8", self.html())
        } else {
            ("text/plain; charset=utf-8", format!("{}\n{} [{}]\n", self.heading(), self.detail(), self.code()))
        };
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nX-Retunnel-Error: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
            self.status(),
            self.title(),
            body.len(),
            self.code(),
        );
        if let Some(seconds) = self.retry_after() {
            let _ = write!(head, "Retry-After: {seconds}\r\n");
        }
        if let Self::Denied(Denied { challenge: Some(challenge), .. }) = self {
            let _ = write!(head, "WWW-Authenticate: {challenge}\r\n");
        }
        if close {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut answer = BytesMut::with_capacity(head.len() + body.len());
        answer.put_slice(head.as_bytes());
        if !to_head {
            answer.put_slice(body.as_bytes());
        }
        answer.freeze()
    }

    fn json(&self) -> String {
        let fields = serde_json::json!({ "code": self.code(), "title": self.heading(), "detail": self.detail() });
        format!("{fields}\n")
    }

    fn html(&self) -> String {
        let (heading, detail) = (escape(self.heading()), escape(&self.detail()));
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{heading}</title>\
             <style>{STYLE}</style></head><body><main><p class=\"status\">{}</p><h1>{heading}</h1><p>{detail}</p>\
             <footer>ReTunnel &middot; <code>{}</code></footer></main></body></html>\n",
            self.status(),
            self.code(),
        )
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{margin:0;min-height:100vh;display:grid;place-items:center;\
font:16px/1.6 system-ui,sans-serif;background:light-dark(#f5f6f8,#14161a);color:light-dark(#1c1f24,#e8eaed)}\
main{max-width:34rem;margin:1.5rem;padding:2rem 2.5rem;border-radius:14px;background:light-dark(#fff,#1e2127);\
box-shadow:0 1px 3px #0003}h1{margin:.2rem 0 1rem;font-size:1.5rem;line-height:1.25}\
.status{margin:0;font-weight:600;color:light-dark(#b3541e,#f0a06a)}p{margin:0 0 1rem;overflow-wrap:anywhere}\
footer{font-size:.85rem;opacity:.7}code{font-family:ui-monospace,monospace}";

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(error: &EdgeError, accept: &str) -> String {
        String::from_utf8(error.render(accept.as_bytes(), false, true).to_vec()).expect("text")
    }

    #[test]
    fn every_form_names_the_code_and_has_its_length() {
        let error = EdgeError::LocalUnreachable("connection refused: <script>".into());
        for (accept, kind) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
            ("application/json", "application/json"),
            ("*/*", "text/plain"),
        ] {
            let text = rendered(&error, accept);
            let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.contains(&format!("Content-Type: {kind}")), "{head}");
            assert!(head.contains("X-Retunnel-Error: local_unreachable"), "{head}");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
            assert!(body.contains("local_unreachable"), "{body}");
            assert!(kind != "text/html" || !body.contains("<script>"), "{body}");
        }
        assert!(rendered(&EdgeError::TunnelOffline(90), "*/*").contains("Retry-After: 60\r\n"));
        const DENIED: Denied = Denied {
            status: 403,
            code: PageCode::Unauthorized,
            heading: "Not today",
            detail: "Come back tomorrow.",
            challenge: Some("Basic"),
        };
        let text = rendered(&EdgeError::Denied(&DENIED), "*/*");
        assert!(
            text.starts_with("HTTP/1.1 403 Forbidden\r\n") && text.contains("WWW-Authenticate: Basic\r\n"),
            "{text}"
        );
        assert!(text.ends_with("Not today\nCome back tomorrow. [unauthorized]\n"), "{text}");
    }
}
