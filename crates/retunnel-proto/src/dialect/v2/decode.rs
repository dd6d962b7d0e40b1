//! Bytes to messages. Sizes come from what arrived, never from what a length says.

use bytes::Bytes;
use rmpv::ValueRef;

use super::{INVALID_TOKEN, strip_prefix};
use crate::{
    DecodeError,
    id::{ClientId, RequestId, TunnelId},
    limits::{MAX_DEPTH, MAX_HEADERS, MAX_TEXT},
    message::{
        Auth, AuthResp, ClientMessage, ErrorResp, Heartbeat, HttpAuth, NewTunnel, ProxyRequest, ProxyResponse, Refusal,
        RefusalCode, RegProxy, ReqTunnel, ServerMessage, StartProxy, Token, TunnelProtocol, Welcome,
    },
};

/// The fields of one map.
struct Fields<'a>(Vec<(ValueRef<'a>, ValueRef<'a>)>);

impl<'a> Fields<'a> {
    fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = message;
        let value = rmpv::decode::read_value_ref_with_max_depth(&mut rest, MAX_DEPTH)
            .map_err(|error| DecodeError::MessagePack(error.to_string()))?;
        match value {
            ValueRef::Map(fields) if rest.is_empty() => Ok(Self(fields)),
            ValueRef::Map(_) => Err(DecodeError::MessagePack("bytes behind the message".into())),
            _ => Err(DecodeError::MessagePack("not a map".into())),
        }
    }

    /// The last field of this name, as Python's dictionaries keep it.
    fn find(&self, name: &str) -> Option<&ValueRef<'a>> {
        self.0.iter().rev().find(|(key, _)| text_of(key) == Some(name)).map(|(_, value)| value)
    }

    /// A text; empty when it is missing or nil.
    fn text(&self, name: &'static str) -> Result<&'a str, DecodeError> {
        let text = match self.find(name) {
            None | Some(ValueRef::Nil) => return Ok(""),
            Some(value) => text_of(value).ok_or(DecodeError::Field(name))?,
        };
        if text.len() > MAX_TEXT { Err(DecodeError::Field(name)) } else { Ok(text) }
    }

    fn optional(&self, name: &'static str) -> Result<Option<String>, DecodeError> {
        Ok(Some(self.text(name)?).filter(|text| !text.is_empty()).map(str::to_owned))
    }

    fn type_name(&self) -> Result<&'a str, DecodeError> {
        match self.find("Type").or_else(|| self.find("type")) {
            Some(value) => text_of(value).ok_or(DecodeError::Field("Type")),
            None => Err(DecodeError::MissingType),
        }
    }

    fn port(&self, name: &'static str) -> Result<Option<u16>, DecodeError> {
        match self.find(name) {
            None | Some(ValueRef::Nil) => Ok(None),
            Some(ValueRef::Integer(port)) => match port.as_u64().and_then(|port| u16::try_from(port).ok()) {
                Some(0) => Ok(None),
                Some(port) => Ok(Some(port)),
                None => Err(DecodeError::Field(name)),
            },
            Some(_) => Err(DecodeError::Field(name)),
        }
    }

    fn protocol(&self) -> Result<TunnelProtocol, DecodeError> {
        match self.text("Protocol")? {
            "http" | "https" | "" => Ok(TunnelProtocol::Http),
            "tcp" => Ok(TunnelProtocol::Tcp),
            _ => Err(DecodeError::Field("Protocol")),
        }
    }
}

fn text_of<'a>(value: &ValueRef<'a>) -> Option<&'a str> {
    match value {
        ValueRef::String(text) => text.into_str(),
        _ => None,
    }
}

fn unknown(name: &str) -> DecodeError {
    DecodeError::UnknownType(name.chars().take(64).collect())
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
            protocol: fields.protocol()?,
            subdomain: fields.optional("Subdomain")?,
            hostname: fields.optional("Hostname")?,
            remote_port: fields.port("RemotePort")?,
            http_auth: fields.optional("HttpAuth")?.map(HttpAuth),
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
                protocol: fields.protocol()?,
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

fn headers(fields: &Fields<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    match fields.find("headers") {
        None | Some(ValueRef::Nil) => Ok(Vec::new()),
        Some(ValueRef::Map(entries)) if entries.len() <= MAX_HEADERS => entries
            .iter()
            .map(|(name, value)| match (text_of(name), text_of(value)) {
                (Some(name), Some(value)) => Ok((name.to_owned(), value.to_owned())),
                _ => Err(DecodeError::Field("headers")),
            })
            .collect(),
        Some(_) => Err(DecodeError::Field("headers")),
    }
}

fn body(whole: &Bytes, fields: &Fields<'_>) -> Result<Bytes, DecodeError> {
    match fields.find("body") {
        None | Some(ValueRef::Nil) => Ok(Bytes::new()),
        Some(ValueRef::Binary(body)) => Ok(whole.slice_ref(body)),
        Some(ValueRef::String(body)) => Ok(whole.slice_ref(body.as_bytes())),
        Some(_) => Err(DecodeError::Field("body")),
    }
}

/// Reads a `Proxy` message with a response. Its body shares the message's memory.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_response(message: &Bytes) -> Result<ProxyResponse, DecodeError> {
    let fields = Fields::read(envelope(message)?)?;
    let status = match fields.find("status") {
        Some(ValueRef::Integer(status)) => status.as_u64().and_then(|status| u16::try_from(status).ok()),
        _ => None,
    };
    Ok(ProxyResponse {
        status: status.ok_or(DecodeError::Field("status"))?,
        headers: headers(&fields)?,
        body: body(message, &fields)?,
    })
}

/// Reads a `Proxy` message with a request. Its body shares the message's memory.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_request(message: &Bytes) -> Result<ProxyRequest, DecodeError> {
    let fields = Fields::read(envelope(message)?)?;
    let long_text = |name: &'static str, default: &str| match fields.find(name) {
        None | Some(ValueRef::Nil) => Ok(default.to_owned()),
        Some(value) => text_of(value).map(str::to_owned).ok_or(DecodeError::Field(name)),
    };
    Ok(ProxyRequest {
        method: long_text("method", "GET")?,
        path: long_text("path", "/")?,
        query: long_text("query", "")?,
        headers: headers(&fields)?,
        body: body(message, &fields)?,
    })
}
