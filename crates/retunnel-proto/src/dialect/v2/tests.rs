use bytes::Bytes;

use super::*;
use crate::{
    ClientId, DecodeError, RequestId, TunnelId,
    message::{
        Auth, AuthResp, ClientMessage, ErrorResp, Heartbeat, HttpAuth, NewTunnel, ProxyRequest, ProxyResponse, Refusal,
        RefusalCode, RegProxy, ReqTunnel, ServerMessage, StartProxy, Token, TunnelProtocol, Welcome,
    },
    rules::Rule,
};

fn client_messages() -> Vec<ClientMessage> {
    vec![
        ClientMessage::Auth(Auth {
            token: Some(Token::new("rt_secret")),
            client_id: "client-abc".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            version: "2.3.40".into(),
        }),
        ClientMessage::ReqTunnel(ReqTunnel {
            request_id: RequestId::from_text("req-1"),
            protocol: TunnelProtocol::Http,
            subdomain: Some("app".into()),
            hostname: None,
            remote_port: Some(80),
            rules: vec![Rule::basic_auth(HttpAuth("me:secret".into()))],
        }),
        ClientMessage::RegProxy(RegProxy { client_id: ClientId::from_text("client-abc") }),
        ClientMessage::Ping,
        ClientMessage::Pong,
        ClientMessage::Heartbeat(Heartbeat { subdomain: "app".into(), timestamp: 1.5 }),
    ]
}

fn server_messages() -> Vec<ServerMessage> {
    vec![
        ServerMessage::AuthResp(AuthResp {
            result: Ok(Welcome {
                client_id: ClientId::from_text("client-xyz"),
                account: String::new(),
                server_version: "0.1.0".into(),
            }),
        }),
        ServerMessage::NewTunnel(NewTunnel {
            request_id: RequestId::from_text("req-1"),
            tunnel_id: TunnelId::from_text("t0123"),
            protocol: TunnelProtocol::Http,
            url: "http://app.example.test".into(),
            subdomain: "app".into(),
            remote_port: None,
        }),
        ServerMessage::ReqProxy,
        ServerMessage::StartProxy(StartProxy {
            url: "http://app.example.test#t0123".into(),
            client_addr: "127.0.0.1:1".into(),
            request_id: RequestId::from_text("req-2"),
        }),
        ServerMessage::Ping,
        ServerMessage::Pong,
    ]
}

#[test]
fn messages_survive_a_round_trip_with_and_without_length() {
    for message in client_messages() {
        let bytes = encode_client(&message).expect("a message of this dialect");
        assert_eq!(decode_client(&bytes).as_ref(), Ok(&message));
        assert_eq!(decode_client(&bytes[PREFIX_LEN..]), Ok(message));
    }
    for message in server_messages() {
        let bytes = encode_server(&message).expect("a message of this dialect");
        assert_eq!(decode_server(&bytes).as_ref(), Ok(&message));
        assert_eq!(decode_server(&bytes[PREFIX_LEN..]), Ok(message));
    }
}

#[test]
fn refusals_have_the_form_that_clients_understand() {
    let refuse = |code| {
        let refusal = Refusal::new(code, "no");
        encode_server(&ServerMessage::ErrorResp(ErrorResp { request_id: Some(RequestId::from_text("req-1")), refusal }))
            .expect("a message of this dialect")
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name_taken = refuse(RefusalCode::NameUnavailable);
    assert!(text(&name_taken).contains("NewTunnel") && text(&name_taken).contains("no [name_unavailable]"));
    let full = refuse(RefusalCode::PortsExhausted);
    for spelling in ["ErrorCode", "error_code", "Message", "message", "OVER_CAPACITY"] {
        assert!(text(&full).contains(spelling), "{spelling}");
    }
    assert!(matches!(
        decode_server(&full),
        Ok(ServerMessage::ErrorResp(ErrorResp { refusal, .. })) if refusal.message == "no"
    ));

    let answer = ServerMessage::AuthResp(AuthResp { result: Err(Refusal::new(RefusalCode::Unauthorized, "bad")) });
    let bytes = encode_server(&answer).expect("a message of this dialect");
    assert!(text(&bytes).contains("Invalid auth token"));
    let limited = ServerMessage::AuthResp(AuthResp { result: Err(Refusal::new(RefusalCode::RateLimited, "slow")) });
    let bytes = encode_server(&limited).expect("a message of this dialect");
    assert!(!text(&bytes).contains("Invalid auth token"));
}

#[test]
fn requests_and_responses_survive_their_envelope() {
    let request = ProxyRequest {
        method: "POST".into(),
        path: "/a%20b".into(),
        query: "x=1".into(),
        headers: vec![("Host".into(), "app.example.test".into()), ("B".into(), "2".into())],
        body: Bytes::from_static(b"\x00\xff"),
    };
    assert_eq!(decode_request(&Bytes::from(encode_request(&request))), Ok(request));
    let response = ProxyResponse {
        status: 200,
        headers: vec![("Content-Type".into(), "text/plain".into())],
        body: Bytes::from_static(b"hello"),
    };
    assert_eq!(decode_response(&Bytes::from(encode_response(&response))), Ok(response));
}

#[test]
fn row_33_broken_messages_are_errors() {
    assert_eq!(decode_client(&[0x80]), Err(DecodeError::MissingType));
    let unknown = [&[0x81, 0xa4][..], b"Type", &[0xa4], b"Warp"].concat();
    assert_eq!(decode_client(&unknown), Err(DecodeError::UnknownType("Warp".into())));
    let wrong = [&[0x82, 0xa4][..], b"Type", &[0xa8], b"RegProxy", &[0xa8], b"ClientId", &[0x05]].concat();
    assert_eq!(decode_client(&wrong), Err(DecodeError::Field("ClientId")));
    let deep = [&[0x81, 0xa1, b'a'][..], &[0x91; 100_000]].concat();
    for bytes in [
        &[][..],
        &[0xc0],
        &[0x93, 1, 2, 3],
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff, b'x'],
        &[0x81, 0xa4, 0xff, 0xfe, 0xfd, 0xfc, 0x01],
        &[0x80, 0x80],
        &deep,
    ] {
        assert!(decode_client(bytes).is_err());
        assert!(decode_server(bytes).is_err());
        assert!(decode_response(&Bytes::copy_from_slice(bytes)).is_err());
    }
}
