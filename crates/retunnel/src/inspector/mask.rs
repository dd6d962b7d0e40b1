//! Masks secrets before anything leaves this process: values of headers, query and form fields, and JSON members. The text
//! around them stays unchanged.

use super::head::Head;

/// The replacement for a secret.
pub(crate) const MASK: &str = "[masked]";

/// Headers whose values are masked.
const HEADERS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];
/// Fields of queries, forms and JSON whose values are masked.
const FIELDS: [&str; 12] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "client_secret",
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "api_key",
    "apikey",
];

/// The names whose values are masked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mask {
    /// Additional names of headers and fields, in lower case.
    more: Vec<String>,
}

impl Mask {
    pub(crate) fn new(more: &[String]) -> Self {
        let names = more.iter().flat_map(|names| names.split(','));
        Self { more: names.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect() }
    }

    pub(crate) fn hides_header(&self, name: &str) -> bool {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        HEADERS.into_iter().any(is) || self.more.iter().any(|known| is(known))
    }

    fn hides_field(&self, name: &str) -> bool {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        FIELDS.into_iter().any(is) || self.more.iter().any(|known| is(known))
    }

    /// Masks the secrets of a head.
    pub(crate) fn head(&self, head: &Head) -> Head {
        let mut head = head.clone();
        if head.first[0].starts_with("HTTP/") {
            for (name, value) in &mut head.headers {
                if name.eq_ignore_ascii_case("location") {
                    *value = self.target(value);
                }
            }
        } else {
            head.first[1] = self.target(&head.first[1]);
        }
        for (name, value) in &mut head.headers {
            if self.hides_header(name) {
                *value = MASK.to_owned();
            } else if name.eq_ignore_ascii_case("referer") {
                *value = self.target(value);
            }
        }
        head
    }

    /// Masks the secrets in the query of a request target.
    pub(crate) fn target(&self, target: &str) -> String {
        match target.split_once('?') {
            Some((path, query)) => format!("{path}?{}", self.form(query)),
            None => target.to_owned(),
        }
    }

    /// Masks the secrets of a body of this media type.
    pub(crate) fn body(&self, media_type: &str, text: &str) -> String {
        if media_type == "application/x-www-form-urlencoded" {
            self.form(text)
        } else if media_type.ends_with("json") || text.trim_start().starts_with(['{', '[']) {
            self.json(text)
        } else if media_type == "multipart/form-data" {
            self.multipart(text)
        } else {
            text.to_owned()
        }
    }

    fn form(&self, text: &str) -> String {
        let masked = text.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) if self.hides_field(&unescaped(name)) => format!("{name}={MASK}"),
            _ => pair.to_owned(),
        });
        masked.collect::<Vec<_>>().join("&")
    }

    /// Works on the text, so that incomplete or invalid JSON is masked too.
    fn json(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find('"') {
            let (string, after) = string(&rest[start..]);
            let value = after.trim_start();
            out.push_str(&rest[..start]);
            out.push_str(string);
            rest = after;
            let name: String = serde_json::from_str(string).unwrap_or_else(|_| string.trim_matches('"').to_owned());
            let Some(value) = value.strip_prefix(':').filter(|_| self.hides_field(&name)) else { continue };
            let value = value.trim_start();
            out.push_str(&after[..after.len() - value.len()]);
            rest = match value.chars().next() {
                Some('"') => {
                    out.push_str(&format!("\"{MASK}\""));
                    self::string(value).1
                }
                // The members of an object or array are checked one by one.
                Some('{' | '[') | None => value,
                Some(_) => {
                    out.push_str(&format!("\"{MASK}\""));
                    value.trim_start_matches(|c: char| !matches!(c, ',' | '}' | ']' | '\n'))
                }
            };
        }
        out.push_str(rest);
        out
    }

    fn multipart(&self, text: &str) -> String {
        let mut masked = Vec::new();
        let (mut in_headers, mut hidden) = (true, false);
        for line in text.split("\r\n") {
            if line.starts_with("--") {
                (in_headers, hidden) = (true, false);
            } else if in_headers {
                let lower = line.to_ascii_lowercase();
                if let Some((_, name)) = lower.split_once("; name=\"") {
                    hidden = self.hides_field(name.split('"').next().unwrap_or_default());
                }
                in_headers = !line.is_empty();
            } else if hidden {
                masked.push(MASK);
                continue;
            }
            masked.push(line);
        }
        masked.join("\r\n")
    }
}

/// The quoted string at the start, and the text after it.
fn string(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return text.split_at(at + 1),
            _ => {}
        }
    }
    (text, "")
}

/// The decoded name of a form field.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_and_queries_hide_their_secrets() {
        let mask = Mask::new(&["X-Session, x-two".into()]);
        let head = Head::parse(
            b"GET /a?token=1&x=2&p%61ssword=3 HTTP/1.1\r\nAUTHORIZATION: Bearer s\r\nCookie: a=b\r\nx-session: s\r\n\
              Referer: http://a/?secret=q\r\nAccept: */*\r\n\r\n",
        );
        let masked = mask.head(&head);
        assert_eq!(masked.path(), "/a?token=[masked]&x=2&p%61ssword=[masked]");
        let values: Vec<&str> = masked.headers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, [MASK, MASK, MASK, "http://a/?secret=[masked]", "*/*"]);
        let answer =
            mask.head(&Head::parse(b"HTTP/1.1 302 Found\r\nSet-Cookie: a=1\r\nLocation: /b?code=1&id_token=2\r\n\r\n"));
        assert_eq!(answer.header("set-cookie"), Some(MASK));
        assert_eq!(answer.header("location"), Some("/b?code=1&id_token=[masked]"));
    }

    proptest! {
        #[test]
        fn any_text_is_accepted_and_secrets_do_not_survive(
            around in r#"[{}\[\],:" a-z\\é]{0,12}"#, secret in "[A-Z]{12}", spaces in "[ \n]{0,3}"
        ) {
            let mask = Mask::default();
            for kind in ["application/json", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"] {
                mask.body(kind, &around);
            }
            let whole = format!("{{\"a\":1,\"password\"{spaces}:{spaces}\"{secret}\",{around}");
            prop_assert!(!mask.body("application/json", &whole).contains(&secret));
        }
    }

    #[test]
    fn complete_and_cut_bodies_hide_their_secrets() {
        let mask = Mask::default();
        for (kind, text, masked) in [
            ("application/x-www-form-urlencoded", "user=a&password=b%26&x", "user=a&password=[masked]&x"),
            (
                "application/json",
                r#"{"user": "password", "Password" : "a\"b", "n": {"token": 12, "x":[{"secret":null}]}}"#,
                r#"{"user": "password", "Password" : "[masked]", "n": {"token": "[masked]", "x":[{"secret":"[masked]"}]}}"#,
            ),
            ("application/json", r#"{"p\u0061ssword":"abc"#, r#"{"p\u0061ssword":"[masked]""#),
            ("application/vnd.api+json", r#"{"token":{"a":"b"}}"#, r#"{"token":{"a":"b"}}"#),
            ("text/plain", "password=1", "password=1"),
            (
                "multipart/form-data",
                "--x\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nsecret\r\n--x\r\n\
                 Content-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n",
                "--x\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n[masked]\r\n--x\r\n\
                 Content-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n",
            ),
        ] {
            assert_eq!(mask.body(kind, text), masked, "{kind}");
        }
    }
}
