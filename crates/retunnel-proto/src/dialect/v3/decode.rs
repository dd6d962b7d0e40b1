//! Bytes to messages. Data shares the memory of the message it came in.

use bytes::Bytes;

use super::{
    FromClient, FromServer, MessageKind, StreamEvent, StreamFrame, StreamMode, StreamOpen, TunnelCreate, TunnelCreated,
    WireVersion,
};
use crate::{
    DecodeError,
    dialect::msgpack::{Fields, unknown},
    limits::{MAX_REASON, MAX_TEXT},
    message::{Token, TunnelProtocol},
};

impl FromClient {
    /// Decodes a message of a client. Fields that 3.0.0 omits because they are empty count as empty.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] for other messages, [`DecodeError::Field`] for a field of another type.
    pub fn decode(message: &Bytes) -> Result<Self, DecodeError> {
        let fields = Fields::read(message)?;
        Ok(match fields.type_name()? {
            "StreamData" | "StreamClose" | "StreamReset" => Self::Stream(frame(&fields, message)?),
            "HeartbeatAck" => Self::HeartbeatAck,
            "TunnelCreate" => Self::TunnelCreate(TunnelCreate {
                protocol: protocol(&fields)?,
                subdomain: fields.optional("subdomain")?,
                path: fields.given("path").map(|_| fields.text("path")).transpose()?.map(str::to_owned),
                remote_port: fields.port("remote_port")?,
                hostname: fields.optional("hostname")?,
            }),
            "Auth" => Self::Auth { token: fields.optional("token")?.map(Token::new), version: version(&fields) },
            "StreamOpen" => Self::StreamOpen { stream_id: stream_id(&fields)? },
            other => return Err(unknown(other)),
        })
    }
}

impl FromServer {
    /// Decodes a message of a server.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] for other messages, [`DecodeError::Field`] for a field of another type.
    pub fn decode(message: &Bytes) -> Result<Self, DecodeError> {
        let fields = Fields::read(message)?;
        Ok(match fields.type_name()? {
            "StreamData" | "StreamClose" | "StreamReset" => Self::Stream(frame(&fields, message)?),
            "StreamOpen" => Self::StreamOpen(open(&fields, message)?),
            "Heartbeat" => Self::Heartbeat,
            "HeartbeatAck" => Self::HeartbeatAck { version: version(&fields) },
            "TunnelCreated" => Self::TunnelCreated(TunnelCreated {
                url: fields.text("url")?.to_owned(),
                subdomain: fields.text("subdomain")?.to_owned(),
                path: fields.optional("path")?,
                remote_port: fields.port("remote_port")?,
            }),
            "Error" => {
                Self::Error { code: fields.text("code")?.to_owned(), message: fields.text("message")?.to_owned() }
            }
            other => return Err(unknown(other)),
        })
    }
}

fn protocol(fields: &Fields<'_>) -> Result<TunnelProtocol, DecodeError> {
    match fields.text("protocol")? {
        "http" | "https" => Ok(TunnelProtocol::Http),
        "tcp" => Ok(TunnelProtocol::Tcp),
        _ => Err(DecodeError::Field("protocol")),
    }
}

fn version(fields: &Fields<'_>) -> WireVersion {
    WireVersion::announced(fields.number("version").unwrap_or_default())
}

fn stream_id(fields: &Fields<'_>) -> Result<u64, DecodeError> {
    fields.number("stream_id")?.ok_or(DecodeError::Field("stream_id"))
}

fn frame(fields: &Fields<'_>, message: &Bytes) -> Result<StreamFrame, DecodeError> {
    let event = match fields.type_name()? {
        "StreamData" => StreamEvent::Data {
            data: fields.bytes("data", message)?,
            kind: match fields.text("ws_type")? {
                "text" => Some(MessageKind::Text),
                "binary" => Some(MessageKind::Binary),
                _ => None,
            },
            fin: fields.flag("fin")?,
        },
        "StreamClose" => StreamEvent::Close {
            // An invalid code counts as missing.
            code: fields.number("code").ok().flatten().and_then(|code| u16::try_from(code).ok()),
            reason: fields.given("reason").map(|_| reason(fields)).transpose()?,
        },
        _ => StreamEvent::Reset { reason: reason(fields)? },
    };
    Ok(StreamFrame { stream_id: stream_id(fields)?, event })
}

/// A reason, cut to a length that people read.
fn reason(fields: &Fields<'_>) -> Result<String, DecodeError> {
    let text = fields.long_text("reason", "")?;
    Ok(text[..text.floor_char_boundary(MAX_REASON)].to_owned())
}

fn open(fields: &Fields<'_>, message: &Bytes) -> Result<StreamOpen, DecodeError> {
    let mode = match fields.text("mode")? {
        "http" => StreamMode::Http,
        "ws" => StreamMode::WebSocket,
        "tcp" => StreamMode::Tcp,
        _ => return Err(DecodeError::Field("mode")),
    };
    let mut headers = fields.headers()?;
    let mut method = fields.text("method")?.to_owned();
    if method.is_empty() {
        let is_method = |name: &str| name.eq_ignore_ascii_case("method") || name == ":method";
        let first = headers.iter().find(|(name, value)| is_method(name) && (1..=MAX_TEXT).contains(&value.len()));
        method = first.map_or_else(|| "GET".to_owned(), |(_, value)| value.clone());
        headers.retain(|(name, _)| !is_method(name));
    }
    if mode == StreamMode::Tcp {
        method = "GET".to_owned();
    }
    Ok(StreamOpen {
        stream_id: stream_id(fields)?,
        tunnel_id: fields.text("tunnel_id")?.to_owned(),
        mode,
        method,
        path: fields.long_text("path", "/")?.to_owned(),
        headers,
        body: fields.bytes("body", message)?,
        has_body: fields.flag("has_body")?.unwrap_or(false),
    })
}
