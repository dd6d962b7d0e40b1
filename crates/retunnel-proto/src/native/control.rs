//! Control messages of the native link: MessagePack maps with text keys, one per [`super::FrameKind::Control`] frame. The
//! key `type` names the message. Unknown keys are ignored, so that messages can gain fields. An unknown type is an error
//! that does not end the session.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    DecodeError, TunnelProtocol,
    id::TunnelId,
    limits,
    message::{
        Auth, AuthResp, ClientMessage, CloseTunnel, ErrorResp, NewTunnel, Refusal, ReqTunnel, Requests, ServerMessage,
        Token, TunnelClosed, Welcome,
    },
};

/// First control message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::VERSION`] of the client. The server answers with the lower of both.
    pub link_version: u16,
    /// Bytes the server may send on each new stream before it gets credit.
    pub window: u32,
    /// The client can open lanes.
    #[serde(default)]
    pub lanes: bool,
    /// Who is connecting.
    #[serde(flatten)]
    pub auth: Auth,
}

/// First control message of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloResp {
    /// Version in force.
    pub link_version: u16,
    /// Bytes the client may send on each new stream before it gets credit.
    pub window: u32,
    /// Details of the session.
    #[serde(flatten)]
    pub welcome: Welcome,
}

/// Payload of an open frame: what the new stream carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// What the bytes are.
    pub protocol: TunnelProtocol,
    /// Address of the visitor of a TCP stream; empty for HTTP, whose streams serve many visitors.
    #[serde(default)]
    pub visitor: String,
}

impl Open {
    /// The payload as MessagePack.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_map(self)
    }

    /// Reads the payload of an open frame.
    ///
    /// # Errors
    /// [`DecodeError::MessagePack`].
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        from_map(payload)
    }
}

/// The server asks for a lane: the client connects again and presents the nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLane {
    /// The lane's number on this link.
    pub lane: u32,
    /// Secret that the client presents once, on the new connection.
    pub nonce: Token,
}

/// The client could not open a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneFailed {
    /// The lane's number on this link.
    pub lane: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type")]
enum ToServer {
    LaneFailed(LaneFailed),
    Auth(Hello),
    ReqTunnel(ReqTunnel),
    CloseTunnel(CloseTunnel),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type")]
enum ToClient {
    OpenLane(OpenLane),
    AuthResp(HelloResp),
    AuthRefused(Refusal),
    NewTunnel(NewTunnel),
    ErrorResp(ErrorResp),
    TunnelClosed(TunnelClosed),
    Requests(Requests),
}

/// A control message of a client, with the link's own fields where the message opens the session.
#[derive(Debug, Clone, PartialEq)]
pub enum FromClient {
    /// First message.
    Hello(Hello),
    /// A lane was not opened.
    LaneFailed(LaneFailed),
    /// Any later message.
    Message(ClientMessage),
}

/// A control message of a server.
#[derive(Debug, Clone, PartialEq)]
pub enum FromServer {
    /// First message: the session is established.
    Hello(HelloResp),
    /// A lane is wanted.
    OpenLane(OpenLane),
    /// Any other message, including a refusal of the session.
    Message(ServerMessage),
}

impl FromClient {
    /// The message as MessagePack; `None` for messages that only other dialects carry.
    #[must_use]
    pub fn encode(self) -> Option<Vec<u8>> {
        Some(to_map(&match self {
            Self::Hello(hello) => ToServer::Auth(hello),
            Self::LaneFailed(failed) => ToServer::LaneFailed(failed),
            Self::Message(ClientMessage::ReqTunnel(message)) => ToServer::ReqTunnel(message),
            Self::Message(ClientMessage::CloseTunnel(message)) => ToServer::CloseTunnel(message),
            Self::Message(_) => return None,
        }))
    }

    /// Reads a control message of a client.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] for a message of a newer client, otherwise [`DecodeError::MessagePack`].
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        known_type(payload, &["Auth", "ReqTunnel", "CloseTunnel", "LaneFailed"])?;
        Ok(match from_map(payload)? {
            ToServer::Auth(hello) => Self::Hello(hello),
            ToServer::LaneFailed(failed) => Self::LaneFailed(failed),
            ToServer::ReqTunnel(message) => Self::Message(ClientMessage::ReqTunnel(message)),
            ToServer::CloseTunnel(message) => Self::Message(ClientMessage::CloseTunnel(message)),
        })
    }
}

impl FromServer {
    /// The message as MessagePack; `None` for messages that only other dialects carry.
    #[must_use]
    pub fn encode(self) -> Option<Vec<u8>> {
        Some(to_map(&match self {
            Self::Hello(hello) => ToClient::AuthResp(hello),
            Self::OpenLane(lane) => ToClient::OpenLane(lane),
            Self::Message(ServerMessage::AuthResp(AuthResp { result: Err(refusal) })) => ToClient::AuthRefused(refusal),
            Self::Message(ServerMessage::NewTunnel(message)) => ToClient::NewTunnel(message),
            Self::Message(ServerMessage::ErrorResp(message)) => ToClient::ErrorResp(message),
            Self::Message(ServerMessage::TunnelClosed(message)) => ToClient::TunnelClosed(message),
            Self::Message(ServerMessage::Requests(message)) => ToClient::Requests(message),
            Self::Message(_) => return None,
        }))
    }

    /// Reads a control message of a server.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] for a message of a newer server, otherwise [`DecodeError::MessagePack`].
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        known_type(
            payload,
            &["AuthResp", "AuthRefused", "NewTunnel", "ErrorResp", "TunnelClosed", "Requests", "OpenLane"],
        )?;
        Ok(match from_map(payload)? {
            ToClient::AuthResp(hello) => Self::Hello(hello),
            ToClient::OpenLane(lane) => Self::OpenLane(lane),
            ToClient::AuthRefused(refusal) => Self::Message(ServerMessage::AuthResp(AuthResp { result: Err(refusal) })),
            ToClient::NewTunnel(message) => Self::Message(ServerMessage::NewTunnel(message)),
            ToClient::ErrorResp(message) => Self::Message(ServerMessage::ErrorResp(message)),
            ToClient::TunnelClosed(message) => Self::Message(ServerMessage::TunnelClosed(message)),
            ToClient::Requests(message) => Self::Message(ServerMessage::Requests(message)),
        })
    }
}

fn known_type(payload: &[u8], known: &[&str]) -> Result<(), DecodeError> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: Option<String>,
    }
    let typed: Typed = from_map(payload)?;
    match typed.r#type {
        Some(name) if known.contains(&name.as_str()) => Ok(()),
        Some(name) => Err(DecodeError::UnknownType(name.chars().take(64).collect())),
        None => Err(DecodeError::MissingType),
    }
}

fn to_map<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("our messages have text keys and plain values")
}

fn from_map<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    if !payload.first().is_some_and(|b| matches!(b, 0x80..=0x8f | 0xde | 0xdf)) {
        return Err(DecodeError::MessagePack("not a map".into()));
    }
    let mut decoder = rmp_serde::Deserializer::from_read_ref(payload);
    decoder.set_max_depth(limits::MAX_DEPTH);
    T::deserialize(&mut decoder).map_err(|error| DecodeError::MessagePack(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::RequestId,
        message::{HttpAuth, RefusalCode, RequestSummary},
        rules::Rule,
    };

    #[test]
    fn fields_of_link_version_1_become_rules() {
        let old = serde_json::json!({
            "type": "ReqTunnel", "request_id": "r", "protocol": "http", "http_auth": "me:secret",
            "local_origin": "http://localhost:5173",
        });
        let bytes = rmp_serde::to_vec_named(&old).expect("encodes");
        let FromClient::Message(ClientMessage::ReqTunnel(request)) = FromClient::decode(&bytes).expect("decodes")
        else {
            panic!("another message");
        };
        let expected = [Rule::basic_auth(HttpAuth("me:secret".into())), Rule::local_origin("http://localhost:5173")];
        assert_eq!(request.rules, expected);
    }

    fn client_messages() -> Vec<FromClient> {
        vec![
            FromClient::Hello(Hello {
                link_version: 1,
                window: 65_536,
                lanes: true,
                auth: Auth { token: Some(Token::new("rt_x")), os: "linux".into(), ..Auth::default() },
            }),
            FromClient::Message(ClientMessage::ReqTunnel(ReqTunnel {
                request_id: RequestId::from_text("req-1"),
                protocol: TunnelProtocol::Tcp,
                subdomain: None,
                hostname: None,
                remote_port: Some(20_001),
                rules: vec![Rule::local_origin("http://localhost:5173")],
            })),
            FromClient::Message(ClientMessage::CloseTunnel(CloseTunnel { tunnel_id: TunnelId::from_text("tun-1") })),
            FromClient::LaneFailed(LaneFailed { lane: 3 }),
        ]
    }

    fn server_messages() -> Vec<FromServer> {
        let refusal = Refusal { code: RefusalCode::RateLimited, message: "slow down".into(), retry_after: Some(3) };
        vec![
            FromServer::Hello(HelloResp {
                link_version: 1,
                window: 1,
                welcome: Welcome {
                    client_id: crate::ClientId::from_text("client-1"),
                    account: "a@example.test".into(),
                    server_version: "0.1.0".into(),
                },
            }),
            FromServer::OpenLane(OpenLane { lane: 3, nonce: Token::new("n") }),
            FromServer::Message(ServerMessage::AuthResp(AuthResp { result: Err(refusal.clone()) })),
            FromServer::Message(ServerMessage::ErrorResp(ErrorResp { request_id: None, refusal: refusal.clone() })),
            FromServer::Message(ServerMessage::TunnelClosed(TunnelClosed {
                tunnel_id: TunnelId::from_text("tun-1"),
                refusal,
            })),
            FromServer::Message(ServerMessage::Requests(Requests {
                tunnel_id: TunnelId::from_text("tun-1"),
                total: 7,
                failed: Some(1),
                recent: vec![RequestSummary {
                    method: "GET".into(),
                    path: "/".into(),
                    status: 200,
                    duration_ms: 3,
                    bytes_out: 1 << 40,
                    bytes_in: 0,
                    started_ms: 1,
                    visitor: "127.0.0.1:1".into(),
                    error: String::new(),
                }],
            })),
        ]
    }

    #[test]
    fn messages_survive_a_round_trip() {
        for message in client_messages() {
            let bytes = message.clone().encode().expect("native message");
            assert_eq!(FromClient::decode(&bytes), Ok(message));
        }
        for message in server_messages() {
            let bytes = message.clone().encode().expect("native message");
            assert_eq!(FromServer::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_named() {
        let with_extra =
            rmp_serde::to_vec_named(&serde_map(&[("type", "CloseTunnel"), ("tunnel_id", "t"), ("new", "x")]));
        assert!(FromClient::decode(&with_extra.expect("encodes")).is_ok());
        let unknown = rmp_serde::to_vec_named(&serde_map(&[("type", "Teleport")])).expect("encodes");
        assert_eq!(FromClient::decode(&unknown), Err(DecodeError::UnknownType("Teleport".into())));
        assert_eq!(FromClient::decode(&[0x80]), Err(DecodeError::MissingType));
        assert!(matches!(FromClient::decode(&[0x93, 1, 2, 3]), Err(DecodeError::MessagePack(_))));
    }

    fn serde_map<'a>(pairs: &[(&'a str, &'a str)]) -> std::collections::BTreeMap<&'a str, &'a str> {
        pairs.iter().copied().collect()
    }

    #[test]
    fn messages_of_other_dialects_are_not_encoded() {
        assert!(FromClient::Message(ClientMessage::Ping).encode().is_none());
        assert!(FromServer::Message(ServerMessage::ReqProxy).encode().is_none());
    }
}
