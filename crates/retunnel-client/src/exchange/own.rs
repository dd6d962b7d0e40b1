//! Answers that the client gives instead of the local service.

use bytes::Bytes;
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE},
};
use retunnel_proto::PageCode;

/// An answer of the client.
#[derive(Debug, Clone)]
pub(crate) struct OwnAnswer {
    status: StatusCode,
    code: PageCode,
    text: String,
}

impl OwnAnswer {
    /// An answer with a stable code and its explanation.
    pub(crate) fn new(status: StatusCode, code: PageCode, text: &str) -> Self {
        let text = format!("{text} [{}]\n", code.as_str());
        Self { status, code, text }
    }

    /// The visitor must present the tunnel's password.
    pub(crate) fn unauthorized() -> Self {
        Self { status: StatusCode::UNAUTHORIZED, code: PageCode::Unauthorized, text: "Unauthorized".into() }
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) const fn code(&self) -> PageCode {
        self.code
    }

    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONTENT_LENGTH, self.text.len().into());
        let code = HeaderValue::from_static(self.code.as_str());
        headers.insert(HeaderName::from_static("x-retunnel-error"), code);
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"retunnel\""));
        }
        headers
    }

    pub(crate) fn body(&self) -> Bytes {
        Bytes::copy_from_slice(self.text.as_bytes())
    }
}
