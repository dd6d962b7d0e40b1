//! Any bytes decode to a message or an error, and everything we encode decodes to the same message.

use bytes::Bytes;
use proptest::prelude::*;
use retunnel_proto::{
    ClientId, RequestId, TunnelId,
    dialect::{v2, v3},
    message::{
        Auth, ClientMessage, Heartbeat, HttpAuth, NewTunnel, ProxyRequest, ProxyResponse, RegProxy, ReqTunnel,
        ServerMessage, StartProxy, Token, TunnelProtocol,
    },
    native::{
        self, FrameHeader, HEADER_LEN, ReasonCode,
        control::{FromClient, FromServer, Open},
    },
    rules::of_fields,
};

fn text() -> impl Strategy<Value = String> {
    "[ -~äß漢]{0,40}"
}

/// Texts whose empty form counts as missing.
fn optional() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[ -~]{1,30}")
}

fn protocol() -> impl Strategy<Value = TunnelProtocol> {
    prop_oneof![Just(TunnelProtocol::Http), Just(TunnelProtocol::Tcp)]
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let auth = (optional(), text(), text(), text(), "[ -~]{1,20}").prop_map(|(token, client_id, os, arch, version)| {
        ClientMessage::Auth(Auth { token: token.map(Token::new), client_id, os, arch, version })
    });
    let request = (text(), protocol(), optional(), optional(), prop::option::of(1_u16..), optional()).prop_map(
        |(id, protocol, subdomain, hostname, remote_port, auth)| {
            ClientMessage::ReqTunnel(ReqTunnel {
                request_id: RequestId::from_text(id),
                protocol,
                subdomain,
                hostname,
                remote_port,
                rules: of_fields(auth.map(HttpAuth), None),
            })
        },
    );
    prop_oneof![
        auth,
        request,
        text().prop_map(|id| ClientMessage::RegProxy(RegProxy { client_id: ClientId::from_text(id) })),
        Just(ClientMessage::Ping),
        Just(ClientMessage::Pong),
        (text(), -1e12..1e12)
            .prop_map(|(subdomain, timestamp)| { ClientMessage::Heartbeat(Heartbeat { subdomain, timestamp }) }),
    ]
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let tunnel =
        (text(), "[a-z0-9]{1,20}", protocol(), text(), text()).prop_map(|(id, tunnel, protocol, url, subdomain)| {
            ServerMessage::NewTunnel(NewTunnel {
                request_id: RequestId::from_text(id),
                tunnel_id: TunnelId::from_text(tunnel),
                protocol,
                url,
                subdomain,
                remote_port: None,
            })
        });
    let start = (text(), text(), text()).prop_map(|(url, client_addr, id)| {
        ServerMessage::StartProxy(StartProxy { url, client_addr, request_id: RequestId::from_text(id) })
    });
    prop_oneof![tunnel, start, Just(ServerMessage::ReqProxy), Just(ServerMessage::Ping), Just(ServerMessage::Pong)]
}

fn stream_frame() -> impl Strategy<Value = v3::StreamFrame> {
    let kind = prop::option::of(prop_oneof![Just(v3::MessageKind::Text), Just(v3::MessageKind::Binary)]);
    let data = (prop::collection::vec(any::<u8>(), 0..300), kind, any::<Option<bool>>())
        .prop_map(|(data, kind, fin)| v3::StreamEvent::Data { data: data.into(), kind, fin });
    let event = prop_oneof![
        data,
        (any::<Option<u16>>(), prop::option::of(text()))
            .prop_map(|(code, reason)| v3::StreamEvent::Close { code, reason }),
        text().prop_map(|reason| v3::StreamEvent::Reset { reason }),
    ];
    (any::<u64>(), event).prop_map(|(stream_id, event)| v3::StreamFrame { stream_id, event })
}

fn tunnel_create() -> impl Strategy<Value = v3::TunnelCreate> {
    (protocol(), optional(), prop::option::of(text()), prop::option::of(1_u16..), optional()).prop_map(
        |(protocol, subdomain, path, remote_port, hostname)| v3::TunnelCreate {
            protocol,
            subdomain,
            path,
            remote_port,
            hostname,
        },
    )
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((text(), text()), 0..10)
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let shared = Bytes::from(bytes.clone());
        let _ = v2::decode_client(&bytes);
        let _ = v2::decode_server(&bytes);
        let _ = v2::decode_request(&shared);
        let _ = v2::decode_response(&shared);
        let _ = v3::FromClient::decode(&shared);
        let _ = v3::FromServer::decode(&shared);
        let _ = v3::HttpMeta::decode(&bytes);
        let _ = v3::SocketMeta::decode(&bytes);
        let _ = FromClient::decode(&bytes);
        let _ = FromServer::decode(&bytes);
        let _ = Open::decode(&bytes);
        let _ = native::decode_reason(&bytes);
        if let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
            let _ = FrameHeader::decode(*header, 1024);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(message in client_message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = v2::encode_client(&message).expect("a message of this dialect");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = v2::decode_client(&bytes);
    }

    #[test]
    fn messages_of_dialect_2_survive_a_round_trip(client in client_message(), server in server_message()) {
        let bytes = v2::encode_client(&client).expect("a message of this dialect");
        prop_assert_eq!(v2::decode_client(&bytes), Ok(client.clone()));
        prop_assert_eq!(v2::decode_client(&bytes[v2::PREFIX_LEN..]), Ok(client));
        let bytes = v2::encode_server(&server).expect("a message of this dialect");
        prop_assert_eq!(v2::decode_server(&bytes), Ok(server));
    }

    #[test]
    fn a_changed_byte_of_dialect_3_never_panics(frame in stream_frame(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = frame.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = v3::FromClient::decode(&bytes.into());
    }

    #[test]
    fn messages_of_dialect_3_survive_a_round_trip(frame in stream_frame(), request in tunnel_create()) {
        let bytes = Bytes::from(frame.encode());
        prop_assert_eq!(v3::FromClient::decode(&bytes), Ok(v3::FromClient::Stream(frame.clone())));
        prop_assert_eq!(v3::FromServer::decode(&bytes), Ok(v3::FromServer::Stream(frame)));
        let request = v3::FromClient::TunnelCreate(request);
        prop_assert_eq!(v3::FromClient::decode(&request.encode().into()), Ok(request));
    }

    #[test]
    fn requests_of_dialect_3_survive_a_round_trip(
        headers in headers(),
        body in prop::collection::vec(any::<u8>(), 0..500),
        (method, path, tunnel_id) in ("[A-Z]{1,8}", text(), text()),
        has_body in any::<bool>(),
    ) {
        let body = Bytes::from(body);
        let mode = v3::StreamMode::Http;
        let open = v3::StreamOpen { stream_id: 1, tunnel_id, mode, method, path, headers, body, has_body };
        let sent = v3::FromServer::StreamOpen(open.clone());
        prop_assert_eq!(v3::FromServer::decode(&sent.encode(v3::WireVersion::Two).into()), Ok(sent.clone()));
        let read = v3::FromServer::decode(&sent.encode(v3::WireVersion::One).into());
        let Ok(v3::FromServer::StreamOpen(read)) = read else { panic!("{read:?}") };
        prop_assert_eq!((read.method, read.path, read.body), (open.method, open.path, open.body));
    }

    #[test]
    fn envelopes_survive_a_round_trip(
        headers in headers(),
        body in prop::collection::vec(any::<u8>(), 0..500),
        status in any::<u16>(),
        (method, path, query) in (text(), text(), text()),
    ) {
        let body = Bytes::from(body);
        let request = ProxyRequest { method, path, query, headers: headers.clone(), body: body.clone() };
        prop_assert_eq!(v2::decode_request(&Bytes::from(v2::encode_request(&request))), Ok(request));
        let response = ProxyResponse { status, headers, body };
        prop_assert_eq!(v2::decode_response(&Bytes::from(v2::encode_response(&response))), Ok(response));
    }

    #[test]
    fn native_messages_survive_a_round_trip(message in client_message(), (tunnel, visitor) in (text(), text()), code in any::<u32>(), reason in text()) {
        if let Some(bytes) = FromClient::Message(message.clone()).encode() {
            prop_assert_eq!(FromClient::decode(&bytes), Ok(FromClient::Message(message)));
        }
        let open = Open { tunnel: TunnelId::from_text(tunnel), protocol: TunnelProtocol::Tcp, visitor };
        prop_assert_eq!(Open::decode(&open.encode()), Ok(open));
        let (found, _) = native::decode_reason(&native::encode_reason(ReasonCode(code), &reason)).expect("valid");
        prop_assert_eq!(found, ReasonCode(code));
    }
}

#[test]
fn row_33_declared_sizes_are_never_believed() {
    let huge: [&[u8]; 5] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff, b'x'],
        &[0xc6, 0xff, 0xff, 0xff, 0xff, 0],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1, 0],
    ];
    for bytes in huge {
        let in_a_map = [&[0x81, 0xa4][..], b"Type", bytes].concat();
        for bytes in [bytes, &in_a_map] {
            assert!(v2::decode_client(bytes).is_err());
            assert!(v2::decode_response(&Bytes::copy_from_slice(bytes)).is_err());
            assert!(v3::FromClient::decode(&Bytes::copy_from_slice(bytes)).is_err());
            assert!(v3::HttpMeta::decode(bytes).is_err());
            assert!(FromClient::decode(bytes).is_err());
            assert!(FromServer::decode(bytes).is_err());
        }
    }
    let deep = [&[0x81, 0xa4][..], b"Type", &[0x91; 100_000]].concat();
    assert!(v2::decode_client(&deep).is_err());
    assert!(FromClient::decode(&deep).is_err());
}
