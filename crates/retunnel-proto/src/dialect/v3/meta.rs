//! The first message of a client's stream: the head of the local service's response.

use bytes::Bytes;
use serde::Serialize;

use crate::{DecodeError, dialect::msgpack::Fields};

/// Head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpMeta {
    /// Status code.
    pub status: u16,
    /// Headers as the local service sent them. Clients 3.0.x keep only the first of a name.
    pub headers: Vec<(String, String)>,
}

/// The local service's answer to a WebSocket handshake (version 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketMeta {
    /// It accepted.
    Accepted {
        /// The subprotocol it chose.
        subprotocol: Option<String>,
    },
    /// It refused.
    Refused {
        /// Status code.
        status: u16,
        /// Text to show to people; may be empty.
        reason: String,
        /// Headers of its response.
        headers: Vec<(String, String)>,
    },
}

fn status(fields: &Fields<'_>) -> Result<u16, DecodeError> {
    let status = fields.number("status")?.and_then(|status| u16::try_from(status).ok());
    status.ok_or(DecodeError::Field("status"))
}

fn packed<T: Serialize>(meta: &T) -> Bytes {
    rmp_serde::to_vec_named(meta).expect("our messages have text keys and plain values").into()
}

impl HttpMeta {
    /// Decodes the data of the first message of an HTTP stream, with headers as a map (3.0.x) or as pairs.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let fields = Fields::read(data)?;
        Ok(Self { status: status(&fields)?, headers: fields.headers()? })
    }

    /// Encodes it in the form of clients since 3.1.0.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            status: u16,
            headers: &'a [(String, String)],
        }
        packed(&Wire { status: self.status, headers: &self.headers })
    }
}

impl SocketMeta {
    /// Decodes the data of the first message of a WebSocket stream.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let fields = Fields::read(data)?;
        Ok(match status(&fields)? {
            101 => Self::Accepted { subprotocol: fields.optional("subprotocol")? },
            status => {
                Self::Refused { status, reason: fields.long_text("reason", "")?.to_owned(), headers: fields.headers()? }
            }
        })
    }

    /// Encodes it in the form of clients since 3.1.0.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        #[derive(Serialize)]
        struct Accepted<'a> {
            status: u16,
            subprotocol: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Refused<'a> {
            status: u16,
            reason: &'a str,
            headers: &'a [(String, String)],
        }
        match self {
            Self::Accepted { subprotocol } => packed(&Accepted { status: 101, subprotocol: subprotocol.as_deref() }),
            Self::Refused { status, reason, headers } => packed(&Refused { status: *status, reason, headers }),
        }
    }
}
