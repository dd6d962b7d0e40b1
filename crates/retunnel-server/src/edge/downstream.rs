//! How a visitor speaks: what the exchange needs of a visitor's protocol.

use std::net::SocketAddr;

use bytes::Bytes;
use retunnel_link::LinkStream;
use retunnel_proto::http1::{request::RequestHead, response::ResponseHead};

use super::page::EdgeError;
use crate::tunnel::upstream::{ConnectionId, Moved, Part, Trailers, Upgraded};

/// One visitor's side of an exchange.
pub(super) trait Downstream: Send {
    /// The request's body as it arrives.
    type Body<'a>: RequestBody
    where
        Self: 'a;
    /// Where the answer goes.
    type Answer<'a>: AnswerSink
    where
        Self: 'a;

    /// The other end of the visitor's connection.
    fn peer(&self) -> SocketAddr;

    /// The visitor's connection, which may carry more exchanges later.
    fn connection(&self) -> ConnectionId;

    /// Whether the visitor's connection uses TLS.
    fn is_encrypted(&self) -> bool;

    /// Both directions of an exchange, for use in one task.
    fn split<'a>(&'a mut self, request: &'a RequestHead) -> (Self::Body<'a>, Self::Answer<'a>);

    /// The connection after both sides agreed to leave HTTP.
    fn upgraded(&mut self) -> Upgraded<'_>;

    /// Answers with a page of the edge; says whether the visitor took it.
    fn refuse(
        &mut self,
        error: &EdgeError,
        request: &RequestHead,
        keep_alive: bool,
    ) -> impl Future<Output = bool> + Send;

    /// Ends an answer that has begun and cannot be completed. It must not look complete.
    fn cut(&mut self);
}

/// A request's body.
pub(super) trait RequestBody: Send {
    /// What has arrived, without waiting.
    ///
    /// # Errors
    /// [`BodyError::Malformed`].
    fn arrived(&mut self) -> Result<Piece, BodyError>;

    /// Waits for more of it.
    ///
    /// # Errors
    /// [`BodyError`].
    fn more(&mut self) -> impl Future<Output = Result<(), BodyError>> + Send;

    /// Moves the rest of a sized body to a stream without copies. `false`: it has to be moved in pieces.
    ///
    /// # Errors
    /// [`BodyError`].
    fn relay(&mut self, stream: &LinkStream, moved: &Moved) -> impl Future<Output = Result<bool, BodyError>> + Send;

    /// The request is complete: waits until the visitor leaves, and keeps what it sends ahead.
    fn watch(&mut self) -> impl Future<Output = Leaving> + Send;

    /// Whether the request has no body.
    fn is_empty(&self) -> bool;

    /// Whether nothing of the body has arrived.
    fn is_awaited(&self) -> bool;
}

/// Part of a request's body.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) payload: Bytes,
    /// The body is complete, with these trailers.
    pub(super) end: Option<Trailers>,
}

/// Why a body does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It does not follow its framing.
    Malformed,
    /// The visitor sent nothing for too long.
    TimedOut,
    /// The visitor is gone.
    Gone,
    /// The stream takes no more.
    StreamClosed,
}

/// How a visitor leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It sends nothing more, and may wait for the answer.
    HalfClosed,
    /// It is gone.
    Gone,
}

/// The visitor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Where an answer goes.
pub(super) trait AnswerSink: Send {
    /// Asks the visitor to send the body.
    ///
    /// # Errors
    /// [`Gone`].
    fn proceed(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Passes on an answer that another one follows.
    ///
    /// # Errors
    /// [`Gone`].
    fn interim(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Sends the head and the first part of the body together. `keep_alive`: another request may follow; returns whether
    /// this protocol can keep the promise.
    ///
    /// # Errors
    /// [`Gone`].
    fn begin(
        &mut self,
        head: &ResponseHead,
        part: &Part,
        keep_alive: bool,
    ) -> impl Future<Output = Result<bool, Gone>> + Send;

    /// Sends the next part of the body.
    ///
    /// # Errors
    /// [`Gone`].
    fn send(&mut self, part: &Part) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Moves the rest of a sized body from a stream without copies; returns whether more bytes came after it. `None`: it has
    /// to be moved in parts.
    ///
    /// # Errors
    /// [`Gone`], also when the stream ends early.
    fn relay(
        &mut self,
        stream: &LinkStream,
        left: u64,
        moved: &Moved,
    ) -> impl Future<Output = Result<Option<bool>, Gone>> + Send;
}
