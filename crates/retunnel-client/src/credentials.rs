//! How a client identifies itself to its server.

use retunnel_proto::message::Token;

/// The token of a client, and what the client may do without a valid one.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// No token, and no account is created. Only some servers accept such a client.
    None,
    /// No token yet: creates an account first, or takes the one that its [`AccountStore`](crate::AccountStore) has by then.
    /// [`Event::Registered`](crate::Event::Registered) has its token. If the server refuses that token after a reconnect, one
    /// more account is created.
    #[default]
    Register,
    /// A token that the user chose, and that this server may never have seen. It is shown to the server only after it has
    /// accepted a link. If the server refuses it, the client ends.
    Token(Token),
    /// A token for a server that is known: one was saved for its host, its port, and with or without TLS. It may be sent before
    /// the server has answered, which saves a round trip.
    Saved {
        /// The token.
        token: Token,
        /// How it came to be saved.
        origin: Origin,
    },
}

/// How a saved token came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user chose it. If the server refuses it, the client ends.
    Chosen,
    /// The client registered the account by itself. If the server refuses it, another account is created.
    Registered,
}

impl Credentials {
    /// The token, if there is one.
    #[must_use]
    pub const fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) | Self::Saved { token, .. } => Some(token),
            Self::None | Self::Register => None,
        }
    }

    /// Whether an account is created when there is no token or the server refuses it.
    pub(crate) const fn may_register(&self) -> bool {
        matches!(self, Self::Register | Self::Saved { origin: Origin::Registered, .. })
    }

    /// Whether the server may see the token before it has answered.
    pub(crate) const fn is_of_server(&self) -> bool {
        matches!(self, Self::Saved { .. })
    }
}

impl From<Token> for Credentials {
    fn from(token: Token) -> Self {
        Self::Token(token)
    }
}
