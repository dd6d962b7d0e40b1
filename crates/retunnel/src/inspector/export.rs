//! Exports exchanges as HAR 1.2 files and curl commands.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    decode::{Budget, Extent, MAX_ANSWER},
    head::Head,
    record::{Part, Record},
    view::{BodyView, View, duration, rfc3339, status},
};

/// What surrounds the entries of a HAR file.
pub(crate) fn har_frame() -> (String, &'static str) {
    let creator = json!({ "name": "ReTunnel", "version": retunnel_client::VERSION });
    (format!(r#"{{"log":{{"version":"1.2","creator":{creator},"entries":["#), "]}}")
}

/// An exchange as an entry of a HAR file. Its comment says which bodies are incomplete, and why.
pub(crate) fn har_entry(record: &Record, view: View<'_>, budget: &mut Budget) -> Value {
    let (request, response) = (view.head(record.request()), view.head(record.response()));
    let (sent, received) = (view.body(record.request(), budget), view.body(record.response(), budget));
    let mut comment = vec![format!("tunnel {}", record.tunnel)];
    comment.extend(note("request", record.request(), &sent));
    comment.extend(note("response", record.response(), &received));
    if record.retried_as.is_some() {
        comment.push("got no answer; the server repeated it on another connection".to_owned());
    }
    if record.retry_of.is_some() {
        comment.push("repeated by the server after a try without an answer".to_owned());
    }
    let ms = |time: Option<Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    let wait = ms(record.response().began);
    let total = ms(duration(record)).max(wait);
    let query: Vec<Value> = request.path().split_once('?').map_or_else(Vec::new, |(_, query)| {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(n, v)| json!({"name": n, "value": v}))
            .collect()
    });
    let content_type = |head: &Head| head.header("content-type").unwrap_or_default().to_owned();
    let mut entry = json!({
        "startedDateTime": rfc3339(record.started),
        "time": total,
        "request": {
            "method": request.method(),
            "url": url(&request),
            "httpVersion": request.first[2],
            "cookies": [],
            "headers": headers(&request),
            "queryString": query,
            "headersSize": record.request().head.len(),
            "bodySize": record.request().size,
        },
        "response": {
            "status": status(record),
            "statusText": response.reason(),
            "httpVersion": if response.first[0].is_empty() { "HTTP/1.1" } else { &response.first[0] },
            "cookies": [],
            "headers": headers(&response),
            "content": {
                "size": received.bytes.len(),
                "mimeType": content_type(&response),
            },
            "redirectURL": response.header("location").unwrap_or_default(),
            "headersSize": record.response().head.len(),
            "bodySize": record.response().size,
        },
        "cache": {},
        "timings": { "send": 0.0, "wait": wait, "receive": total - wait },
        "comment": comment.join("; "),
    });
    if record.request().size > 0 {
        let mut data = json!({ "mimeType": content_type(&request), "text": "" });
        // The format has an encoding for responses only; names of its users begin with an underscore.
        put_text(&mut data, sent, "_encoding");
        entry["request"]["postData"] = data;
    }
    put_text(&mut entry["response"]["content"], received, "encoding");
    entry
}

/// Sets the text of a body, in base64 if it is none.
fn put_text(content: &mut Value, body: BodyView, encoding: &str) {
    if body.is_text {
        content["text"] = String::from_utf8_lossy(&body.bytes).into();
    } else if !body.bytes.is_empty() {
        content["text"] = BASE64.encode(&body.bytes).into();
        content[encoding] = "base64".into();
    }
}

/// Why a body is incomplete or unreadable.
fn note(side: &str, part: &Part, body: &BodyView) -> Option<String> {
    let captured = part.body.len();
    let mut notes = Vec::new();
    match body.extent {
        Extent::LeftOut => notes.push(format!(
            "left out, because a file has at most {} MiB of bodies; export this exchange alone",
            MAX_ANSWER >> 20
        )),
        Extent::Cut => notes.push("decoded in part".to_owned()),
        Extent::Whole => {}
    }
    if body.is_coded && body.extent != Extent::LeftOut {
        notes.push("not decoded".to_owned());
    }
    if part.size > captured as u64 {
        notes.push(format!("only the first {captured} of {} bytes captured", part.size));
    }
    (!notes.is_empty()).then(|| format!("{side} body {}", notes.join(", ")))
}

fn headers(head: &Head) -> Vec<Value> {
    head.headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// The URL that the visitor requested.
fn url(request: &Head) -> String {
    let scheme = request.header("x-forwarded-proto").unwrap_or("http");
    let host = request.header("x-forwarded-host").or_else(|| request.header("host")).unwrap_or("localhost");
    if request.path().starts_with('/') {
        format!("{scheme}://{host}{}", request.path())
    } else {
        format!("{scheme}://{host}/")
    }
}

/// A command that sends the request again to its public address.
pub(crate) fn curl(record: &Record, view: View<'_>) -> String {
    let request = view.head(record.request());
    let body = view.body(record.request(), &mut Budget::of_answer());
    let url = url(&request);
    let mut command = format!("curl {}", quoted(&url));
    // curl expands these in a URL, and masked values have them.
    if url.contains(['[', ']', '{', '}']) {
        command.push_str(" --globoff");
    }
    if url.contains("/.") {
        command.push_str(" --path-as-is");
    }
    let has_body = record.request().size > 0;
    if request.method() == "HEAD" {
        command.push_str(" --head");
    } else if request.method() != if has_body { "POST" } else { "GET" } {
        command = format!("{command} -X {}", quoted(request.method()));
    }
    // The server or curl sets these.
    let hop = ["host", "content-length", "connection", "transfer-encoding", "content-encoding", "accept-encoding"];
    for (name, value) in &request.headers {
        let lower = name.to_ascii_lowercase();
        if !hop.contains(&lower.as_str()) && !lower.starts_with("x-forwarded-") {
            // A colon without a value would remove the header.
            let header = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
            command = format!("{command} \\\n  -H {}", quoted(&header));
        }
    }
    if has_body {
        let text = String::from_utf8_lossy(&body.bytes);
        let incomplete = !body.is_text || record.request().size > record.request().body.len() as u64;
        // An incomplete or binary body has to come from a file.
        let data = if incomplete { quoted("@body.bin") } else { quoted(&text) };
        command = format!("{command} \\\n  {} {data}", if incomplete { "--data-binary" } else { "--data-raw" });
    }
    command
}

/// A word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::time::Instant;

    use super::{super::mask::Mask, *};

    #[test]
    fn a_shell_parses_the_command_as_intended() {
        let head = b"POST /a'b?x=$(id) HTTP/1.1\r\nHost: h.test\r\nX-Evil: `id` \"; rm -rf /\r\nAuthorization: Basic eA==\r\n\r\n";
        let mut record = Record::new("web", head, None, SystemTime::UNIX_EPOCH, Instant::now());
        record.parts.request.body = b"it's $HOME".to_vec();
        record.parts.request.size = 10;
        let mask = Mask::default();
        let command = curl(&record, View::new(&mask, false));
        let shell =
            std::process::Command::new("sh").arg("-c").arg(format!("printf '%s\\n' {command}")).output().expect("sh");
        let words = String::from_utf8_lossy(&shell.stdout).into_owned();
        assert_eq!(
            words.lines().collect::<Vec<_>>(),
            [
                "curl",
                "http://h.test/a'b?x=$(id)",
                "-H",
                "X-Evil: `id` \"; rm -rf /",
                "-H",
                "Authorization: [masked]",
                "--data-raw",
                "it's $HOME"
            ]
        );
    }
}
