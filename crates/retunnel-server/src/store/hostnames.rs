//! Stored claims of host names.

use sqlx::{Row, sqlite::SqliteRow};

use super::{OrStoreError, Store, StoreError, account_id, now};
use crate::account::AccountId;

/// One account's claim of a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHostname {
    /// The host name, lower case.
    pub hostname: String,
    /// The value that the TXT record must have.
    pub challenge: String,
    /// Whether it was found.
    pub is_verified: bool,
    /// Why it was not at the last attempt.
    pub last_error: Option<String>,
}

impl StoredHostname {
    fn of(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            hostname: row.try_get(0).or_store_error()?,
            challenge: row.try_get(1).or_store_error()?,
            is_verified: row.try_get(2).or_store_error()?,
            last_error: row.try_get(3).or_store_error()?,
        })
    }
}

const COLUMNS: &str = "SELECT hostname, challenge, verified_at IS NOT NULL, last_error FROM hostnames";

impl Store {
    /// Claims a host name for an account that has fewer than `max`. An existing claim stays as it is.
    ///
    /// # Errors
    /// [`StoreError::HostnameTaken`], [`StoreError::HostnameLimit`], [`StoreError::Database`].
    pub async fn claim_hostname(
        &self,
        hostname: &str,
        account: AccountId,
        challenge: &str,
        max: usize,
    ) -> Result<StoredHostname, StoreError> {
        let mut transaction = self.writer.begin().await.or_store_error()?;
        if let Some(row) = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE hostname = $1 AND account = $2")))
            .bind(hostname)
            .bind(account.as_bytes())
            .fetch_optional(&mut *transaction)
            .await
            .or_store_error()?
        {
            return StoredHostname::of(&row);
        }
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM hostnames WHERE account = $1), \
             EXISTS (SELECT 1 FROM hostnames WHERE hostname = $2 AND verified_at IS NOT NULL)",
        )
        .bind(account.as_bytes())
        .bind(hostname)
        .fetch_one(&mut *transaction)
        .await
        .or_store_error()?;
        if row.try_get::<bool, _>(1).or_store_error()? {
            return Err(StoreError::HostnameTaken);
        }
        if usize::try_from(row.try_get::<i64, _>(0).or_store_error()?).is_ok_and(|count| count >= max) {
            return Err(StoreError::HostnameLimit(max));
        }
        sqlx::query("INSERT INTO hostnames (hostname, account, challenge, created_at) VALUES ($1, $2, $3, $4)")
            .bind(hostname)
            .bind(account.as_bytes())
            .bind(challenge)
            .bind(now())
            .execute(&mut *transaction)
            .await
            .or_store_error()?;
        transaction.commit().await.or_store_error()?;
        Ok(StoredHostname {
            hostname: hostname.to_owned(),
            challenge: challenge.to_owned(),
            is_verified: false,
            last_error: None,
        })
    }

    /// The claims of an account, by name.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn hostnames(&self, account: AccountId) -> Result<Vec<StoredHostname>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE account = $1 ORDER BY hostname")))
            .bind(account.as_bytes())
            .fetch_all(&self.readers)
            .await
            .or_store_error()?;
        rows.iter().map(StoredHostname::of).collect()
    }

    /// One claim of an account.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn hostname(&self, hostname: &str, account: AccountId) -> Result<Option<StoredHostname>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE hostname = $1 AND account = $2")))
            .bind(hostname)
            .bind(account.as_bytes())
            .fetch_optional(&self.readers)
            .await
            .or_store_error()?;
        row.as_ref().map(StoredHostname::of).transpose()
    }

    /// The account that a host name is verified for.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn hostname_owner(&self, hostname: &str) -> Result<Option<AccountId>, StoreError> {
        let row = sqlx::query("SELECT account FROM hostnames WHERE hostname = $1 AND verified_at IS NOT NULL")
            .bind(hostname)
            .fetch_optional(&self.readers)
            .await
            .or_store_error()?;
        row.map(|row| account_id(&row, 0)).transpose()
    }

    /// Stores the result of checking a claim: no error, or what is wrong. A verified claim stays verified.
    ///
    /// # Errors
    /// [`StoreError::HostnameTaken`] when another account was first, [`StoreError::Database`].
    pub async fn verify_hostname(
        &self,
        hostname: &str,
        account: AccountId,
        error: Option<&str>,
    ) -> Result<(), StoreError> {
        let verified_at = error.is_none().then(now);
        let updated = sqlx::query(
            "UPDATE hostnames SET verified_at = coalesce(verified_at, $3), last_error = $4 \
             WHERE hostname = $1 AND account = $2",
        )
        .bind(hostname)
        .bind(account.as_bytes())
        .bind(verified_at)
        .bind(error)
        .execute(&self.writer)
        .await;
        match updated {
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(StoreError::HostnameTaken),
            other => other.map(drop).or_store_error(),
        }
    }

    /// Removes a claim; returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn remove_hostname(&self, hostname: &str, account: AccountId) -> Result<bool, StoreError> {
        let removed = sqlx::query("DELETE FROM hostnames WHERE hostname = $1 AND account = $2")
            .bind(hostname)
            .bind(account.as_bytes())
            .execute(&self.writer)
            .await
            .or_store_error()?;
        Ok(removed.rows_affected() == 1)
    }
}
