//! Tokens: how they are made, checked, replaced. Only their SHA-256 is ever stored.

use rand::RngExt;
use retunnel_proto::message::Token;
use sha2::{Digest, Sha256};

use thiserror::Error;
use tokio::sync::broadcast;

pub use crate::account::AccountId;
use crate::store::{SecretHash, Store, StoreError};

/// Revocations that a slow listener may miss; it then checks its own token again.
const REVOCATIONS: usize = 256;
/// Digits of a token: 43 of 62 carry 256 bits.
const TOKEN_DIGITS: usize = 43;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Longest text that is looked up as a token.
const MAX_TOKEN: usize = 512;

/// The account behind a token.
#[derive(Debug, Clone)]
pub struct Account {
    /// The account.
    pub id: AccountId,
    /// Its e-mail address.
    pub email: String,
    /// Hash of the token it came with.
    pub(crate) token: SecretHash,
}

/// Why a token was not accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Unknown, revoked or expired; deliberately not distinguished.
    #[error("the token is unknown, revoked or expired")]
    Invalid,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token that is no longer valid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Revoked(SecretHash);

impl Revoked {
    /// Whether a session of this account must check its token.
    pub(crate) fn concerns(&self, account: &Account) -> bool {
        self.0 == account.token
    }
}

/// Checks and makes tokens.
#[derive(Debug, Clone)]
pub struct Auth {
    store: Store,
    revocations: broadcast::Sender<Revoked>,
}

impl Auth {
    /// Over the accounts of a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, revocations: broadcast::channel(REVOCATIONS).0 }
    }

    /// The account behind a token.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn authenticate(&self, token: &Token) -> Result<Account, AuthError> {
        let text = token.expose();
        if text.is_empty() || text.len() > MAX_TOKEN {
            return Err(AuthError::Invalid);
        }
        let hash = hash_of(text);
        match self.store.token(&hash).await? {
            Some(found) if !found.is_revoked && !found.is_expired => {
                Ok(Account { id: found.account, email: found.email, token: hash })
            }
            _ => Err(AuthError::Invalid),
        }
    }

    /// Whether the token of a session is still valid. A store that does not answer does not end sessions.
    pub(crate) async fn is_valid(&self, account: &Account) -> bool {
        match self.store.token(&account.token).await {
            Ok(Some(found)) => !found.is_revoked && !found.is_expired && found.account == account.id,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Creates an account and its first token. An `invite` is consumed.
    ///
    /// # Errors
    /// [`StoreError::InviteInvalid`], [`StoreError::EmailTaken`] and failures of the store.
    pub async fn register(&self, email: &str, invite: Option<&str>) -> Result<(AccountId, Token), StoreError> {
        let token = new_token();
        let id = self.store.create_account(email, &hash_of(token.expose()), invite.map(hash_of).as_ref()).await?;
        Ok((id, token))
    }

    /// Replaces a valid token by a new one. The old one stops working at once.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn rotate(&self, old: &Token) -> Result<(Account, Token), AuthError> {
        let account = self.authenticate(old).await?;
        let token = self.replace(account.token).await?;
        Ok((account, token))
    }

    /// A new token for an expired one. A valid one is returned as it is. One that was replaced stays invalid: a thief must
    /// not get a new one.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn reactivate(&self, old: &Token) -> Result<(Account, Token), AuthError> {
        let hash = hash_of(old.expose());
        let found = self.store.token(&hash).await?.filter(|found| !found.is_revoked).ok_or(AuthError::Invalid)?;
        let account = Account { id: found.account, email: found.email, token: hash };
        let token = if found.is_expired { self.replace(hash).await? } else { old.clone() };
        Ok((account, token))
    }

    async fn replace(&self, old: SecretHash) -> Result<Token, AuthError> {
        let token = new_token();
        if !self.store.replace_token(&old, &hash_of(token.expose())).await? {
            return Err(AuthError::Invalid);
        }
        // No listener is fine.
        let _ = self.revocations.send(Revoked(old));
        Ok(token)
    }

    /// Creates an invitation for one registration.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn invite(&self) -> Result<String, StoreError> {
        let code = format!("inv_{}", random_digits());
        self.store.create_invite(&hash_of(&code)).await?;
        Ok(code)
    }

    /// Tokens that are replaced from now on.
    pub(crate) fn revocations(&self) -> broadcast::Receiver<Revoked> {
        self.revocations.subscribe()
    }

    /// Checks that accounts can be read and written.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }
}

/// The stored form of a token or an invitation: its SHA-256.
#[must_use]
pub fn hash_of(secret: &str) -> SecretHash {
    Sha256::digest(secret.as_bytes()).into()
}

pub(crate) fn random_digits() -> String {
    let mut rng = rand::rng();
    (0..TOKEN_DIGITS).map(|_| char::from(BASE62[rng.random_range(0..BASE62.len())])).collect()
}

/// A new random token. It is not valid until a store has its hash.
#[must_use]
pub fn new_token() -> Token {
    Token::new(format!("rt_{}", random_digits()))
}
