//! Messages to bytes: field names, order and empty values as the published clients write them.

use serde::Serialize;

use super::{INVALID_TOKEN, PREFIX_LEN};
use crate::{
    dialect::msgpack::{Bin, Map},
    message::{ClientMessage, ProxyRequest, ProxyResponse, Refusal, RefusalCode, ServerMessage, Token},
};

/// `Version` and `MmVersion` of every 2.x release.
const VERSION: &str = "2.3.40";
const MM_VERSION: &str = "2.3";

#[derive(Serialize)]
#[serde(tag = "Type", rename_all_fields = "PascalCase")]
enum Wire<'a> {
    Auth {
        client_id: &'a str,
        #[serde(rename = "OS")]
        os: &'a str,
        arch: &'a str,
        version: &'a str,
        mm_version: &'a str,
        user: &'a str,
        password: &'a str,
    },
    AuthResp {
        client_id: &'a str,
        version: &'a str,
        mm_version: &'a str,
        error: &'a str,
    },
    ReqTunnel {
        req_id: &'a str,
        protocol: &'a str,
        hostname: &'a str,
        subdomain: &'a str,
        http_auth: &'a str,
        remote_port: u16,
    },
    NewTunnel {
        req_id: &'a str,
        url: &'a str,
        protocol: &'a str,
        subdomain: &'a str,
        tunnel_id: &'a str,
        error: &'a str,
    },
    ErrorResp {
        req_id: &'a str,
        error_code: &'a str,
        message: &'a str,
        // Clients that print refusals know these spellings.
        #[serde(rename = "error_code")]
        code_again: &'a str,
        #[serde(rename = "message")]
        message_again: &'a str,
    },
    ReqProxy {},
    RegProxy {
        client_id: &'a str,
    },
    StartProxy {
        url: &'a str,
        client_addr: &'a str,
        request_id: &'a str,
    },
    Ping {},
    Pong {},
    Heartbeat {
        subdomain: &'a str,
        timestamp: f64,
    },
    Proxy {
        #[serde(rename = "data")]
        data: Bin<'a>,
    },
}

#[derive(Serialize)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: Map<'a>,
    body: Bin<'a>,
}

#[derive(Serialize)]
struct Response<'a> {
    status: u16,
    headers: Map<'a>,
    body: Bin<'a>,
}

fn framed<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![0; PREFIX_LEN];
    rmp_serde::encode::write_named(&mut bytes, message).expect("our messages have text keys and plain values");
    let length = (bytes.len() - PREFIX_LEN) as u64;
    bytes[..PREFIX_LEN].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A client's message with its length; `None` for a message of another dialect.
#[must_use]
pub fn encode_client(message: &ClientMessage) -> Option<Vec<u8>> {
    let http_auth = if let ClientMessage::ReqTunnel(request) = message { request.http_auth() } else { None };
    Some(framed(&match message {
        ClientMessage::Auth(auth) => Wire::Auth {
            client_id: &auth.client_id,
            os: &auth.os,
            arch: &auth.arch,
            version: if auth.version.is_empty() { VERSION } else { &auth.version },
            mm_version: MM_VERSION,
            user: auth.token.as_ref().map_or("", Token::expose),
            password: "",
        },
        ClientMessage::ReqTunnel(request) => Wire::ReqTunnel {
            req_id: request.request_id.as_str(),
            protocol: request.protocol.as_str(),
            hostname: request.hostname.as_deref().unwrap_or_default(),
            subdomain: request.subdomain.as_deref().unwrap_or_default(),
            http_auth: http_auth.as_ref().map_or("", |auth| &auth.0),
            remote_port: request.remote_port.unwrap_or(0),
        },
        ClientMessage::RegProxy(register) => Wire::RegProxy { client_id: register.client_id.as_str() },
        ClientMessage::Ping => Wire::Ping {},
        ClientMessage::Pong => Wire::Pong {},
        ClientMessage::Heartbeat(heartbeat) => {
            Wire::Heartbeat { subdomain: &heartbeat.subdomain, timestamp: heartbeat.timestamp }
        }
        ClientMessage::CloseTunnel(_) => return None,
    }))
}

/// A server's message with its length; `None` for a message of another dialect.
///
/// A refused tunnel is sent as `NewTunnel` with an `Error`, which every client understands; only the two codes that
/// clients have a text of their own for are sent as `ErrorResp`.
#[must_use]
pub fn encode_server(message: &ServerMessage) -> Option<Vec<u8>> {
    let refusal_text;
    Some(framed(&match message {
        ServerMessage::AuthResp(answer) => match &answer.result {
            Ok(welcome) => Wire::AuthResp {
                client_id: welcome.client_id.as_str(),
                version: &welcome.server_version,
                mm_version: MM_VERSION,
                error: "",
            },
            Err(refusal) => {
                refusal_text = authentication_error(refusal);
                Wire::AuthResp { client_id: "", version: "", mm_version: MM_VERSION, error: &refusal_text }
            }
        },
        ServerMessage::NewTunnel(tunnel) => Wire::NewTunnel {
            req_id: tunnel.request_id.as_str(),
            url: &tunnel.url,
            protocol: tunnel.protocol.as_str(),
            subdomain: &tunnel.subdomain,
            tunnel_id: tunnel.tunnel_id.as_str(),
            error: "",
        },
        ServerMessage::ErrorResp(error) => {
            let req_id = error.request_id.as_ref().map_or("", |id| id.as_str());
            let message = &error.refusal.message;
            match published_code(&error.refusal.code) {
                Some(code) => {
                    Wire::ErrorResp { req_id, error_code: code, message, code_again: code, message_again: message }
                }
                None => {
                    refusal_text = error.refusal.to_string();
                    Wire::NewTunnel {
                        req_id,
                        url: "",
                        protocol: "",
                        subdomain: "",
                        tunnel_id: "",
                        error: &refusal_text,
                    }
                }
            }
        }
        ServerMessage::ReqProxy => Wire::ReqProxy {},
        ServerMessage::StartProxy(start) => {
            Wire::StartProxy { url: &start.url, client_addr: &start.client_addr, request_id: start.request_id.as_str() }
        }
        ServerMessage::Ping => Wire::Ping {},
        ServerMessage::Pong => Wire::Pong {},
        ServerMessage::TunnelClosed(_) | ServerMessage::Requests(_) => return None,
    }))
}

fn authentication_error(refusal: &Refusal) -> String {
    match refusal.code {
        // After this text clients ask for another token and try once more.
        RefusalCode::Unauthorized | RefusalCode::AuthRequired => INVALID_TOKEN.into(),
        _ => refusal.to_string(),
    }
}

const fn published_code(code: &RefusalCode) -> Option<&'static str> {
    match code {
        RefusalCode::PortsExhausted => Some("OVER_CAPACITY"),
        _ => None,
    }
}

/// A request in its `Proxy` envelope.
#[must_use]
pub fn encode_request(request: &ProxyRequest) -> Vec<u8> {
    let inner = Request {
        method: &request.method,
        path: &request.path,
        query: &request.query,
        headers: Map(&request.headers),
        body: Bin(&request.body),
    };
    envelope(&inner)
}

/// A response in its `Proxy` envelope.
#[must_use]
pub fn encode_response(response: &ProxyResponse) -> Vec<u8> {
    let inner = Response { status: response.status, headers: Map(&response.headers), body: Bin(&response.body) };
    envelope(&inner)
}

fn envelope<T: Serialize>(inner: &T) -> Vec<u8> {
    let data = rmp_serde::to_vec_named(inner).expect("our messages have text keys and plain values");
    framed(&Wire::Proxy { data: Bin(&data) })
}
