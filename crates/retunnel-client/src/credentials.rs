//! How a client identifies itself to its server.

use retunnel_proto::message::Token;

/// The token of a client, and what the client may do without a valid one.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// No token, and no account is created. Only some servers accept such a client.
    None,
    /// No token yet: creates an account first; [`Event::Registered`](crate::Event::Registered) has its token. If the server
    /// refuses that token after a reconnect, one more account is created.
    #[default]
    Register,
    /// A token that the user chose. If the server refuses it, the client ends.
    Token(Token),
    /// A token that was saved earlier. If the server refuses it, an account is created, as with [`Self::Register`].
    Saved {
        /// The token.
        token: Token,
        /// Where it comes from.
        issuer: Issuer,
    },
}

/// Which server issued a saved token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuer {
    /// The server of this client. The token may be sent before the server has answered, also without TLS, which saves a
    /// round trip.
    ThisServer,
    /// Not known. Without TLS the token is sent only after the server has answered.
    Unknown,
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
        matches!(self, Self::Register | Self::Saved { .. })
    }

    /// Whether the token is known to be the server's own.
    pub(crate) const fn is_of_server(&self) -> bool {
        matches!(self, Self::Saved { issuer: Issuer::ThisServer, .. })
    }
}

impl From<Token> for Credentials {
    fn from(token: Token) -> Self {
        Self::Token(token)
    }
}
