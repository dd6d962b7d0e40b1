//! Identifiers as types, so that they cannot be mixed up.
//!
//! Their texts have the form of the published clients: a prefix and random characters from `a-z2-9` without `l`.
//! Identifiers that grant access ([`SessionId`], the server-issued [`ClientId`]) have at least 128 random bits.

use std::fmt;

use rand::RngExt;
use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 33] = b"abcdefghijkmnopqrstuvwxyz23456789";

/// `length` random characters of the identifier alphabet (about 5 bits each).
#[doc(alias = "generate_id")]
#[must_use]
pub fn random_text(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new random identifier.
            #[must_use]
            pub fn random() -> Self {
                Self(format!(concat!($prefix, "{}"), random_text($length)))
            }

            /// Takes the text of a peer or of a file unchanged.
            #[must_use]
            pub fn from_text(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// Identifies an authenticated client. The server issues it. On 2.x data sockets it is the capability that binds the
    /// socket to its session.
    #[doc(alias = "generate_client_id")]
    ClientId, "client-", 32
}
id! {
    /// Identifies a tunnel within its session; kept over reconnects.
    #[doc(alias = "generate_tunnel_id")]
    TunnelId, "tun-", 16
}
id! {
    /// Matches a tunnel request with its answer, or identifies a visitor's request in logs.
    #[doc(alias = "generate_request_id")]
    RequestId, "req-", 8
}
id! {
    /// Identifies an authenticated control connection.
    #[doc(alias = "generate_session_id")]
    SessionId, "ses-", 26
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_prefix_length_and_alphabet() {
        let id = ClientId::random();
        let rest = id.as_str().strip_prefix("client-").expect("prefix");
        assert_eq!(rest.len(), 32);
        assert!(rest.bytes().all(|b| ALPHABET.contains(&b)));
        assert_ne!(id, ClientId::random());
        assert_eq!(RequestId::random().as_str().len(), "req-".len() + 8);
    }
}
