//! Custom host names: an account claims one, proves with a TXT record that it controls the domain, and may then serve it.

mod dns;

use retunnel_proto::{
    http1::host::Host,
    message::{Refusal, RefusalCode},
};
use tracing::{error, info};

use crate::{
    account::AccountId,
    auth::{Account, random_digits},
    config::ServerConfig,
    store::{Store, StoreError, StoredHostname},
};

use dns::Dns;

/// Prefix of the TXT record's name; the published clients print it.
const CHALLENGE_PREFIX: &str = "_retunnel-challenge.";
/// Prefix of the TXT record's value.
const CHALLENGE_VALUE: &str = "retunnel-verification=";

/// A claim and the DNS records that it needs.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) stored: StoredHostname,
    /// Where the name must point.
    pub(crate) target: String,
}

impl Claim {
    /// Name of the TXT record.
    pub(crate) fn challenge_name(&self) -> String {
        format!("{CHALLENGE_PREFIX}{}", self.stored.hostname)
    }
}

/// The result of checking the DNS.
#[derive(Debug)]
pub(crate) struct Verification {
    pub(crate) claim: Claim,
    /// Whether the name points to this server.
    pub(crate) points_here: bool,
}

/// The claims of all accounts.
#[derive(Debug)]
pub(crate) struct Hostnames {
    store: Store,
    dns: Dns,
    domain: String,
    /// Where names must point: the host of the public URL, or the domain.
    target: String,
    max_per_account: usize,
}

impl Hostnames {
    pub(crate) fn new(store: Store, config: &ServerConfig) -> Self {
        Self {
            store,
            dns: Dns::new(config.dns_resolver),
            domain: config.domain.clone(),
            target: config.public_host().to_owned(),
            max_per_account: config.limits.max_hostnames_per_account,
        }
    }

    fn claim(&self, stored: StoredHostname) -> Claim {
        Claim { stored, target: self.target.clone() }
    }

    /// Validates a host name and returns it in its stored form.
    ///
    /// # Errors
    /// [`RefusalCode::HostnameInvalid`].
    pub(crate) fn valid(&self, hostname: &str) -> Result<String, Refusal> {
        let invalid = |why: &str| Err(Refusal::new(RefusalCode::HostnameInvalid, format!("`{hostname}` {why}")));
        let Some(Host::Name(name)) = Host::parse(hostname.as_bytes()).filter(|_| !hostname.contains(':')) else {
            return invalid("is not a host name");
        };
        let label = |label: &str| {
            !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let top = name.rsplit('.').next().unwrap_or_default();
        if !name.contains('.') || !name.split('.').all(label) || top.bytes().all(|byte| byte.is_ascii_digit()) {
            return invalid("is not a full host name such as app.example.com");
        }
        let is_within = |domain: &str| name == domain || name.ends_with(&format!(".{domain}"));
        if is_within(&self.domain) || is_within(&self.target) || is_within("localhost") {
            return invalid("is below the server's own domain; use a subdomain");
        }
        Ok(name)
    }

    /// Claims a host name. An existing claim is returned as it is.
    ///
    /// # Errors
    /// [`StoreError::HostnameTaken`], [`StoreError::HostnameLimit`], failures of the store.
    pub(crate) async fn add(&self, hostname: &str, account: AccountId) -> Result<Claim, StoreError> {
        let challenge = format!("{CHALLENGE_VALUE}{}", random_digits());
        let stored = self.store.claim_hostname(hostname, account, &challenge, self.max_per_account).await?;
        Ok(self.claim(stored))
    }

    pub(crate) async fn list(&self, account: AccountId) -> Result<Vec<Claim>, StoreError> {
        let stored = self.store.hostnames(account).await?;
        Ok(stored.into_iter().map(|stored| self.claim(stored)).collect())
    }

    /// Checks a claim in the DNS; `None` when there is no such claim.
    ///
    /// # Errors
    /// [`StoreError::HostnameTaken`] when another account was first, failures of the store.
    pub(crate) async fn verify(&self, hostname: &str, account: &Account) -> Result<Option<Verification>, StoreError> {
        let Some(stored) = self.store.hostname(hostname, account.id).await? else { return Ok(None) };
        let mut claim = self.claim(stored);
        let name = claim.challenge_name();
        let (texts, points_here) = tokio::join!(self.dns.texts(&name), self.dns.points_at(hostname, &self.target));
        let wanted = &claim.stored.challenge;
        let error = match texts {
            Ok(texts) if texts.iter().any(|text| text == wanted) => None,
            Ok(texts) if texts.is_empty() => Some(format!("there is no TXT record at {name}; add it with {wanted}")),
            Ok(_) => Some(format!("the TXT record at {name} has another value; set it to {wanted}")),
            Err(cause) => Some(format!("the DNS did not answer for {name}: {cause}; try again in a moment")),
        };
        self.store.verify_hostname(hostname, account.id, error.as_deref()).await?;
        if error.is_none() && !claim.stored.is_verified {
            info!(%hostname, account = %account.email, "host name verified");
        }
        claim.stored.is_verified |= error.is_none();
        claim.stored.last_error = error;
        Ok(Some(Verification { claim, points_here }))
    }

    /// Removes a claim; returns whether there was one.
    ///
    /// # Errors
    /// Failures of the store.
    pub(crate) async fn remove(&self, hostname: &str, account: AccountId) -> Result<bool, StoreError> {
        self.store.remove_hostname(hostname, account).await
    }

    /// The host name in its stored form, if the account may serve it.
    ///
    /// # Errors
    /// The refusal to send to the client.
    pub(crate) async fn may_serve(&self, hostname: &str, account: AccountId) -> Result<String, Refusal> {
        let name = self.valid(hostname)?;
        let failed = |cause: StoreError| {
            error!(%cause, "host names cannot be read");
            Refusal::new(RefusalCode::Internal, "the server cannot read its host names now")
        };
        match self.store.hostname_owner(&name).await.map_err(failed)? {
            Some(owner) if owner == account => return Ok(name),
            Some(_) => {
                let message = format!("the host name `{name}` belongs to another account");
                return Err(Refusal::new(RefusalCode::HostnameTaken, message));
            }
            None => {}
        }
        Err(match self.store.hostname(&name, account).await.map_err(failed)? {
            Some(_) => Refusal::new(
                RefusalCode::HostnameNotVerified,
                format!("the host name `{name}` is registered but not verified: its TXT record was not found yet"),
            ),
            None => Refusal::new(
                RefusalCode::HostnameNotRegistered,
                format!("the host name `{name}` is not registered for this account; register and verify it first"),
            ),
        })
    }
}
