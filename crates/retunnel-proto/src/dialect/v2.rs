//! Dialect 2, of the published Python clients 2.0.0 to 2.5.3: one MessagePack map per WebSocket message, after an 8-byte
//! big-endian length, which may be missing. `docs/protocol.md` lists the fields.

mod decode;
mod encode;

pub use decode::{decode_client, decode_request, decode_response, decode_server};
pub use encode::{encode_client, encode_request, encode_response, encode_server};

/// Size in bytes of the length before a message.
pub const PREFIX_LEN: usize = 8;

/// The only text of an authentication failure after which clients since 2.0.1 ask for another token.
const INVALID_TOKEN: &str = "Invalid auth token";

/// The message without its length. As in the published clients, a length that is not correct is part of the message.
#[must_use]
pub fn strip_prefix(message: &[u8]) -> &[u8] {
    match message.split_first_chunk::<PREFIX_LEN>() {
        Some((prefix, rest)) if u64::from_be_bytes(*prefix) == rest.len() as u64 => rest,
        _ => message,
    }
}

#[cfg(test)]
mod tests;
