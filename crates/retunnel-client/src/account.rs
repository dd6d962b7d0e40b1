//! Where the account is kept that a client registers.

use std::fmt;

use retunnel_proto::message::Token;

/// Keeps the account of one server. Programs that share a store and start together share one account, because each
/// registers only while it has the store locked.
pub trait AccountStore: fmt::Debug + Send + Sync {
    /// Waits until no other program has the store locked. It is called on a thread that may block.
    fn lock(&self) -> Box<dyn LockedAccount>;
}

/// A store that is locked until this is dropped.
pub trait LockedAccount: Send {
    /// The token that is kept now.
    fn token(&self) -> Option<Token>;

    /// Keeps the token of a new account.
    ///
    /// # Errors
    /// The reason, for people.
    fn save(&mut self, token: &Token) -> Result<(), String>;
}
