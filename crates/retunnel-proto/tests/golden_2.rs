//! Bytes recorded from the published clients 2.x (`fixtures/record_2.py`): we read them, and write the same.

use std::{fs, path::Path};

use bytes::Bytes;
use retunnel_proto::{
    dialect::v2::{decode_client, decode_response, encode_client, encode_response},
    message::{ClientMessage, TunnelProtocol},
};

const VERSIONS: [&str; 2] = ["2.0.1", "2.5.3"];

fn recorded(version: &str, message: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v2/{version}/{message}.bin"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn message(version: &str, name: &str) -> ClientMessage {
    let bytes = recorded(version, name);
    let message = decode_client(&bytes).unwrap_or_else(|error| panic!("{version} {name}: {error}"));
    assert_eq!(decode_client(&bytes[8..]).as_ref(), Ok(&message), "without its length");
    assert_eq!(encode_client(&message).as_deref(), Some(&bytes[..]), "{version} {name}: what we write");
    message
}

#[test]
fn auth() {
    for version in VERSIONS {
        let ClientMessage::Auth(auth) = message(version, "Auth") else { panic!("not Auth") };
        assert_eq!(auth.token.map(|token| token.expose().to_owned()).as_deref(), Some("rt_recorded"));
        assert_eq!((auth.version.as_str(), auth.os.as_str()), ("2.3.40", "linux"));
        assert!(auth.client_id.starts_with("client-"));
    }
}

#[test]
fn tunnel_requests() {
    for version in VERSIONS {
        let ClientMessage::ReqTunnel(request) = message(version, "ReqTunnel") else { panic!("not ReqTunnel") };
        assert_eq!(request.protocol, TunnelProtocol::Http);
        assert_eq!((request.subdomain.as_deref(), request.hostname.as_deref()), (Some("app"), None));
        assert_eq!(request.http_auth().map(|auth| auth.0).as_deref(), Some("me:secret"));
        assert_eq!(request.remote_port, None);
    }
}

#[test]
fn data_sockets_name_the_session() {
    for version in VERSIONS {
        let ClientMessage::RegProxy(register) = message(version, "RegProxy") else { panic!("not RegProxy") };
        assert_eq!(register.client_id.as_str(), "client-server");
    }
}

#[test]
fn signs_of_life() {
    for version in VERSIONS {
        assert_eq!(message(version, "Ping"), ClientMessage::Ping);
        assert_eq!(message(version, "Pong"), ClientMessage::Pong);
        let ClientMessage::Heartbeat(heartbeat) = message(version, "Heartbeat") else { panic!("not Heartbeat") };
        assert_eq!(heartbeat.subdomain, "app");
        assert!(heartbeat.timestamp > 1.7e9);
    }
}

#[test]
fn responses() {
    for version in VERSIONS {
        let bytes = Bytes::from(recorded(version, "Proxy"));
        let response = decode_response(&bytes).unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!((response.status, &response.body[..]), (200, &b"hello"[..]));
        let latin = response.headers.iter().find(|(name, _)| name == "X-Latin").map(|(_, value)| value.as_str());
        assert_eq!(latin, Some("caf\u{e9}"));
        assert_eq!(encode_response(&response), bytes, "{version}: what we write");
    }
}
