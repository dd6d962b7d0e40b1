//! Sends requests to the local service again, unchanged or edited. The responses are captured like any other.

use std::{io, sync::Arc, time::Duration};

use axum::http::StatusCode;
use retunnel_client::{LocalTarget, RelayError};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    capture::Recorder,
    failure::{Failure, FailureCode},
    head::Head,
    mask::{MASK, Mask},
    record::Record,
    store::Store,
};

/// How long to wait for the end of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of requests that one call sends.
pub(crate) const MAX_TIMES: u32 = 100;
/// Maximum bytes of an edited head.
const MAX_HEAD: usize = 80 * 1024;

/// The changes to a request. Missing fields leave it unchanged.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Edits {
    /// How many times to send it, in sequence. Default 1.
    pub(crate) times: Option<u32>,
    method: Option<String>,
    path: Option<String>,
    headers: Option<Vec<(String, String)>>,
    body: Option<String>,
}

/// A request to send.
#[derive(Debug)]
pub(crate) struct Prepared(Vec<u8>);

impl Prepared {
    /// Builds the request. Masked values that the caller left unchanged get their original content.
    pub(crate) fn new(record: &Record, edits: &Edits, mask: &Mask) -> Result<Self, Failure> {
        let original = Head::parse(&record.request().head);
        let shown = mask.head(&original);
        let invalid = |detail: &str| Failure::new(StatusCode::BAD_REQUEST, FailureCode::ReplayInvalid, detail);
        if original.header("upgrade").is_some() {
            return Err(invalid("a WebSocket cannot be replayed"));
        }
        let method = edits.method.as_deref().unwrap_or(original.method());
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(&b)) {
            return Err(invalid("the method is not valid"));
        }
        let path = match edits.path.as_deref() {
            Some(path) if path != shown.path() => path,
            _ => original.path(),
        };
        let masked = "a masked value would be sent; reveal the values before editing them";
        if edits.path.as_deref().is_some_and(|edited| edited == path && path != original.path() && path.contains(MASK))
        {
            return Err(invalid(masked));
        }
        if !(path == "*" || path.starts_with('/')) || !path.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
            return Err(invalid("the path must start with / and must not contain spaces; write a space as %20"));
        }
        let part = record.request();
        let body = match &edits.body {
            Some(body) => body.as_bytes(),
            None if part.size > part.body.len() as u64 => {
                return Err(Failure::new(
                    StatusCode::CONFLICT,
                    FailureCode::BodyNotCaptured,
                    "only the beginning of the body was captured; provide a body, or raise --inspect-body-limit",
                ));
            }
            None => part.body.as_slice(),
        };
        let had_length = original.header("content-length").is_some() || original.header("transfer-encoding").is_some();
        let mut headers: Vec<(&str, &str)> = Vec::new();
        match &edits.headers {
            None => headers.extend(original.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
            Some(edited) => {
                let mut hidden: Vec<_> =
                    original.headers.iter().zip(&shown.headers).filter(|(was, shown)| was.1 != shown.1).collect();
                for (name, value) in edited {
                    // A name may occur more than once; each occurrence takes the next value.
                    let position =
                        hidden.iter().position(|(was, shown)| was.0.eq_ignore_ascii_case(name) && shown.1 == *value);
                    match position {
                        Some(position) => headers.push((name, &hidden.remove(position).0.1)),
                        None if value.contains(MASK) && !original.headers.contains(&(name.clone(), value.clone())) => {
                            return Err(invalid(masked));
                        }
                        None => headers.push((name, value)),
                    }
                }
            }
        }
        // A new body is not encoded and has its own length.
        let dropped = |name: &str| {
            let dropped =
                ["content-length", "transfer-encoding", "connection", "expect", "keep-alive", "te", "trailer"];
            dropped.iter().any(|known| known.eq_ignore_ascii_case(name))
                || (edits.body.is_some() && name.eq_ignore_ascii_case("content-encoding"))
        };
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        for (name, value) in headers.into_iter().filter(|(name, _)| !dropped(name)) {
            let is_name =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b));
            if !is_name || value.contains(['\r', '\n', '\0']) {
                return Err(invalid(&format!("the header `{name}` is not valid")));
            }
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || had_length {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("Connection: close\r\n\r\n");
        if edits.body.as_ref().is_some_and(|body| body.contains(MASK)) {
            return Err(invalid(masked));
        }
        if text.len() > MAX_HEAD {
            return Err(invalid("the headers are too long"));
        }
        // Heads are shown as Latin-1.
        let mut bytes: Vec<u8> = Vec::with_capacity(text.len() + body.len());
        for c in text.chars() {
            match u8::try_from(u32::from(c)) {
                Ok(byte) => bytes.push(byte),
                Err(_) => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        bytes.extend_from_slice(body);
        Ok(Self(bytes))
    }

    /// Sends it and waits for the end of the response. Returns the id of the new exchange.
    pub(crate) async fn send(
        &self,
        store: &Arc<Store>,
        target: &LocalTarget,
        tunnel: &str,
        replay_of: u64,
    ) -> Result<Option<u64>, Failure> {
        let recorder = Arc::new(Recorder::new(Arc::clone(store), Some(replay_of)));
        let answered = timeout(RESPONSE_TIMEOUT, self.exchange(Arc::clone(&recorder), target, tunnel)).await;
        let id = recorder.last().map(|entry| entry.id);
        match answered {
            // The capture shows where the response ended.
            Ok(Ok(()) | Err(RelayError::Io(_))) | Err(_) => Ok(id),
            Ok(Err(error)) => {
                Err(Failure::new(StatusCode::BAD_GATEWAY, FailureCode::LocalUnreachable, error.to_string()))
            }
        }
    }

    async fn exchange(&self, recorder: Arc<Recorder>, target: &LocalTarget, tunnel: &str) -> Result<(), RelayError> {
        let socket = target.connect(Arc::clone(&recorder) as _, tunnel).await?;
        let (mut reader, mut writer) = tokio::io::split(socket);
        // A service may respond before it has read the whole request.
        let write = async {
            writer.write_all(&self.0).await?;
            writer.flush().await
        };
        let read = async {
            let mut piece = vec![0; 64 * 1024];
            loop {
                let len = reader.read(&mut piece).await?;
                let is_over = recorder.last().is_some_and(|entry| entry.record().response().ended.is_some());
                if len == 0 || is_over {
                    return Ok::<_, io::Error>(());
                }
            }
        };
        tokio::pin!(write, read);
        tokio::select! {
            result = &mut read => result?,
            result = &mut write => {
                result?;
                read.await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::time::Instant;

    use super::*;

    fn prepared(edits: serde_json::Value) -> Result<String, String> {
        let head = b"POST /a?token=t&x=1 HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Length: 2\r\nConnection: x\r\n\r\n";
        let mut record = Record::new("web", head, None, SystemTime::UNIX_EPOCH, Instant::now());
        record.parts.request.body = b"hi".to_vec();
        record.parts.request.size = 2;
        let edits = serde_json::from_value(edits).expect("edits");
        let prepared = Prepared::new(&record, &edits, &Mask::default()).map_err(|failure| failure.detail)?;
        Ok(String::from_utf8(prepared.0).expect("text"))
    }

    #[test]
    fn a_request_is_sent_again_unchanged() {
        let text = prepared(serde_json::json!({})).expect("valid");
        assert_eq!(
            text,
            "POST /a?token=t&x=1 HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        );
    }

    #[test]
    fn masked_values_are_restored_and_masks_are_never_sent() {
        let text = prepared(serde_json::json!({
            "path": "/a?token=[masked]&x=1", "body": "new",
            "headers": [["Host", "h"], ["cookie", "[masked]"], ["Cookie", "[masked]"], ["X-New", "1"]],
        }))
        .expect("valid");
        assert!(text.starts_with(
            "POST /a?token=t&x=1 HTTP/1.1\r\nHost: h\r\ncookie: a=1\r\nCookie: b=2\r\nX-New: 1\r\nContent-Length: 3\r\n"
        ));
        for edits in [
            serde_json::json!({"path": "/b?token=[masked]"}),
            serde_json::json!({"headers": [["Cookie", "[masked]"], ["Cookie", "[masked]"], ["Cookie", "[masked]"]]}),
            serde_json::json!({"body": "{\"password\":\"[masked]\"}"}),
        ] {
            assert!(prepared(edits).expect_err("refused").contains("masked"));
        }
    }

    #[test]
    fn a_request_that_contains_the_word_of_the_mask_is_sent_again() {
        let head = b"GET /[masked]?token=t HTTP/1.1\r\nHost: h\r\nX-Note: [masked]\r\n\r\n";
        let record = Record::new("web", head, None, SystemTime::UNIX_EPOCH, Instant::now());
        let edits = serde_json::from_value(serde_json::json!({"headers": [["Host", "h"], ["X-Note", "[masked]"]]}));
        let prepared = Prepared::new(&record, &edits.expect("edits"), &Mask::default()).expect("valid");
        assert!(prepared.0.starts_with(b"GET /[masked]?token=t HTTP/1.1\r\nHost: h\r\nX-Note: [masked]\r\n"));
    }

    #[test]
    fn edits_cannot_end_a_header() {
        for edits in [
            serde_json::json!({"method": "GET /x HTTP/1.1\r\nA: b"}),
            serde_json::json!({"path": "/ HTTP/1.1\r\nA: b"}),
            serde_json::json!({"path": "http://169.254.169.254/"}),
            serde_json::json!({"headers": [["A", "b\r\nC: d"]]}),
            serde_json::json!({"headers": [["A\r\nB", "c"]]}),
            serde_json::json!({"headers": [["A B", "c"]]}),
        ] {
            assert!(prepared(edits.clone()).is_err(), "{edits}");
        }
    }
}
