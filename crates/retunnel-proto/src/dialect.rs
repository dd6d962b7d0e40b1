//! The published message formats, one module each. A dialect maps [`crate::message`] to bytes and back and decides
//! nothing else.

mod msgpack;
pub mod v2;
pub mod v3;
