//! What the parsers find.

/// Captured bytes of one message or event.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// A complete message or event.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) kind: &'static str,
    /// The beginning of the message.
    pub(super) data: Vec<u8>,
    /// Its complete length on the wire.
    pub(super) size: u64,
}
