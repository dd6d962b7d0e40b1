//! Basic authentication of visitors (RFC 7617).

use data_encoding::BASE64;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::message::HttpAuth;

/// Largest `user:password`, in bytes.
const MAX_CREDENTIALS: usize = 512;

/// What visitors of a tunnel must present. Holds a digest, never the password.
#[derive(Debug, Clone)]
pub struct BasicAuth {
    digest: [u8; 32],
}

/// Credentials that cannot protect anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a password for visitors has the form USER:PASSWORD, both not empty, in at most 512 bytes")]
pub struct BadCredentials;

impl BasicAuth {
    /// The check for these credentials.
    ///
    /// # Errors
    /// [`BadCredentials`]: an empty user or password would let everyone in.
    pub fn new(credentials: &HttpAuth) -> Result<Self, BadCredentials> {
        match credentials.0.split_once(':') {
            Some((user, password))
                if !user.is_empty() && !password.is_empty() && credentials.0.len() <= MAX_CREDENTIALS =>
            {
                Ok(Self { digest: Sha256::digest(credentials.0.as_bytes()).into() })
            }
            _ => Err(BadCredentials),
        }
    }

    /// Whether a request with these `Authorization` headers may pass: exactly one, with the right credentials. Every
    /// request is checked, preflights and upgrades included. User and password are compared as one digest in constant
    /// time, so that an unknown user costs the same as a wrong password.
    pub fn admits<'a>(&self, authorization: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let mut given = authorization.into_iter();
        let (Some(value), None) = (given.next(), given.next()) else { return false };
        let Some((scheme, encoded)) = value.iter().position(|byte| *byte == b' ').map(|at| value.split_at(at)) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"basic") || encoded.len() > 2 * MAX_CREDENTIALS {
            return false;
        }
        let Ok(credentials) = BASE64.decode(encoded.trim_ascii()) else { return false };
        Sha256::digest(&credentials).ct_eq(&self.digest).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(authorization: &[&str]) -> bool {
        let auth = BasicAuth::new(&HttpAuth("me:pass:word".into())).expect("valid");
        auth.admits(authorization.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn row_27_only_the_one_right_header_is_admitted() {
        let right = format!("Basic {}", BASE64.encode(b"me:pass:word"));
        assert!(admits(&[&right]));
        assert!(admits(&[&right.replace("Basic", "bAsIc")]));
        let wrong_user = format!("Basic {}", BASE64.encode(b"you:pass:word"));
        for others in [
            &[][..],
            &[right.as_str(), right.as_str()],
            &["Basic"],
            &["Basic ???"],
            &[wrong_user.as_str()],
            &["Bearer x"],
        ] {
            assert!(!admits(others), "{others:?}");
        }
    }

    #[test]
    fn empty_secrets_are_refused() {
        for bad in ["", "me", "me:", ":pass", ":"] {
            assert!(BasicAuth::new(&HttpAuth(bad.into())).is_err(), "{bad}");
        }
    }
}
