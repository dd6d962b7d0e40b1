//! DNS lookups. None is cached: a cached answer would be the one from before the user changed it.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use thiserror::Error;
use tokio::sync::Semaphore;

/// Timeout of one query, and how often it is sent.
const TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;
/// Verifications at a time. Others wait.
const MAX_QUESTIONS: usize = 16;
/// Most aliases that are followed.
const MAX_ALIASES: usize = 8;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum DnsError {
    #[error("{0}")]
    Net(#[from] NetError),
    #[error("no resolver is configured on this machine")]
    Unavailable,
}

/// A resolver.
#[derive(Debug)]
pub(super) struct Dns {
    /// `None`: the system's configuration cannot be read.
    resolver: Option<TokioResolver>,
    places: Semaphore,
}

impl Dns {
    /// A resolver that queries this server, or the system's.
    pub(super) fn new(server: Option<SocketAddr>) -> Self {
        let builder = match server {
            Some(address) => {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                connections.iter_mut().for_each(|connection| connection.port = address.port());
                let server = NameServerConfig::new(address.ip(), true, connections);
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                Ok(Resolver::builder_with_config(config, TokioRuntimeProvider::default()))
            }
            None => TokioResolver::builder_tokio(),
        };
        let resolver = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = TIMEOUT;
            options.attempts = ATTEMPTS;
            options.cache_size = 0;
            options.use_hosts_file = ResolveHosts::Never;
            builder.build()
        });
        if let Err(error) = &resolver {
            tracing::warn!(%error, "host names cannot be verified: the system's DNS configuration cannot be used");
        }
        Self { resolver: resolver.ok(), places: Semaphore::new(MAX_QUESTIONS) }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, DnsError> {
        let resolver = self.resolver.as_ref().ok_or(DnsError::Unavailable)?;
        let _place = self.places.acquire().await.map_err(|_| DnsError::Unavailable)?;
        // The final dot makes the name absolute: the system's search list is not appended.
        match resolver.lookup(format!("{name}."), kind).await {
            Ok(answer) => Ok(answer.answers().iter().map(|record| record.data.clone()).collect()),
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The TXT records of a name.
    pub(super) async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let answers = self.ask(name, RecordType::TXT).await?;
        let text = |data: &RData| match data {
            RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
            _ => None,
        };
        Ok(answers.iter().filter_map(text).collect())
    }

    /// Whether a name is an alias of another, or has one of its addresses.
    pub(super) async fn points_at(&self, name: &str, target: &str) -> bool {
        let mut alias = name.to_owned();
        for _ in 0..MAX_ALIASES {
            let Ok(answers) = self.ask(&alias, RecordType::CNAME).await else { return false };
            let next = answers.iter().find_map(|data| match data {
                RData::CNAME(name) => Some(name.0.to_ascii().trim_end_matches('.').to_ascii_lowercase()),
                _ => None,
            });
            match next {
                Some(next) if next == target => return true,
                Some(next) => alias = next,
                None => break,
            }
        }
        let (theirs, ours) = tokio::join!(self.addresses(name), self.addresses(target));
        theirs.intersection(&ours).next().is_some()
    }

    async fn addresses(&self, name: &str) -> HashSet<IpAddr> {
        let (four, six) = tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
        let address = |data: RData| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        four.into_iter().chain(six).flatten().filter_map(address).collect()
    }
}
