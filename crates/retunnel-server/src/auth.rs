//! Tokens: how they are made, checked, replaced. Only their SHA-256 is ever stored.

use rand::RngExt;
use retunnel_proto::message::Token;
use sha2::{Digest, Sha256};

use thiserror::Error;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::store::{SecretHash, Store, StoreError};

/// An account's id.
pub type AccountId = Uuid;

/// Revocations that a slow listener may miss; it then checks its own token again.
const REVOCATIONS: usize = 256;
/// Digits of a token: 43 of 62 carry 256 bits.
const TOKEN_DIGITS: usize = 43;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Longest text that is looked up as a token.
const MAX_TOKEN: usize = 512;

/// Who a token stands for.
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
    /// Unknown, revoked or expired; which of them is not told.
    #[error("the token is unknown, revoked or expired")]
    Invalid,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token that is not valid any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Revoked(SecretHash);

impl Revoked {
    /// Whether a session of this account must look again.
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

    /// Whether the token of a session still stands. A store that does not answer does not end sessions.
    pub(crate) async fn is_valid(&self, account: &Account) -> bool {
        match self.store.token(&account.token).await {
            Ok(Some(found)) => !found.is_revoked && !found.is_expired && found.account == account.id,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Makes an account and its first token, using `invite` up when one is given.
    ///
    /// # Errors
    /// [`StoreError::InviteInvalid`], [`StoreError::EmailTaken`] and failures of the store.
    pub async fn register(&self, email: &str, invite: Option<&str>) -> Result<(AccountId, Token), StoreError> {
        let token = new_token();
        let id = self.store.create_account(email, &hash_of(token.expose()), invite.map(hash_of).as_ref()).await?;
        Ok((id, token))
    }

    /// A new token in the place of a valid one, which stops working at once.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn rotate(&self, old: &Token) -> Result<(Account, Token), AuthError> {
        let account = self.authenticate(old).await?;
        let token = self.replace(account.token).await?;
        Ok((account, token))
    }

    /// A token for an account whose token expired. A valid one is given back as it is; one that was replaced stays
    /// invalid, because whoever stole it must not get a new one.
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
        // Nobody listening is fine.
        let _ = self.revocations.send(Revoked(old));
        Ok(token)
    }

    /// Makes an invitation for one registration.
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

    pub(crate) async fn is_ready(&self) -> bool {
        self.store.is_ready().await
    }
}

/// What is stored of a token or an invitation.
#[must_use]
pub fn hash_of(secret: &str) -> SecretHash {
    Sha256::digest(secret.as_bytes()).into()
}

pub(crate) fn random_digits() -> String {
    let mut rng = rand::rng();
    (0..TOKEN_DIGITS).map(|_| char::from(BASE62[rng.random_range(0..BASE62.len())])).collect()
}

/// A new random token; it is good for nothing until a store has its hash.
#[must_use]
pub fn new_token() -> Token {
    Token::new(format!("rt_{}", random_digits()))
}
