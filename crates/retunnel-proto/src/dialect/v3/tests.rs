use bytes::Bytes;

use super::*;
use crate::{
    DecodeError,
    limits::{V3_CHUNK, V3_MAX_FRAME_TO_V1, V3_MAX_REQUEST_BODY_V1},
    message::RefusalCode,
};

fn frame(event: StreamEvent) -> StreamFrame {
    StreamFrame { stream_id: 70_000, event }
}

fn frames() -> Vec<StreamFrame> {
    let data = |data: &'static [u8], kind, fin| StreamEvent::Data { data: Bytes::from_static(data), kind, fin };
    vec![
        frame(data(b"\x00\xff", None, None)),
        frame(data(b"", Some(MessageKind::Text), Some(true))),
        frame(data(b"part", Some(MessageKind::Binary), Some(false))),
        frame(StreamEvent::Close { code: None, reason: None }),
        frame(StreamEvent::Close { code: Some(4001), reason: Some("enough".into()) }),
        frame(StreamEvent::Reset { reason: String::new() }),
    ]
}

fn open() -> StreamOpen {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    StreamOpen {
        stream_id: 7,
        tunnel_id: "app".into(),
        mode: StreamMode::Http,
        method: "POST".into(),
        path: "/a%20b?x=1".into(),
        headers: vec![
            pair("Host", "app.test"),
            pair("Cookie", "a=1"),
            pair("X", "1"),
            pair("cookie", "b=2"),
            pair("x", "2"),
        ],
        body: Bytes::from_static(b"\x00body"),
        has_body: false,
    }
}

fn client(message: &FromClient) -> Result<FromClient, DecodeError> {
    FromClient::decode(&message.encode().into())
}

fn server(message: &FromServer, version: WireVersion) -> Result<FromServer, DecodeError> {
    FromServer::decode(&message.encode(version).into())
}

#[test]
fn messages_survive_a_round_trip() {
    let tunnel = |path: Option<&str>| TunnelCreate {
        protocol: TunnelProtocol::Tcp,
        subdomain: Some("app".into()),
        path: path.map(str::to_owned),
        remote_port: Some(22),
        hostname: None,
    };
    let mut from_client = vec![
        FromClient::Auth { token: Some(Token::new("rt_secret")), version: WireVersion::Two },
        FromClient::Auth { token: None, version: WireVersion::One },
        FromClient::TunnelCreate(tunnel(None)),
        FromClient::TunnelCreate(tunnel(Some(""))),
        FromClient::HeartbeatAck,
        FromClient::StreamOpen { stream_id: 3 },
    ];
    from_client.extend(frames().into_iter().map(FromClient::Stream));
    for message in from_client {
        assert_eq!(client(&message).as_ref(), Ok(&message));
    }
    let created = TunnelCreated {
        url: "tcp://app.test:20022".into(),
        subdomain: "app".into(),
        path: None,
        remote_port: Some(20022),
    };
    let mut from_server = vec![
        FromServer::HeartbeatAck { version: WireVersion::One },
        FromServer::HeartbeatAck { version: WireVersion::Two },
        FromServer::Error { code: "TCP_DISABLED".into(), message: "no".into() },
        FromServer::TunnelCreated(created),
        FromServer::StreamOpen(open()),
        FromServer::StreamOpen(StreamOpen {
            mode: StreamMode::WebSocket,
            body: Bytes::new(),
            has_body: true,
            ..open()
        }),
        FromServer::Heartbeat,
    ];
    from_server.extend(frames().into_iter().map(FromServer::Stream));
    for message in from_server {
        assert_eq!(server(&message, WireVersion::Two).as_ref(), Ok(&message));
    }
}

#[test]
fn version_1_joins_headers_behind_the_method() {
    let mut sent = open();
    sent.headers.push(("Method".into(), "DELETE".into()));
    let bytes = FromServer::StreamOpen(sent).encode(WireVersion::One);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("headers\u{fffd}\u{fffd}:method\u{fffd}POST"), "a map that begins with the method: {text}");
    let Ok(FromServer::StreamOpen(read)) = FromServer::decode(&bytes.into()) else { panic!("not StreamOpen") };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(read.method, "POST");
    assert_eq!(read.headers, [pair("Host", "app.test"), pair("Cookie", "a=1; b=2"), pair("X", "1, 2")]);

    let protocols = vec![pair("Sec-WebSocket-Protocol", "chat")];
    let socket = StreamOpen { mode: StreamMode::WebSocket, method: "GET".into(), headers: protocols, ..open() };
    let Ok(FromServer::StreamOpen(read)) = server(&FromServer::StreamOpen(socket), WireVersion::One) else {
        panic!("not StreamOpen")
    };
    assert_eq!((read.method.as_str(), read.headers), ("GET", vec![pair("sec-websocket-protocol", "chat")]));
}

#[test]
fn a_request_at_the_limit_of_version_1_fits_its_frame() {
    let body = Bytes::from(vec![7; V3_MAX_REQUEST_BODY_V1]);
    let request = FromServer::StreamOpen(StreamOpen { body, path: "/".repeat(16_000), ..open() });
    assert!(request.encode(WireVersion::One).len() < V3_MAX_FRAME_TO_V1);
}

fn raw(fields: &[(&str, rmpv::Value)]) -> Bytes {
    let map = fields.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &rmpv::Value::Map(map)).expect("written");
    bytes.into()
}

#[test]
fn what_3_0_0_leaves_out_is_empty() {
    let auth = FromClient::decode(&raw(&[("Type", "Auth".into())]));
    assert_eq!(auth, Ok(FromClient::Auth { token: None, version: WireVersion::One }));
    let data =
        FromClient::decode(&raw(&[("Type", "StreamData".into()), ("stream_id", 1.into()), ("ws_type", "text".into())]));
    let event = StreamEvent::Data { data: Bytes::new(), kind: Some(MessageKind::Text), fin: None };
    assert_eq!(data, Ok(FromClient::Stream(StreamFrame { stream_id: 1, event })));
    let reset = FromClient::decode(&raw(&[("Type", "StreamReset".into()), ("stream_id", 1.into())]));
    let event = StreamEvent::Reset { reason: String::new() };
    assert_eq!(reset, Ok(FromClient::Stream(StreamFrame { stream_id: 1, event })));
}

#[test]
fn invalid_versions_count_as_the_first() {
    for (announced, meant) in [
        (rmpv::Value::Nil, WireVersion::One),
        (0.into(), WireVersion::One),
        ((-3).into(), WireVersion::One),
        ("2".into(), WireVersion::One),
        (2.into(), WireVersion::Two),
        (9.into(), WireVersion::Two),
    ] {
        let auth = FromClient::decode(&raw(&[("Type", "Auth".into()), ("version", announced.clone())]));
        assert_eq!(auth, Ok(FromClient::Auth { token: None, version: meant }), "{announced}");
    }
}

#[test]
fn the_first_message_shows_the_dialect() {
    let mut three = FromClient::Auth { token: None, version: WireVersion::Two }.encode();
    assert!(is_dialect_3(&three));
    three.splice(..0, (three.len() as u64).to_be_bytes());
    assert!(!is_dialect_3(&three));
    assert!(!is_dialect_3(b""));
}

#[test]
fn metas_survive_a_round_trip() {
    let headers = vec![("Set-Cookie".to_owned(), "a=1".to_owned()), ("Set-Cookie".to_owned(), "b=2".to_owned())];
    let meta = HttpMeta { status: 200, headers: headers.clone() };
    assert_eq!(HttpMeta::decode(&meta.encode()), Ok(meta));
    for meta in [
        SocketMeta::Accepted { subprotocol: None },
        SocketMeta::Accepted { subprotocol: Some("chat".into()) },
        SocketMeta::Refused { status: 403, reason: "no".into(), headers },
    ] {
        assert_eq!(SocketMeta::decode(&meta.encode()), Ok(meta));
    }
}

#[test]
fn messages_are_cut_and_joined() {
    for size in [0, 1, V3_CHUNK, V3_CHUNK + 1, 3 * V3_CHUNK] {
        let message = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let parts: Vec<_> = chunks(message.clone()).collect();
        assert_eq!(parts.len(), size.div_ceil(V3_CHUNK).max(1));
        assert!(parts.iter().all(|(part, _)| part.len() <= V3_CHUNK));
        let mut assembly = Assembly::new(size);
        let whole: Vec<_> =
            parts.into_iter().filter_map(|(part, fin)| assembly.push(part, Some(fin)).expect("fits")).collect();
        assert_eq!(whole, [message]);
        assert!(assembly.is_empty());
    }
    let mut assembly = Assembly::new(10);
    assert_eq!(assembly.push(Bytes::from_static(b"whole"), None), Ok(Some(Bytes::from_static(b"whole"))));
    assert_eq!(assembly.push(Bytes::from_static(b"123456"), Some(false)), Ok(None));
    assert!(matches!(assembly.push(Bytes::from_static(b"789ab"), Some(true)), Err(DecodeError::TooLarge { .. })));
}

/// Codes after which every version stops at once (`docs/protocol.md`, dialect 3).
#[test]
fn refusals_are_final_or_temporary_in_both_forms() {
    const ENDING: [&str; 11] = [
        "UNAUTHORIZED",
        "AUTH_REQUIRED",
        "SUBDOMAIN_UNAVAILABLE",
        "PATH_TAKEN",
        "PATH_LIMIT",
        "TCP_DISABLED",
        "HOSTNAME_NOT_REGISTERED",
        "HOSTNAME_NOT_VERIFIED",
        "HOSTNAME_TAKEN",
        "INVALID_HOSTNAME",
        "INVALID_PATH",
    ];
    for code in RefusalCode::KNOWN {
        for by_path in [false, true] {
            let text = error_code(code, by_path);
            let ends = ENDING.contains(&text) || text == "UNSUPPORTED_PROTOCOL";
            // A session that was taken over gets no second answer; the code is only logged.
            assert_eq!(ends, code.is_final() && *code != RefusalCode::Superseded, "{code} as {text}");
            let read = refusal_code(text);
            assert_eq!(read.is_final(), ends, "{text} as {read}");
        }
    }
    for text in ["HOSTNAME_NO_CERTIFICATE", "SERVICE_UNAVAILABLE", "SUBDOMAIN_TAKEN", "NEW_CODE"] {
        assert_eq!(refusal_code(text), RefusalCode::Other(text.into()));
    }
}

#[test]
fn row_33_broken_messages_are_errors() {
    let of = |bytes: &[u8]| FromClient::decode(&Bytes::copy_from_slice(bytes));
    assert_eq!(of(&[0x80]), Err(DecodeError::MissingType));
    assert_eq!(FromClient::decode(&raw(&[("Type", "Warp".into())])), Err(DecodeError::UnknownType("Warp".into())));
    let no_stream = FromClient::decode(&raw(&[("Type", "StreamClose".into())]));
    assert_eq!(no_stream, Err(DecodeError::Field("stream_id")));
    let negative = FromClient::decode(&raw(&[("Type", "StreamClose".into()), ("stream_id", (-1).into())]));
    assert_eq!(negative, Err(DecodeError::Field("stream_id")));
    let odd_code = raw(&[("Type", "StreamClose".into()), ("stream_id", 1.into()), ("code", 1_000_000.into())]);
    let event = StreamEvent::Close { code: None, reason: None };
    assert_eq!(FromClient::decode(&odd_code), Ok(FromClient::Stream(StreamFrame { stream_id: 1, event })));
    let long = "ä".repeat(500);
    let reset = raw(&[("Type", "StreamReset".into()), ("stream_id", 1.into()), ("reason", long.as_str().into())]);
    let Ok(FromClient::Stream(StreamFrame { event: StreamEvent::Reset { reason }, .. })) = FromClient::decode(&reset)
    else {
        panic!("not a reset")
    };
    assert_eq!(reason.len(), 256);
    let deep = [&[0x81, 0xa1, b'a'][..], &[0x91; 100_000]].concat();
    for bytes in [&[][..], &[0xc0], &[0x93, 1, 2, 3], &[0xdf, 0xff, 0xff, 0xff, 0xff], &[0x80, 0x80], &deep] {
        assert!(of(bytes).is_err());
        assert!(FromServer::decode(&Bytes::copy_from_slice(bytes)).is_err());
        assert!(HttpMeta::decode(bytes).is_err());
        assert!(SocketMeta::decode(bytes).is_err());
    }
}
