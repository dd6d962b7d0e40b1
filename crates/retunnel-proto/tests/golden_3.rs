//! Bytes recorded from the published clients 3.x (`fixtures/record_3.py`): we read them, and write the same.

use std::{fs, path::Path};

use bytes::Bytes;
use retunnel_proto::{
    dialect::v3::{
        Assembly, FromClient, HttpMeta, MessageKind, SocketMeta, StreamEvent, StreamFrame, TunnelCreate, WireVersion,
        is_dialect_3,
    },
    limits::V3_MAX_MESSAGE,
    message::TunnelProtocol,
};

/// A client of each wire version.
const VERSIONS: [(&str, WireVersion); 2] = [("3.0.3", WireVersion::One), ("3.3.2", WireVersion::Two)];

fn message(version: &str, name: &str) -> FromClient {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v3/{version}/{name}.bin"));
    let bytes = Bytes::from(fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    assert!(is_dialect_3(&bytes), "{version} {name}");
    let message = FromClient::decode(&bytes).unwrap_or_else(|error| panic!("{version} {name}: {error}"));
    assert_eq!(message.encode(), bytes, "{version} {name}: what we write");
    message
}

fn tunnel(version: &str, name: &str) -> TunnelCreate {
    let FromClient::TunnelCreate(request) = message(version, name) else { panic!("not TunnelCreate") };
    request
}

fn event(version: &str, name: &str, stream: u64) -> StreamEvent {
    let FromClient::Stream(StreamFrame { stream_id, event }) = message(version, name) else { panic!("no stream's") };
    assert_eq!(stream_id, stream, "{version} {name}");
    event
}

fn data(version: &str, name: &str, stream: u64) -> (Bytes, Option<MessageKind>, Option<bool>) {
    let StreamEvent::Data { data, kind, fin } = event(version, name, stream) else { panic!("{name} is not data") };
    (data, kind, fin)
}

#[test]
fn auth() {
    for (version, wire) in VERSIONS {
        let FromClient::Auth { token, version } = message(version, "Auth") else { panic!("not Auth") };
        assert_eq!((token.expect("a token").expose(), version), ("rt_recorded", wire));
    }
}

#[test]
fn tunnel_requests() {
    let nothing =
        TunnelCreate { protocol: TunnelProtocol::Http, subdomain: None, path: None, remote_port: None, hostname: None };
    for (version, _) in VERSIONS {
        let subdomain = Some("app".into());
        assert_eq!(tunnel(version, "TunnelCreate-http"), TunnelCreate { subdomain, ..nothing.clone() });
        let tcp = TunnelCreate { protocol: TunnelProtocol::Tcp, remote_port: Some(20022), ..nothing.clone() };
        assert_eq!(tunnel(version, "TunnelCreate-tcp"), tcp);
    }
    let path = TunnelCreate { path: Some(String::new()), ..nothing.clone() };
    assert_eq!(tunnel("3.3.2", "TunnelCreate-path"), path);
    let hostname = TunnelCreate { hostname: Some("shop.example.org".into()), ..nothing };
    assert_eq!(tunnel("3.3.2", "TunnelCreate-hostname"), hostname);
}

#[test]
fn answers() {
    for (version, wire) in VERSIONS {
        assert_eq!(message(version, "HeartbeatAck"), FromClient::HeartbeatAck);
        let (meta, _, fin) = data(version, "HttpMeta", 1);
        assert_eq!(fin, (wire == WireVersion::Two).then_some(true));
        let meta = HttpMeta::decode(&meta).expect("a head");
        assert_eq!(meta.status, 200);
        let values = |wanted: &str| -> Vec<&str> {
            meta.headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(values("X-Utf8"), ["gr\u{fc}n"]);
        // 3.0.x keeps the first of a name.
        let cookies: &[&str] = if wire == WireVersion::One { &["a=1"] } else { &["a=1", "b=2"] };
        assert_eq!(values("Set-Cookie"), cookies);
        assert_eq!(data(version, "StreamData-http", 1), (Bytes::from_static(b"hello"), None, None));
        assert_eq!(event(version, "StreamClose-http", 1), StreamEvent::Close { code: None, reason: None });
        let StreamEvent::Reset { reason } = event(version, "StreamReset", 2) else { panic!("not a reset") };
        assert!(reason.ends_with("Server disconnected"), "{reason}");
    }
}

#[test]
fn messages_of_a_websocket() {
    for (version, wire) in VERSIONS {
        let fin = (wire == WireVersion::Two).then_some(true);
        let text = Bytes::from("gr\u{fc}n");
        assert_eq!(data(version, "Message-text", 3), (text, Some(MessageKind::Text), fin));
        assert_eq!(data(version, "Message-empty", 3), (Bytes::new(), Some(MessageKind::Binary), fin));
        let mut assembly = Assembly::new(V3_MAX_MESSAGE);
        let (first, _, fin) = data(version, "Message-big", 3);
        let mut whole = assembly.push(first, fin).expect("fits");
        if wire == WireVersion::Two {
            assert_eq!(whole, None);
            let (last, _, fin) = data(version, "Message-big-last", 3);
            whole = assembly.push(last, fin).expect("fits");
        }
        assert_eq!(whole.expect("complete").len(), 66_000);
        let close = StreamEvent::Close { code: Some(4001), reason: Some("enough".into()) };
        assert_eq!(event(version, "StreamClose-ws", 3), close);
    }
    let (meta, _, _) = data("3.3.2", "SocketMeta", 3);
    assert_eq!(SocketMeta::decode(&meta), Ok(SocketMeta::Accepted { subprotocol: None }));
    let (meta, _, _) = data("3.3.2", "SocketMeta-refused", 4);
    assert!(matches!(SocketMeta::decode(&meta), Ok(SocketMeta::Refused { status: 403, .. })));
}

#[test]
fn bytes_of_a_tcp_stream() {
    for (version, _) in VERSIONS {
        assert_eq!(data(version, "StreamData-tcp", 1), (Bytes::from_static(b"ping"), None, None));
    }
}
