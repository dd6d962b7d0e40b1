//! Messages to bytes: order of the fields, and empty values, as the published clients write them.

use serde::Serialize;

use super::{FromClient, FromServer, MessageKind, StreamEvent, StreamFrame, StreamMode, StreamOpen, WireVersion};
use crate::{
    dialect::msgpack::{Bin, Map},
    message::Token,
};

/// Capacity in bytes for everything of a frame except its data.
const OVERHEAD: usize = 80;

#[derive(Serialize)]
struct Auth<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct TunnelCreate<'a> {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subdomain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct HeartbeatAck {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Plain {
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct TunnelCreated<'a> {
    url: &'a str,
    subdomain: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Open<'a, H> {
    stream_id: u64,
    tunnel_id: &'a str,
    mode: &'static str,
    path: &'a str,
    headers: H,
    body: Bin<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    has_body: Option<bool>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Data<'a> {
    stream_id: u64,
    data: Bin<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ws_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fin: Option<bool>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Close<'a> {
    stream_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(rename = "Type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct Reset<'a> {
    stream_id: u64,
    reason: &'a str,
    #[serde(rename = "Type")]
    kind: &'static str,
}

fn packed<T: Serialize>(message: &T, payload: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OVERHEAD + payload);
    rmp_serde::encode::write_named(&mut bytes, message).expect("our messages have text keys and plain values");
    bytes
}

impl FromClient {
    /// The message as MessagePack.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Auth { token, version } => {
                let token = token.as_ref().map_or("", Token::expose);
                packed(&Auth { token, version: version.number(), kind: "Auth" }, token.len())
            }
            Self::TunnelCreate(request) => packed(
                &TunnelCreate {
                    protocol: request.protocol.as_str(),
                    subdomain: request.subdomain.as_deref(),
                    path: request.path.as_deref(),
                    remote_port: request.remote_port,
                    hostname: request.hostname.as_deref(),
                    kind: "TunnelCreate",
                },
                0,
            ),
            Self::HeartbeatAck => packed(&Plain { kind: "HeartbeatAck" }, 0),
            Self::StreamOpen { stream_id } => {
                let nothing: [(&str, &str); 0] = [];
                let open = Open {
                    stream_id: *stream_id,
                    tunnel_id: "",
                    mode: "",
                    path: "",
                    headers: &nothing[..],
                    body: Bin(&[]),
                    method: None,
                    has_body: None,
                    kind: "StreamOpen",
                };
                packed(&open, 0)
            }
            Self::Stream(frame) => frame.encode(),
        }
    }
}

impl FromServer {
    /// The message as MessagePack, for the version in force.
    #[must_use]
    pub fn encode(&self, version: WireVersion) -> Vec<u8> {
        match self {
            Self::HeartbeatAck { version } => {
                packed(&HeartbeatAck { version: version.number(), kind: "HeartbeatAck" }, 0)
            }
            Self::Error { code, message } => packed(&Error { code, message, kind: "Error" }, message.len()),
            Self::TunnelCreated(tunnel) => packed(
                &TunnelCreated {
                    url: &tunnel.url,
                    subdomain: &tunnel.subdomain,
                    path: tunnel.path.as_deref(),
                    remote_port: tunnel.remote_port,
                    kind: "TunnelCreated",
                },
                tunnel.url.len(),
            ),
            Self::StreamOpen(open) => open.encode(version),
            Self::Heartbeat => packed(&Plain { kind: "Heartbeat" }, 0),
            Self::Stream(frame) => frame.encode(),
        }
    }
}

impl StreamOpen {
    fn encode(&self, version: WireVersion) -> Vec<u8> {
        let mode = self.mode.as_str();
        let headers_len: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        let room = self.body.len() + self.path.len() + headers_len;
        match version {
            WireVersion::One => packed(&self.open(mode, Map(&self.joined()), None, None), room),
            WireVersion::Two => {
                let method = (self.mode != StreamMode::Tcp).then_some(self.method.as_str());
                packed(&self.open(mode, &self.headers, method, self.has_body.then_some(true)), room)
            }
        }
    }

    fn open<'a, H>(
        &'a self,
        mode: &'static str,
        headers: H,
        method: Option<&'a str>,
        has_body: Option<bool>,
    ) -> Open<'a, H> {
        Open {
            stream_id: self.stream_id,
            tunnel_id: &self.tunnel_id,
            mode,
            path: &self.path,
            headers,
            body: Bin(&self.body),
            method,
            has_body,
            kind: "StreamOpen",
        }
    }

    /// One value per name, after the method. A header that clients would take for the method is omitted.
    fn joined(&self) -> Vec<(String, String)> {
        let mut joined: Vec<(String, String)> = Vec::with_capacity(self.headers.len() + 1);
        if self.mode == StreamMode::Http {
            joined.push((":method".into(), self.method.clone()));
        }
        for (name, value) in &self.headers {
            if name.eq_ignore_ascii_case("method") || name == ":method" {
                continue;
            }
            match joined.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
                Some((known, values)) => {
                    values.push_str(if known.eq_ignore_ascii_case("cookie") { "; " } else { ", " });
                    values.push_str(value);
                }
                None if self.mode == StreamMode::WebSocket && name.eq_ignore_ascii_case("sec-websocket-protocol") => {
                    // 3.0.x finds it only in this spelling.
                    joined.push((name.to_ascii_lowercase(), value.clone()));
                }
                None => joined.push((name.clone(), value.clone())),
            }
        }
        joined
    }
}

impl StreamFrame {
    /// The frame as MessagePack; the same from both sides.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let stream_id = self.stream_id;
        match &self.event {
            StreamEvent::Data { data, kind, fin } => {
                let ws_type = kind.map(|kind| match kind {
                    MessageKind::Text => "text",
                    MessageKind::Binary => "binary",
                });
                packed(&Data { stream_id, data: Bin(data), ws_type, fin: *fin, kind: "StreamData" }, data.len())
            }
            StreamEvent::Close { code, reason } => {
                packed(&Close { stream_id, code: *code, reason: reason.as_deref(), kind: "StreamClose" }, 0)
            }
            StreamEvent::Reset { reason } => packed(&Reset { stream_id, reason, kind: "StreamReset" }, reason.len()),
        }
    }
}
