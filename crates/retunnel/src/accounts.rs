//! The saved configuration as the store of accounts that the client registers.

use std::path::PathBuf;

use retunnel_client::{AccountStore, LockedAccount, ServerEndpoint, Token};
use retunnel_config::{ConfigFile, RegistrationLock, SavedToken};

/// The account that is saved for one server.
#[derive(Debug, Clone)]
pub(crate) struct SavedAccount {
    pub(crate) path: PathBuf,
    pub(crate) server: ServerEndpoint,
}

impl SavedAccount {
    /// What is saved now. A file that cannot be read has nothing; the program has checked it at the start.
    pub(crate) fn token(&self) -> Option<SavedToken> {
        ConfigFile::read(&self.path).ok()?.token_for(&self.server)
    }
}

impl AccountStore for SavedAccount {
    fn lock(&self) -> Box<dyn LockedAccount> {
        // Without a lock, for example in a read-only home, an account is still better than none.
        Box::new(Locked { account: self.clone(), _lock: ConfigFile::lock_registration(&self.path).ok() })
    }
}

struct Locked {
    account: SavedAccount,
    _lock: Option<RegistrationLock>,
}

impl LockedAccount for Locked {
    fn token(&self) -> Option<Token> {
        self.account.token().map(SavedToken::into_token)
    }

    fn save(&mut self, token: &Token) -> Result<(), String> {
        ConfigFile::save_registered(&self.account.path, &self.account.server, token).map_err(|error| error.to_string())
    }
}
