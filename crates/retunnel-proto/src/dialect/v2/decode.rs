//! Bytes to messages.

use bytes::Bytes;
use rmpv::ValueRef;

use super::{INVALID_TOKEN, strip_prefix};
use crate::{
    DecodeError,
    dialect::msgpack::{Fields, unknown},
    id::{ClientId, RequestId, TunnelId},
    message::{
        Auth, AuthResp, ClientMessage, ErrorResp, Heartbeat, HttpAuth, NewTunnel, ProxyRequest, ProxyResponse, Refusal,
        RefusalCode, RegProxy, ReqTunnel, ServerMessage, StartProxy, Token, TunnelProtocol, Welcome,
    },
    rules,
};

fn protocol(fields: &Fields<'_>) -> Result<TunnelProtocol, DecodeError> {
    match fields.text("Protocol")? {
        "http" | "https" | "" => Ok(TunnelProtocol::Http),
        "tcp" => Ok(TunnelProtocol::Tcp),
        _ => Err(DecodeError::Field("Protocol")),
    }
}

/// Reads a message of a client: `Auth`, `ReqTunnel`, `RegProxy`, `Ping`, `Pong`, `Heartbeat`.
///
/// # Errors
/// [`DecodeError::UnknownType`] for other messages, [`DecodeError::Field`] for a field of another type.
pub fn decode_client(message: &[u8]) -> Result<ClientMessage, DecodeError> {
    let fields = Fields::read(strip_prefix(message))?;
    Ok(match fields.type_name()? {
        "Auth" => ClientMessage::Auth(Auth {
            token: fields.optional("User")?.map(Token::new),
            client_id: fields.text("ClientId")?.to_owned(),
            os: fields.text("OS")?.to_owned(),
            arch: fields.text("Arch")?.to_owned(),
            version: fields.text("Version")?.to_owned(),
        }),
        "ReqTunnel" => ClientMessage::ReqTunnel(ReqTunnel {
            request_id: RequestId::from_text(fields.text("ReqId")?),
            protocol: protocol(&fields)?,
            subdomain: fields.optional("Subdomain")?,
            hostname: fields.optional("Hostname")?,
            remote_port: fields.port("RemotePort")?,
            rules: rules::of_fields(fields.optional("HttpAuth")?.map(HttpAuth), None),
        }),
        "RegProxy" => ClientMessage::RegProxy(RegProxy { client_id: ClientId::from_text(fields.text("ClientId")?) }),
        "Ping" => ClientMessage::Ping,
        "Pong" => ClientMessage::Pong,
        "Heartbeat" => ClientMessage::Heartbeat(Heartbeat {
            subdomain: fields.text("Subdomain")?.to_owned(),
            timestamp: match fields.find("Timestamp") {
                Some(ValueRef::F64(seconds)) => *seconds,
                Some(ValueRef::F32(seconds)) => f64::from(*seconds),
                Some(ValueRef::Integer(seconds)) => seconds.as_f64().unwrap_or_default(),
                None | Some(ValueRef::Nil) => 0.0,
                Some(_) => return Err(DecodeError::Field("Timestamp")),
            },
        }),
        other => return Err(unknown(other)),
    })
}

/// Reads a message of a server: `AuthResp`, `NewTunnel`, `ErrorResp`, `ReqProxy`, `StartProxy`, `Ping`, `Pong`.
///
/// # Errors
/// [`DecodeError::UnknownType`] for other messages, [`DecodeError::Field`] for a field of another type.
pub fn decode_server(message: &[u8]) -> Result<ServerMessage, DecodeError> {
    let fields = Fields::read(strip_prefix(message))?;
    Ok(match fields.type_name()? {
        "AuthResp" => ServerMessage::AuthResp(AuthResp {
            result: match fields.text("Error")? {
                "" => Ok(Welcome {
                    client_id: ClientId::from_text(fields.text("ClientId")?),
                    account: String::new(),
                    server_version: fields.text("Version")?.to_owned(),
                }),
                error if error.contains(INVALID_TOKEN) => Err(Refusal::new(RefusalCode::Unauthorized, error)),
                error => Err(Refusal::new(RefusalCode::Other("auth_failed".into()), error)),
            },
        }),
        "NewTunnel" => match fields.text("Error")? {
            "" => ServerMessage::NewTunnel(NewTunnel {
                request_id: RequestId::from_text(fields.text("ReqId")?),
                tunnel_id: TunnelId::from_text(match fields.text("TunnelId")? {
                    "" => fields.text("Subdomain")?,
                    id => id,
                }),
                protocol: protocol(&fields)?,
                url: fields.text("Url")?.to_owned(),
                subdomain: fields.text("Subdomain")?.to_owned(),
                remote_port: None,
            }),
            error => refused(fields.text("ReqId")?, "tunnel_failed", error),
        },
        "ErrorResp" => {
            let code = match fields.text("error_code")? {
                "" => fields.text("ErrorCode")?,
                code => code,
            };
            let message = match fields.text("message")? {
                "" => fields.text("Message")?,
                message => message,
            };
            refused(fields.text("ReqId")?, code, message)
        }
        "ReqProxy" => ServerMessage::ReqProxy,
        "StartProxy" => ServerMessage::StartProxy(StartProxy {
            url: fields.text("Url")?.to_owned(),
            client_addr: fields.text("ClientAddr")?.to_owned(),
            request_id: RequestId::from_text(fields.text("RequestId")?),
        }),
        "Ping" => ServerMessage::Ping,
        "Pong" => ServerMessage::Pong,
        other => return Err(unknown(other)),
    })
}

fn refused(request_id: &str, code: &str, message: &str) -> ServerMessage {
    let code = match code {
        "OVER_CAPACITY" => RefusalCode::PortsExhausted,
        "FREE_TIER_LIMIT_REACHED" => RefusalCode::TunnelLimit,
        other => RefusalCode::from(other),
    };
    ServerMessage::ErrorResp(ErrorResp {
        request_id: Some(request_id).filter(|id| !id.is_empty()).map(RequestId::from_text),
        refusal: Refusal::new(code, message),
    })
}

/// The inner map of a `Proxy` envelope.
fn envelope(message: &[u8]) -> Result<&[u8], DecodeError> {
    let fields = Fields::read(strip_prefix(message))?;
    match fields.type_name()? {
        "Proxy" => match fields.find("data") {
            Some(ValueRef::Binary(data)) => Ok(data),
            _ => Err(DecodeError::Field("data")),
        },
        other => Err(unknown(other)),
    }
}

/// Reads a `Proxy` message with a response. Its body shares the message's memory.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_response(message: &Bytes) -> Result<ProxyResponse, DecodeError> {
    let fields = Fields::read(envelope(message)?)?;
    let status = fields.number("status")?.and_then(|status| u16::try_from(status).ok());
    Ok(ProxyResponse {
        status: status.ok_or(DecodeError::Field("status"))?,
        headers: fields.headers()?,
        body: fields.bytes("body", message)?,
    })
}

/// Reads a `Proxy` message with a request. Its body shares the message's memory.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_request(message: &Bytes) -> Result<ProxyRequest, DecodeError> {
    let fields = Fields::read(envelope(message)?)?;
    Ok(ProxyRequest {
        method: fields.long_text("method", "GET")?.to_owned(),
        path: fields.long_text("path", "/")?.to_owned(),
        query: fields.long_text("query", "")?.to_owned(),
        headers: fields.headers()?,
        body: fields.bytes("body", message)?,
    })
}
