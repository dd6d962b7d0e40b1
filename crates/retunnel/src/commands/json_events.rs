//! Lines of `--json-events`. `docs/json-events.md` describes the schema.

use std::time::{SystemTime, UNIX_EPOCH};

use retunnel_client::{Event, Refusal};
use serde_json::{Value, json};

/// Version of the schema. New fields and events do not change it; existing ones keep their meaning.
const VERSION: u32 = 1;

/// The line for an event of the client; `None` if another line covers it.
pub(crate) fn of(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Connecting { attempt, .. } => line("connecting", json!({ "attempt": attempt })),
        Event::Connected { session, .. } => {
            line("connected", json!({ "server": session.server, "account": session.account }))
        }
        Event::Disconnected { cause, retry_in, .. } => {
            let retry_in = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
            line("disconnected", json!({ "cause": cause.to_string(), "retry_in_ms": retry_in }))
        }
        Event::TunnelOpened(info) => line("tunnel_opened", json!({ "tunnel": info.name, "url": info.url })),
        Event::TunnelRestored(info) => line("tunnel_restored", json!({ "tunnel": info.name, "url": info.url })),
        Event::TunnelFailed { name, refusal, .. } => refused("tunnel_failed", name, refusal),
        Event::TunnelClosed { name, refusal, .. } => refused("tunnel_closed", name, refusal),
        Event::Request { tunnel, request, .. } if request.method.is_empty() => line(
            "connection",
            json!({
                "tunnel": tunnel, "visitor": request.visitor, "duration_ms": request.duration_ms,
                "bytes_in": request.bytes_in, "bytes_out": request.bytes_out, "started_ms": request.started_ms,
            }),
        ),
        Event::Request { tunnel, request, .. } => line(
            "request",
            json!({
                "tunnel": tunnel, "method": request.method, "path": request.path, "status": request.status,
                "duration_ms": request.duration_ms, "bytes_in": request.bytes_in, "bytes_out": request.bytes_out,
                "visitor": request.visitor, "started_ms": request.started_ms,
                "error": if request.error.is_empty() { Value::Null } else { request.error.clone().into() },
            }),
        ),
        Event::LocalUnreachable { tunnel, reason, .. } => {
            line("local_unreachable", json!({ "tunnel": tunnel, "reason": reason }))
        }
        Event::OutOfDescriptors { refused, .. } => line("out_of_descriptors", json!({ "refused": refused })),
        _ => return None,
    })
}

/// The line for a tunnel that the server refused or closed.
pub(crate) fn refused(event: &str, tunnel: &str, refusal: &Refusal) -> Value {
    line(
        event,
        json!({
            "tunnel": tunnel, "code": refusal.code.as_str(), "message": refusal.message, "final": refusal.code.is_final()
        }),
    )
}

/// A line with the fields that all lines have.
pub(crate) fn line(event: &str, mut fields: Value) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    fields["v"] = VERSION.into();
    fields["event"] = event.into();
    fields["time_ms"] = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).into();
    fields
}
