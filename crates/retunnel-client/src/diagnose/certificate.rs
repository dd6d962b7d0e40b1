//! What a certificate says about itself, for people.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time, x509::X509Name,
};

use super::check::plain;

/// A certificate that expires within this time is reported. Programs renew certificates weeks earlier.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most names that are shown.
const MAX_NAMES: usize = 8;

/// The facts of a certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    subject: String,
    issuer: String,
    names: Vec<String>,
    not_before: Moment,
    not_after: Moment,
}

/// A date for people, and in seconds since 1970.
#[derive(Debug)]
struct Moment {
    date: String,
    seconds: i64,
}

impl From<ASN1Time> for Moment {
    fn from(time: ASN1Time) -> Self {
        Self { date: time.to_datetime().date().to_string(), seconds: time.timestamp() }
    }
}

/// Reads a certificate; `None` when it is not valid.
pub(super) fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(plain(name)),
        GeneralName::IPAddress([a, b, c, d]) => Some(format!("{a}.{b}.{c}.{d}")),
        GeneralName::IPAddress(bytes) => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        _ => None,
    });
    Some(Certificate {
        subject: named(certificate.subject()),
        issuer: named(certificate.issuer()),
        names: names.take(MAX_NAMES).collect(),
        not_before: certificate.validity().not_before.into(),
        not_after: certificate.validity().not_after.into(),
    })
}

/// The common name, or else the whole name.
fn named(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|common| common.as_str().ok());
    common.map_or_else(|| plain(&name.to_string()), plain)
}

impl Certificate {
    pub(super) fn expires_soon(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = Duration::from_secs(self.not_after.seconds.try_into().unwrap_or(0));
        end.saturating_sub(now) < SOON
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "subject": self.subject, "issuer": self.issuer, "names": self.names,
            "not_before": self.not_before.seconds, "not_after": self.not_after.seconds,
        })
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.subject)?;
        if !self.names.is_empty() {
            write!(f, " for {}", self.names.join(", "))?;
        }
        write!(f, ", by `{}`, valid from {} to {}", self.issuer, self.not_before.date, self.not_after.date)
    }
}
