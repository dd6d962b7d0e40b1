//! Dialect 2: what the published Python clients 2.0.0 to 2.5.3 speak. One MessagePack map per WebSocket message, behind
//! an 8-byte big-endian length that receivers accept as missing. `docs/protocol.md` has the fields.

mod decode;
mod encode;

pub use decode::{decode_client, decode_request, decode_response, decode_server};
pub use encode::{encode_client, encode_request, encode_response, encode_server};

/// Bytes of the length in front of a message.
pub const PREFIX_LEN: usize = 8;

/// The only authentication failure after which clients from 2.0.1 on ask for another token.
const INVALID_TOKEN: &str = "Invalid auth token";

/// The message behind its length. As the published clients do it: the length counts only when it is right, otherwise
/// the whole is the message.
#[must_use]
pub fn strip_prefix(message: &[u8]) -> &[u8] {
    match message.split_first_chunk::<PREFIX_LEN>() {
        Some((prefix, rest)) if u64::from_be_bytes(*prefix) == rest.len() as u64 => rest,
        _ => message,
    }
}

#[cfg(test)]
mod tests;
