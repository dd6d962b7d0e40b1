//! Masks secrets before anything leaves this process: values of headers, query and form fields, and JSON members. The text
//! around them stays unchanged.

use super::head::Head;

/// The replacement for a secret.
pub(crate) const MASK: &str = "[masked]";

/// A value is masked if its name contains one of these words. Hyphens, underscores and the like in the name do not count.
const WORDS: [&str; 12] = [
    "token",
    "secret",
    "session",
    "sessid",
    "jwt",
    "signature",
    "apikey",
    "cookie",
    "password",
    "passwd",
    "passphrase",
    "pwd",
];
/// Headers that ask for credentials and contain none.
const CHALLENGES: [&str; 2] = ["www-authenticate", "proxy-authenticate"];

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

    /// Whether values of this name are secret.
    fn hides(&self, name: &str) -> bool {
        if self.more.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return true;
        }
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        WORDS.into_iter().any(|word| plain.contains(word)) || is_about_authentication(&plain)
    }

    fn hides_header(&self, name: &str) -> bool {
        self.hides(name) && !CHALLENGES.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Masks the secrets of a head.
    pub(crate) fn head(&self, head: &Head) -> Head {
        let mut head = head.clone();
        if !head.first[0].starts_with("HTTP/") {
            head.first[1] = self.target(&head.first[1]);
        }
        for (name, value) in &mut head.headers {
            *value = if self.hides_header(name) { MASK.to_owned() } else { self.target(value) };
        }
        head
    }

    /// Masks the secrets in the path's parameters, the query and the fragment of a URL. Other text stays as it is.
    fn target(&self, target: &str) -> String {
        let (rest, fragment) = target.split_once('#').map_or((target, None), |(rest, after)| (rest, Some(after)));
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let mut masked = self.path(path);
        for (mark, form) in [('?', query), ('#', fragment)] {
            if let Some(form) = form {
                masked.push(mark);
                masked.push_str(&self.form(form));
            }
        }
        masked
    }

    /// Masks parameters like `;jsessionid=1`.
    fn path(&self, path: &str) -> String {
        if !path.contains(';') {
            return path.to_owned();
        }
        let masked = path.split_inclusive(['/', ';']).map(|piece| match piece.split_once('=') {
            Some((name, value)) if self.hides(&unescaped(name)) => {
                let end = if value.ends_with(['/', ';']) { &value[value.len() - 1..] } else { "" };
                format!("{name}={MASK}{end}")
            }
            _ => piece.to_owned(),
        });
        masked.collect()
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
            Some((name, _)) if self.hides(&unescaped(name)) => format!("{name}={MASK}"),
            _ => pair.to_owned(),
        });
        masked.collect::<Vec<_>>().join("&")
    }

    /// Works on the text, so that incomplete or invalid JSON is masked too.
    fn json(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        // Whether the next value is secret, how many lists and objects are open, and the one that is secret as a whole.
        let (mut is_next, mut depth, mut secret) = (false, 0_usize, None);
        while let Some(c) = rest.chars().next() {
            let is_secret = is_next || secret.is_some();
            let (token, after) = match c {
                '"' => string(rest),
                '{' | '[' | '}' | ']' | ',' | ':' => rest.split_at(1),
                c if c.is_whitespace() => rest.split_at(rest.len() - rest.trim_start().len()),
                _ => {
                    let ends = |c: char| matches!(c, ',' | '}' | ']' | '\n') || (c == '"' && !is_secret);
                    rest.split_at(rest.find(ends).unwrap_or(rest.len()))
                }
            };
            rest = after;
            match c {
                '"' if after.trim_start().starts_with(':') => {
                    let name = serde_json::from_str(token).unwrap_or_else(|_| token.trim_matches('"').to_owned());
                    is_next = self.hides(&name);
                }
                '{' | '[' => {
                    depth += 1;
                    if is_next && secret.is_none() {
                        secret = Some(depth);
                    }
                    is_next = false;
                }
                '}' | ']' => {
                    if secret == Some(depth) {
                        secret = None;
                    }
                    depth = depth.saturating_sub(1);
                    is_next = false;
                }
                ',' => is_next = false,
                ':' => {}
                c if c.is_whitespace() => {}
                _ => {
                    is_next = false;
                    if is_secret {
                        out.push_str(&format!("\"{MASK}\""));
                        continue;
                    }
                }
            }
            out.push_str(token);
        }
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
                    hidden = self.hides(name.split('"').next().unwrap_or_default());
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

/// Whether a name without punctuation has the word `auth`, and not only within `author`.
fn is_about_authentication(plain: &str) -> bool {
    plain.match_indices("auth").any(|(at, word)| {
        let after = &plain[at + word.len()..];
        !after.starts_with("or") || after.starts_with("oriz") || after.starts_with("oris")
    })
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
        let mask = Mask::new(&["X-Mine, x-two".into()]);
        let head = Head::parse(
            b"GET /a?token=1&x=2&p%61ssword=3 HTTP/1.1\r\nAUTHORIZATION: Bearer s\r\nCookie: a=b\r\nx-mine: s\r\n\
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

    #[test]
    fn a_name_with_a_secret_word_is_masked_wherever_it_is() {
        let mask = Mask::default();
        for name in [
            "X-CSRF-Token",
            "access_token",
            "clientSecret",
            "X-Auth-User",
            "authorization",
            "Authorisation",
            "oauth2",
            "PHPSESSID",
            "session-id",
            "jwt",
            "id_jwt",
            "X-Hub-Signature-256",
            "X-Amz-Signature",
            "api-key",
            "X-Api-Key",
            "apikey",
            "x_api_key",
            "Cookie",
            "cookies",
            "newPassword",
            "db.password",
            "X-Amz-Security-Token",
        ] {
            assert!(mask.hides(name), "{name}");
            let head = mask.head(&Head::parse(
                format!("GET /a;{name}=s3cret/b?x=1&{name}=s3cret HTTP/1.1\r\n{name}: s3cret\r\nX-Url: /?{name}=s3cret\r\n\r\n")
                    .as_bytes(),
            ));
            assert!(!format!("{head:?}").contains("s3cret"), "{head:?}");
            for (kind, text) in [
                ("application/json", format!(r#"{{"a":1,"{name}":"s3cret"}}"#)),
                ("application/json", format!(r#"{{"{name}":["s3cret",{{"b":"s3cret"}}],"c":1}}"#)),
                ("application/x-www-form-urlencoded", format!("a=1&{name}=s3cret")),
                (
                    "multipart/form-data",
                    format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\ns3cret\r\n--x--"),
                ),
            ] {
                let masked = mask.body(kind, &text);
                assert!(!masked.contains("s3cret") && masked.contains(MASK), "{masked}");
            }
        }
        for name in ["author", "coAuthors", "authority", "key", "monkey", "id", "path", "Accept", "WWW-Authenticate"] {
            assert!(!mask.hides_header(name), "{name}");
        }
        let moved = mask.head(&Head::parse(b"HTTP/1.1 302 Found\r\nLocation: /b#access_token=1&x=2\r\n\r\n"));
        assert_eq!(moved.header("location"), Some("/b#access_token=[masked]&x=2"));
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
            (
                "application/vnd.api+json",
                r#"{"token":{"a":"b","n":[1, {"c":true}]},"d":"e"} "#,
                r#"{"token":{"a":"[masked]","n":["[masked]", {"c":"[masked]"}]},"d":"e"} "#,
            ),
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
