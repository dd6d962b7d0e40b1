//! The local service's own origin instead of the public one, for services that accept no other (development servers check
//! the Host header against DNS rebinding). The service sees what a browser on its machine would send; its own origin in
//! answers is replaced by the public one.

use std::{borrow::Cow, ops::Range};

use crate::http1::Headers;

/// Longest origin a client may ask for.
const MAX_ORIGIN: usize = 270;

/// Scheme and authority of a local service, for example `http://localhost:5173`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOrigin {
    origin: Vec<u8>,
    host: Range<usize>,
}

impl LocalOrigin {
    /// Reads an origin; `None` when the text is not one. It is written into heads, so nothing else may pass.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        let fits = !host.is_empty() && text.len() <= MAX_ORIGIN && host.bytes().all(valid);
        fits.then(|| Self { host: text.len() - host.len()..text.len(), origin: text.as_bytes().to_vec() })
    }

    /// For `Host`.
    #[must_use]
    pub fn host(&self) -> &[u8] {
        &self.origin[self.host.clone()]
    }

    /// For `X-Forwarded-Proto`.
    #[must_use]
    pub fn scheme(&self) -> &[u8] {
        &self.origin[..self.host.start - "://".len()]
    }

    /// The value of one of [`TRANSLATED`]: an origin or a URL, at the service's own origin when it is at the public one.
    #[must_use]
    pub fn translate<'a>(&'a self, value: &'a [u8], public_host: &[u8]) -> Cow<'a, [u8]> {
        let after_scheme = value.strip_prefix(b"https://").or_else(|| value.strip_prefix(b"http://"));
        let split = after_scheme.and_then(|text| text.split_at_checked(public_host.len()));
        match split {
            Some((host, rest))
                if host.eq_ignore_ascii_case(public_host)
                    && matches!(rest.first(), None | Some(b'/' | b'?' | b'#')) =>
            {
                [&self.origin, rest].concat().into()
            }
            _ => value.into(),
        }
    }

    /// The value of `Location` or `Access-Control-Allow-Origin` with the public origin instead of the service's own, so
    /// that a redirect leads the visitor there; `None` when it names another origin.
    #[must_use]
    pub fn restored(&self, value: &[u8], public_origin: &[u8]) -> Option<Vec<u8>> {
        let rest = value.strip_prefix(self.origin.as_slice())?;
        matches!(rest.first(), None | Some(b'/' | b'?' | b'#')).then(|| [public_origin, rest].concat())
    }

    /// Replaces the service's own origin by the public one in the head of an answer.
    pub fn restore(&self, headers: &mut Headers, public_origin: &[u8]) {
        for name in RESTORED {
            if let Some(value) = headers.get(name).and_then(|value| self.restored(value, public_origin)) {
                headers.set(name, &value);
            }
        }
    }
}

/// Headers of a request that [`LocalOrigin::translate`] applies to. WebDAV's `MOVE` and `COPY` name their target in
/// `Destination` (RFC 4918, 10.3).
pub const TRANSLATED: [&str; 3] = ["origin", "referer", "destination"];

/// Headers of an answer that [`LocalOrigin::restored`] applies to.
pub const RESTORED: [&str; 3] = ["location", "content-location", "access-control-allow-origin"];

/// Whether an answer says that the local service does not serve the public host name. `start`: the first bytes of its
/// body. Development servers have no common answer; these are Vite and tools built on it (Angular, SvelteKit, Nuxt),
/// webpack-dev-server, Django and Rails.
#[must_use]
pub fn host_refused(status: u16, start: &[u8]) -> bool {
    /// Django's page has its title within the first KiB; the others are a line.
    const LOOK: usize = 2048;
    if !matches!(status, 200 | 400 | 403) {
        return false;
    }
    let start = &start[..start.len().min(LOOK)];
    if status == 200 {
        // Old webpack-dev-servers.
        return start.trim_ascii() == b"Invalid Host header";
    }
    let texts: [&[u8]; 5] = [
        b"Blocked request. This host",
        b"Invalid Host header",
        b"DisallowedHost",
        b"Invalid HTTP_HOST header",
        b"Blocked host",
    ];
    texts.iter().any(|text| start.windows(text.len()).any(|part| part == *text))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http1::{HeadLimits, response};

    #[test]
    fn redirects_lead_to_the_public_address() {
        let origin = LocalOrigin::parse("http://localhost:3000").expect("valid");
        for (location, expected) in [
            ("http://localhost:3000/a?b", "https://a.test/a?b"),
            ("http://localhost:3000", "https://a.test"),
            ("http://localhost:30001/a", "http://localhost:30001/a"),
            ("/relative", "/relative"),
        ] {
            let text =
                format!("HTTP/1.1 302 Found\r\nX: 1\r\nLocation: {location}\r\nY: 2\r\nContent-Length: 0\r\n\r\n");
            let mut head =
                response::parse(&Bytes::from(text), false, HeadLimits::RESPONSE).expect("valid").expect("complete");
            origin.restore(&mut head.headers, b"https://a.test");
            assert_eq!(head.headers.get("location"), Some(expected.as_bytes()));
            assert_eq!(head.headers.iter().count(), 4);
            assert_eq!(head.headers.get("y"), Some(&b"2"[..]));
        }
    }

    #[test]
    fn urls_at_the_public_address_are_the_services_own() {
        let origin = LocalOrigin::parse("http://localhost:3000").expect("valid");
        for (value, expected) in [
            ("https://a.test", "http://localhost:3000"),
            ("https://A.test/dir/b?c", "http://localhost:3000/dir/b?c"),
            ("https://a.test.evil/", "https://a.test.evil/"),
            ("https://a.test:8443/", "https://a.test:8443/"),
            ("https://other/a.test", "https://other/a.test"),
            ("/relative", "/relative"),
            ("null", "null"),
        ] {
            assert_eq!(&*origin.translate(value.as_bytes(), b"a.test"), expected.as_bytes(), "{value}");
        }
    }

    #[test]
    fn only_origins_are_taken() {
        let origin = LocalOrigin::parse("https://localhost:5173").expect("valid");
        assert_eq!((origin.scheme(), origin.host()), (&b"https"[..], &b"localhost:5173"[..]));
        for text in
            ["", "localhost", "http://", "ftp://a", "http://a/b", "http://a\r\nX: y", "http://a b", "http://u@a"]
        {
            assert_eq!(LocalOrigin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn pages_of_the_service_are_local_and_others_stay() {
        let origin = LocalOrigin::parse("http://localhost:3000").expect("valid");
        let to = |value: &'static str| {
            String::from_utf8_lossy(&origin.translate(value.as_bytes(), b"a.test:80")).into_owned()
        };
        assert_eq!(to("https://A.test:80"), "http://localhost:3000");
        assert_eq!(to("https://other.test"), "https://other.test");
        assert_eq!(to("null"), "null");
    }

    #[test]
    fn refusals_of_development_servers_are_known() {
        assert!(host_refused(403, b"Blocked request. This host (\"a.test\") is not allowed."));
        assert!(host_refused(403, b"Invalid Host header"));
        assert!(host_refused(200, b"Invalid Host header"));
        assert!(host_refused(400, b"<!DOCTYPE html>\n<title>DisallowedHost\n at /</title>"));
        assert!(!host_refused(200, b"how to fix: Invalid Host header"));
        assert!(!host_refused(403, b"Forbidden"));
        assert!(!host_refused(404, b"Invalid Host header"));
    }
}
