//! Exchanges as JSON for pages and scripts (`docs/inspector.md`). Secrets are masked unless the caller asks to reveal them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use retunnel_client::tap::Side;
use serde_json::{Value, json};

use super::{
    decode::{Budget, Extent, decode},
    head::Head,
    mask::Mask,
    record::{Part, Record},
    store::Entry,
};

/// Shows exchanges with or without masking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    mask: Option<&'a Mask>,
}

/// A body for display.
pub(crate) struct BodyView {
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_text: bool,
    pub(crate) extent: Extent,
    /// Some of its codings could not be removed.
    pub(crate) is_coded: bool,
    codings: Vec<String>,
}

impl<'a> View<'a> {
    pub(crate) fn new(mask: &'a Mask, reveal: bool) -> Self {
        Self { mask: (!reveal).then_some(mask) }
    }

    pub(crate) fn head(self, part: &Part) -> Head {
        let head = Head::parse(&part.head);
        match self.mask {
            Some(mask) => mask.head(&head),
            None => head,
        }
    }

    /// The body decoded and masked.
    pub(crate) fn body(self, part: &Part, budget: &mut Budget) -> BodyView {
        let head = Head::parse(&part.head);
        let decoded = decode(&part.body, head.header("content-encoding"), budget);
        // Text that was cut inside a character is still text.
        let text = match std::str::from_utf8(&decoded.bytes) {
            Ok(text) => Some(text),
            Err(error) if error.error_len().is_none() => {
                std::str::from_utf8(&decoded.bytes[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let text = text.filter(|text| !text.contains('\0'));
        let is_text = text.is_some();
        let bytes = match (text, self.mask) {
            (Some(text), Some(mask)) => mask.body(&head.media_type(), text).into_bytes(),
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, _) => decoded.bytes.into_owned(),
        };
        BodyView { bytes, is_text, extent: decoded.extent, is_coded: decoded.is_coded, codings: decoded.codings }
    }

    /// Whether an exchange contains a lower-case text, after masking; `None` if a body was left out and nothing else does.
    pub(crate) fn contains(self, record: &Record, text: &str, budget: &mut Budget) -> Option<bool> {
        let mut is_left_out = false;
        let is_in = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_lowercase().contains(text);
        let mut in_part = |part: &Part| {
            let head = self.head(part);
            let in_head = head.first.iter().any(|word| word.to_lowercase().contains(text))
                || head.headers.iter().any(|(name, value)| format!("{name}: {value}").to_lowercase().contains(text));
            if in_head {
                return true;
            }
            let body = self.body(part, budget);
            is_left_out |= body.extent == Extent::LeftOut;
            is_in(&body.bytes)
        };
        let is_found = record.parts.iter().any(&mut in_part)
            || record.messages.iter().flat_map(|messages| &messages.kept).any(|message| {
                self.text_or_base64(&message.data, true).0.is_some_and(|shown| shown.to_lowercase().contains(text))
            });
        (is_found || !is_left_out).then_some(is_found)
    }

    /// The summary for the list.
    pub(crate) fn summary(self, entry: &Entry) -> Value {
        self.summary_of(entry.id, &entry.record())
    }

    fn summary_of(self, id: u64, record: &Record) -> Value {
        let (request, response) = (self.head(record.request()), self.head(record.response()));
        json!({
            "id": id,
            "tunnel": record.tunnel,
            "replay_of": record.replay_of,
            "retry_of": record.retry_of,
            "retried_as": record.retried_as,
            "started_ms": unix_ms(record.started),
            "method": request.method(),
            "path": request.path(),
            "host": request.header("host"),
            "status": status(record),
            "service_status": record.response().status(),
            "content_type": response.media_type(),
            "kind": kind(record),
            "state": state(record),
            "error": record.failure,
            "error_code": record.report.as_ref().map(|report| &report.error).filter(|code| !code.is_empty()),
            "duration_ms": ms(duration(record)),
            "request_size": record.request().size,
            "response_size": record.response().size,
            "messages": record.messages.as_ref().map(|messages| messages.count),
        })
    }

    /// All details of an exchange.
    pub(crate) fn detail(self, entry: &Entry) -> Value {
        let (record, mut budget) = (entry.snapshot(), Budget::of_answer());
        let mut value = self.summary_of(entry.id, &record);
        value["timings"] = json!({
            "request_ms": ms(record.request().ended),
            "wait_ms": ms(record.response().began),
            "response_ms": ms(record.response().ended),
        });
        value["request"] = self.part(record.request(), &mut budget);
        value["response"] = match record.response() {
            part if part.head.is_empty() => Value::Null,
            part => self.part(part, &mut budget),
        };
        value["message_list"] = record.messages.as_ref().map_or(Value::Null, |messages| {
            messages
                .kept
                .iter()
                .map(|message| {
                    let (text, base64) = self.text_or_base64(&message.data, message.kind != "binary");
                    json!({
                        "number": message.number, "at_ms": ms(Some(message.at)), "size": message.size,
                        "from": if message.side == Side::Request { "visitor" } else { "service" },
                        "kind": message.kind, "text": text, "base64": base64,
                        "truncated": (message.data.len() as u64) < message.size && message.kind != "event",
                    })
                })
                .collect()
        });
        value
    }

    fn part(self, part: &Part, budget: &mut Budget) -> Value {
        let (head, body) = (self.head(part), self.body(part, budget));
        let text = body.is_text.then(|| String::from_utf8_lossy(&body.bytes).into_owned());
        json!({
            "first_line": head.first.join(" ").trim_end(),
            "headers": head.headers,
            "media_type": head.media_type(),
            "size": part.size,
            "captured": part.body.len(),
            "truncated": part.size > part.body.len() as u64,
            "decoded": body.codings,
            "decoded_cut": body.extent != Extent::Whole,
            "complete": part.ended.is_some(),
            "base64": if text.is_none() { Value::from(BASE64.encode(&body.bytes)) } else { Value::Null },
            "text": text,
        })
    }

    fn text_or_base64(self, bytes: &[u8], is_text: bool) -> (Option<String>, Option<String>) {
        match std::str::from_utf8(bytes) {
            Ok(text) if is_text => (Some(self.mask.map_or_else(|| text.to_owned(), |mask| mask.body("", text))), None),
            _ => (None, Some(BASE64.encode(bytes))),
        }
    }
}

fn kind(record: &Record) -> &'static str {
    match &record.messages {
        Some(messages) if messages.is_websocket() => "websocket",
        Some(_) => "events",
        None => "http",
    }
}

/// The status that the visitor got: what the server reported, or the local service's until then. 0 if there is none yet.
pub(crate) fn status(record: &Record) -> u16 {
    /// What servers answer while the local service does not accept connections.
    const UNREACHABLE: u16 = 502;
    match &record.report {
        Some(report) => report.status,
        None if record.failure.is_some() => UNREACHABLE,
        None => record.response().status(),
    }
}

/// `open`, `done`, `failed` if the local service did not accept the connection, `retried` if the server repeated the request
/// on another connection, or `cut` if the local service closed before the end.
fn state(record: &Record) -> &'static str {
    if record.failure.is_some() {
        return "failed";
    }
    if record.retried_as.is_some() {
        return "retried";
    }
    match (record.response().ended, record.is_over()) {
        (Some(_), _) => "done",
        (None, true) => "cut",
        (None, false) => "open",
    }
}

/// How long a finished exchange took.
pub(crate) fn duration(record: &Record) -> Option<Duration> {
    record.response().ended.or(record.over)
}

/// Milliseconds with a fraction.
pub(crate) fn ms(time: Option<Duration>) -> Value {
    time.map_or(Value::Null, |time| json!((time.as_secs_f64() * 100_000.0).round() / 100.0))
}

pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time in RFC 3339 format, in UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let millis = unix_ms(time);
    let (days, seconds) = ((millis / 86_400_000) as i64, millis / 1000 % 86_400);
    // Converts days to a date by counting eras of 400 years that start on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_795_566_600_000, "2026-11-25T00:30:00.000Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(ms)), text);
        }
    }
}
