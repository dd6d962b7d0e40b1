//! All limits of the wire formats. Limits of a process (sessions, tunnels, rates) are in its configuration.

/// Deepest nesting of MessagePack maps and arrays that is decoded. Real messages have three levels.
pub const MAX_DEPTH: usize = 16;

/// Largest control message before the peer is authenticated, in bytes. An `Auth` with a long token is under 1 KiB.
pub const MAX_UNAUTHENTICATED_MESSAGE: usize = 16 * 1024;

/// Largest control message of an authenticated peer, in bytes.
pub const MAX_CONTROL_MESSAGE: usize = 64 * 1024;

/// Largest text field of a control message that is stored, in bytes (a host name has at most 253).
pub const MAX_TEXT: usize = 1024;

/// Largest payload of a native data frame, in bytes: the header is 0.01 % of it. A receiver accepts this size; a sender
/// takes shorter turns.
pub const MAX_DATA_PAYLOAD: usize = 64 * 1024;

/// Largest WebSocket message of a link that is carried in a WebSocket, in bytes.
pub const MAX_LINK_MESSAGE: usize = 64 * 1024;

/// Longest reason text in a native reset or go-away, in bytes.
pub const MAX_REASON: usize = 256;

/// Largest WebSocket message the published 2.x clients accept, in bytes (their library's default).
pub const V2_MAX_MESSAGE_TO_CLIENT: usize = 4 * 1024 * 1024;

/// Largest request body a 2.x tunnel carries, in bytes: the message limit less 64 KiB for the head.
pub const V2_MAX_REQUEST_BODY: usize = V2_MAX_MESSAGE_TO_CLIENT - 64 * 1024;

/// Largest response (head and body in one message) accepted from a 2.x client, in bytes. The clients have no limit.
pub const V2_MAX_RESPONSE: usize = 64 * 1024 * 1024;

/// Limit of headers in one request or response.
pub const MAX_HEADERS: usize = 100;

/// Chunk that 3.x messages and bodies are cut into, in bytes.
pub const V3_CHUNK: usize = 64 * 1024;

/// Largest WebSocket message the clients 3.0.x accept, in bytes (their library's default).
pub const V3_MAX_FRAME_TO_V1: usize = 1024 * 1024;

/// Largest request body in version 1, in bytes: the frame limit less 64 KiB for the head.
pub const V3_MAX_REQUEST_BODY_V1: usize = V3_MAX_FRAME_TO_V1 - 64 * 1024;

/// Largest request body that clients since 3.1.0 accept, in bytes.
pub const V3_MAX_REQUEST_BODY: usize = 10 * 1024 * 1024;

/// Largest message accepted from a 3.x client, in one WebSocket message or joined from chunks, in bytes.
pub const V3_MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Largest frame accepted from a 3.x client, in bytes: a message and 64 KiB for its head.
pub const V3_MAX_FRAME: usize = V3_MAX_MESSAGE + 64 * 1024;

/// Limit of concurrent streams of a 3.x client.
pub const V3_MAX_STREAMS: usize = 256;

/// Limit of unread frames of one stream in a 3.x client. Beyond it the client drops the stream.
pub const V3_MAX_QUEUED_FRAMES: usize = 256;
