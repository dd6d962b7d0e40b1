//! What outlives the server: accounts, tokens, invitations, leases. One SQLite file in the data directory, with one writer
//! and a few readers. Live sessions are in `registry`.

mod hostnames;
mod in_use;

use std::{io, path::Path, time::Duration};

use sqlx::{
    Row, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use thiserror::Error;

use crate::{account::AccountId, clock::unix_millis};

pub use hostnames::StoredHostname;
pub(crate) use in_use::InUse;

/// Name of the database in the data directory.
const FILE: &str = "retunnel.db";
/// Connections that read. Lookups are short; more would only wait for the same cores.
const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of one transaction when many accounts are made at once.
const BATCH: usize = 10_000;

/// What the database reported.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the store failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The data directory.
    #[error("data directory: {0}")]
    Directory(#[from] io::Error),
    /// Another server uses the data directory; the number of its process.
    #[error("the server with process number {0} uses it; stop that one, or choose another `--data-dir`")]
    InUse(String),
    /// The database.
    #[error("database: {0}")]
    Database(#[source] Cause),
    /// The database comes from a newer version of the server.
    #[error("the database has version {0}, which is newer than this server; install the newer one or restore a backup")]
    Newer(i64),
    /// The database could not be brought to this version.
    #[error("database migration: {0}")]
    Migration(#[source] Cause),
    /// The e-mail address has an account already.
    #[error("this e-mail address has an account already")]
    EmailTaken,
    /// The invitation does not exist or was used.
    #[error("this invitation does not exist or was used already; ask the server's operator for a new one")]
    InviteInvalid,
    /// The host name is verified for another account.
    #[error("this host name belongs to another account")]
    HostnameTaken,
    /// The account has reached its limit of host names.
    #[error("this account has reached its limit of {0} host names; remove one")]
    HostnameLimit(usize),
}

/// SHA-256 of a token or invitation.
pub type SecretHash = [u8; 32];

/// A stored token with its account.
#[derive(Debug, Clone)]
pub struct StoredToken {
    /// The account.
    pub account: AccountId,
    /// The account's e-mail address.
    pub email: String,
    /// Revoked by a rotation or its owner.
    pub is_revoked: bool,
    /// Past its expiry.
    pub is_expired: bool,
}

/// A leased public address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseKey {
    /// A name below the base domain.
    Name(String),
    /// A custom host name.
    Host(String),
    /// A TCP port.
    Port(u16),
}

impl LeaseKey {
    fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Name(name) => ("http", name.clone()),
            Self::Host(hostname) => ("host", hostname.clone()),
            Self::Port(port) => ("tcp", port.to_string()),
        }
    }
}

/// A lease of an earlier run.
#[derive(Debug, Clone)]
pub struct StoredLease {
    /// The address.
    pub key: LeaseKey,
    /// Its owner.
    pub account: AccountId,
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Store {
    /// Opens the database in a data directory and creates both if they do not exist. Only their owner may read them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        private_directory(data_dir)?;
        let file = data_dir.join(FILE);
        private_file(&file)?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        // A file needs no test before each use and no renewal; the test would cost as much as a lookup.
        let pool = || SqlitePoolOptions::new().test_before_acquire(false).idle_timeout(None).max_lifetime(None);
        let writer = pool().max_connections(1).connect_with(options.clone()).await.or_store_error()?;
        let migration = |version, name: &'static str, sql: &'static str| {
            let sql = sqlx::SqlSafeStr::into_sql_str(sql);
            Migration::new(version, name.into(), MigrationType::Simple, sql, false)
        };
        let migrations = vec![
            migration(1, "accounts", include_str!("../migrations/0001_accounts.sql")),
            migration(2, "hostnames", include_str!("../migrations/0002_hostnames.sql")),
            migration(3, "email case", include_str!("../migrations/0003_email_case.sql")),
            migration(4, "readiness", include_str!("../migrations/0004_readiness.sql")),
        ];
        Migrator::with_migrations(migrations).run(&writer).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer(version),
            error => StoreError::Migration(error.into()),
        })?;
        let readers = pool().max_connections(READERS).connect_with(options.read_only(true)).await.or_store_error()?;
        Ok(Self { readers, writer })
    }

    /// Checks that the database can be read and written.
    ///
    /// # Errors
    /// [`StoreError::Database`], for example when the disk is full or the file is locked or read-only.
    pub async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await.or_store_error()?;
        sqlx::query("INSERT INTO readiness VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET checked_at = $1")
            .bind(now())
            .execute(&self.writer)
            .await
            .map(drop)
            .or_store_error()
    }

    /// Waits for running writes and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// The token with this hash. One indexed lookup, however many accounts there are.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn token(&self, hash: &SecretHash) -> Result<Option<StoredToken>, StoreError> {
        let row = sqlx::query(
            "SELECT a.id, a.email, t.revoked_at IS NOT NULL, coalesce(t.expires_at <= $2, 0) \
             FROM tokens t JOIN accounts a ON a.id = t.account WHERE t.hash = $1",
        )
        .bind(&hash[..])
        .bind(now())
        .fetch_optional(&self.readers)
        .await
        .or_store_error()?;
        row.map(|row| {
            Ok(StoredToken {
                account: account_id(&row, 0)?,
                email: row.try_get(1).or_store_error()?,
                is_revoked: row.try_get(2).or_store_error()?,
                is_expired: row.try_get(3).or_store_error()?,
            })
        })
        .transpose()
    }

    /// Creates an account with its first token. An invitation is consumed in the same transaction, so that it stays valid
    /// when the registration fails.
    ///
    /// # Errors
    /// [`StoreError::InviteInvalid`], [`StoreError::EmailTaken`], [`StoreError::Database`].
    pub async fn create_account(
        &self,
        email: &str,
        token: &SecretHash,
        invite: Option<&SecretHash>,
    ) -> Result<AccountId, StoreError> {
        let id = AccountId::new();
        let mut transaction = self.writer.begin().await.or_store_error()?;
        if let Some(invite) = invite {
            let used = sqlx::query("UPDATE invites SET used_at = $2 WHERE hash = $1 AND used_at IS NULL")
                .bind(&invite[..])
                .bind(now())
                .execute(&mut *transaction)
                .await
                .or_store_error()?;
            if used.rows_affected() != 1 {
                return Err(StoreError::InviteInvalid);
            }
        }
        insert_account(&mut transaction, id, email).await?;
        insert_token(&mut transaction, id, token).await?;
        transaction.commit().await.or_store_error()?;
        Ok(id)
    }

    /// Creates many accounts with one token each, for imports and measurements. Ascending hashes are fastest.
    ///
    /// # Errors
    /// [`StoreError::EmailTaken`], [`StoreError::Database`]; batches before the failing one stay.
    pub async fn create_accounts(&self, accounts: &[(String, SecretHash)]) -> Result<(), StoreError> {
        for batch in accounts.chunks(BATCH) {
            let mut transaction = self.writer.begin().await.or_store_error()?;
            for (email, token) in batch {
                let id = AccountId::new();
                insert_account(&mut transaction, id, email).await?;
                insert_token(&mut transaction, id, token).await?;
            }
            transaction.commit().await.or_store_error()?;
        }
        Ok(())
    }

    /// Replaces a token that is not revoked by a new one; `false` when there is no such token.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn replace_token(&self, old: &SecretHash, new: &SecretHash) -> Result<bool, StoreError> {
        let mut transaction = self.writer.begin().await.or_store_error()?;
        let row =
            sqlx::query("UPDATE tokens SET revoked_at = $2 WHERE hash = $1 AND revoked_at IS NULL RETURNING account")
                .bind(&old[..])
                .bind(now())
                .fetch_optional(&mut *transaction)
                .await
                .or_store_error()?;
        let Some(row) = row else { return Ok(false) };
        insert_token(&mut transaction, account_id(&row, 0)?, new).await?;
        transaction.commit().await.or_store_error()?;
        Ok(true)
    }

    /// Creates an invitation.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn create_invite(&self, hash: &SecretHash) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO invites (hash, created_at) VALUES ($1, $2)")
            .bind(&hash[..])
            .bind(now())
            .execute(&self.writer)
            .await
            .or_store_error()?;
        Ok(())
    }

    /// The leases of earlier runs.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn leases(&self) -> Result<Vec<StoredLease>, StoreError> {
        let rows =
            sqlx::query("SELECT account, kind, address FROM leases").fetch_all(&self.readers).await.or_store_error()?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in rows {
            let (kind, address): (String, String) =
                (row.try_get(1).or_store_error()?, row.try_get(2).or_store_error()?);
            let key = match (kind.as_str(), address.parse()) {
                ("tcp", Ok(port)) => LeaseKey::Port(port),
                ("http", _) => LeaseKey::Name(address),
                ("host", _) => LeaseKey::Host(address),
                _ => continue,
            };
            leases.push(StoredLease { key, account: account_id(&row, 0)? });
        }
        Ok(leases)
    }

    /// Stores the owner of an address.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn save_lease(&self, key: &LeaseKey, account: AccountId) -> Result<(), StoreError> {
        let (kind, address) = key.columns();
        sqlx::query(
            "INSERT INTO leases (kind, address, account) VALUES ($1, $2, $3) \
             ON CONFLICT (kind, address) DO UPDATE SET account = excluded.account",
        )
        .bind(kind)
        .bind(address)
        .bind(account.as_bytes())
        .execute(&self.writer)
        .await
        .or_store_error()?;
        Ok(())
    }

    /// Forgets the owner of an address.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn remove_lease(&self, key: &LeaseKey) -> Result<(), StoreError> {
        let (kind, address) = key.columns();
        sqlx::query("DELETE FROM leases WHERE kind = $1 AND address = $2")
            .bind(kind)
            .bind(address)
            .execute(&self.writer)
            .await
            .or_store_error()?;
        Ok(())
    }
}

/// Hides the database library from users of [`StoreError`].
trait OrStoreError<T> {
    fn or_store_error(self) -> Result<T, StoreError>;
}

impl<T> OrStoreError<T> for sqlx::Result<T> {
    fn or_store_error(self) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Database(error.into()))
    }
}

/// The form in which addresses are stored and compared. People write the same address in capitals and in small letters,
/// and every mail server takes it so.
fn comparable_email(email: &str) -> String {
    email.trim().to_lowercase()
}

async fn insert_account(
    transaction: &mut sqlx::SqliteConnection,
    id: AccountId,
    email: &str,
) -> Result<(), StoreError> {
    let made = sqlx::query("INSERT INTO accounts (id, email, created_at) VALUES ($1, $2, $3)")
        .bind(id.as_bytes())
        .bind(comparable_email(email))
        .bind(now())
        .execute(transaction)
        .await;
    match made {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(StoreError::EmailTaken),
        other => other.map(drop).or_store_error(),
    }
}

async fn insert_token(
    transaction: &mut sqlx::SqliteConnection,
    account: AccountId,
    token: &SecretHash,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO tokens (hash, account, label, created_at) VALUES ($1, $2, 'default', $3)")
        .bind(&token[..])
        .bind(account.as_bytes())
        .bind(now())
        .execute(transaction)
        .await
        .or_store_error()?;
    Ok(())
}

fn account_id(row: &sqlx::sqlite::SqliteRow, column: usize) -> Result<AccountId, StoreError> {
    let bytes: Vec<u8> = row.try_get(column).or_store_error()?;
    AccountId::from_slice(&bytes).ok_or_else(|| StoreError::Database("an account id does not have 16 bytes".into()))
}

fn now() -> i64 {
    i64::try_from(unix_millis()).unwrap_or(i64::MAX)
}

#[cfg(unix)]
fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Creates the database file with mode 0600; SQLite gives its other files the same mode. A file that others may read, for
/// example a copied one, is closed to them again.
fn private_file(path: &Path) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            tracing::warn!(file = %path.display(), "the database was open to other users; setting its mode to 0600");
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
    }
    drop(file);
    Ok(())
}

#[cfg(test)]
mod tests;
