//! Tunnels as values: what a caller asks for, and what is known of an open one.

use retunnel_proto::{
    RequestId,
    message::{HttpAuth, ReqTunnel, TunnelProtocol},
    rules,
};

use crate::{target::LocalTarget, trust::Trust, validation::ValidationError};

/// A tunnel to open.
#[doc(alias = "TunnelDefinition")]
#[doc(alias = "TunnelConfig")]
#[derive(Debug, Clone)]
pub struct TunnelSpec {
    pub(crate) name: Option<String>,
    pub(crate) protocol: TunnelProtocol,
    pub(crate) target: LocalTarget,
    pub(crate) subdomain: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) remote_port: Option<u16>,
    pub(crate) auth: Option<HttpAuth>,
    inspect: bool,
    pub(crate) host_header: Option<String>,
}

impl TunnelSpec {
    fn new(protocol: TunnelProtocol, target: LocalTarget) -> Self {
        Self {
            name: None,
            protocol,
            target,
            subdomain: None,
            hostname: None,
            remote_port: None,
            auth: None,
            inspect: true,
            host_header: None,
        }
    }

    /// A tunnel for an HTTP service.
    #[must_use]
    pub fn http(target: impl Into<LocalTarget>) -> Self {
        Self::new(TunnelProtocol::Http, target.into())
    }

    /// A tunnel for a TCP service.
    #[must_use]
    pub fn tcp(target: impl Into<LocalTarget>) -> Self {
        Self::new(TunnelProtocol::Tcp, target.into())
    }

    /// Where the local service is.
    #[must_use]
    pub const fn target(&self) -> &LocalTarget {
        &self.target
    }

    /// A name for events and statistics; without one it is the public address.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Asks for this name below the server's domain.
    ///
    /// # Errors
    /// [`ValidationError`] when it cannot be a name.
    pub fn subdomain(mut self, subdomain: impl Into<String>) -> Result<Self, ValidationError> {
        let subdomain = subdomain.into();
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if subdomain.is_empty()
            || subdomain.len() > 63
            || !subdomain.chars().all(valid)
            || subdomain.starts_with('-')
            || subdomain.ends_with('-')
        {
            let reason = "expected 1 to 63 letters, digits and hyphens, no hyphen first or last";
            return Err(ValidationError { what: "subdomain", value: subdomain, reason });
        }
        self.subdomain = Some(subdomain.to_ascii_lowercase());
        Ok(self)
    }

    /// Asks for a host name of one's own.
    #[must_use]
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Asks for this public port.
    #[must_use]
    pub const fn remote_port(mut self, port: u16) -> Self {
        self.remote_port = Some(port);
        self
    }

    /// Asks visitors for `user:password`.
    ///
    /// # Errors
    /// [`ValidationError`] when one of both is missing.
    pub fn auth(mut self, credentials: impl Into<String>) -> Result<Self, ValidationError> {
        let credentials = credentials.into();
        match credentials.split_once(':') {
            Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                self.auth = Some(HttpAuth(credentials));
                Ok(self)
            }
            _ => {
                let reason = "expected USER:PASSWORD, both not empty";
                Err(ValidationError { what: "credentials", value: "***".into(), reason })
            }
        }
    }

    /// Whether an observer may look at what passes. Default yes.
    #[must_use]
    pub const fn inspect(mut self, inspect: bool) -> Self {
        self.inspect = inspect;
        self
    }

    pub(crate) fn is_inspected(&self) -> bool {
        self.inspect && self.protocol == TunnelProtocol::Http
    }

    /// What the local service sees as `Host`, `Origin`, `X-Forwarded-Host` and `X-Forwarded-Proto` instead of the public
    /// address: `rewrite` stands for its own address, anything else for itself, as `app.test`. Default: the public one.
    /// Redirects to it are turned back; the public address is in `X-Original-Host` and `X-Original-Proto`.
    ///
    /// # Errors
    /// [`ValidationError`] when it cannot be a host.
    pub fn host_header(mut self, value: impl Into<String>) -> Result<Self, ValidationError> {
        let value = value.into();
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        if value.is_empty() || value.len() > 255 || !value.chars().all(valid) {
            let reason = "expected `rewrite`, HOST or HOST:PORT";
            return Err(ValidationError { what: "host header", value, reason });
        }
        self.host_header = Some(value);
        Ok(self)
    }

    /// The origin that the local service sees, when not the public one.
    pub(crate) fn local_origin(&self) -> Option<String> {
        let scheme = if self.target.tls { "https" } else { "http" };
        Some(match self.host_header.as_deref()? {
            "rewrite" => format!("{scheme}://{}", self.target.authority()),
            host => format!("{scheme}://{host}"),
        })
    }

    /// Accepts any certificate of a local service reached by TLS. Default: only on this machine's loopback addresses;
    /// others need one that the system, or [`crate::ClientBuilder::extra_roots`], vouches for.
    #[must_use]
    pub fn local_insecure(mut self) -> Self {
        self.target.trust = Some(Trust::anybody());
        self
    }

    /// What to call this tunnel while it has no public address.
    #[must_use]
    pub fn shown_name(&self) -> String {
        self.name.clone().or_else(|| self.subdomain.clone()).unwrap_or_else(|| self.target.to_string())
    }

    /// The request for the server. After a reconnect it asks for the address that the tunnel had.
    pub(crate) fn request(&self, before: Option<&TunnelInfo>) -> ReqTunnel {
        ReqTunnel {
            request_id: RequestId::random(),
            protocol: self.protocol,
            subdomain: match before {
                Some(info) if self.protocol == TunnelProtocol::Http => Some(info.subdomain.clone()),
                _ => self.subdomain.clone(),
            },
            hostname: self.hostname.clone(),
            remote_port: before.and_then(|info| info.remote_port).or(self.remote_port),
            rules: rules::of_fields(self.auth.clone(), self.local_origin()),
        }
    }
}

/// Facts about an open tunnel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TunnelInfo {
    /// Name in this client.
    pub name: String,
    /// Public address.
    pub url: String,
    /// What it carries.
    pub protocol: TunnelProtocol,
    /// Name below the server's domain; empty for TCP.
    pub subdomain: String,
    /// Public port of a TCP tunnel.
    pub remote_port: Option<u16>,
    /// Where visitors' bytes go.
    pub target: LocalTarget,
}

/// The name a tunnel has in events when the caller gave none.
pub(crate) fn name_of(spec: &TunnelSpec, subdomain: &str, remote_port: Option<u16>) -> String {
    match (&spec.name, spec.protocol, remote_port) {
        (Some(name), ..) => name.clone(),
        (None, TunnelProtocol::Tcp, Some(port)) => format!("tcp-{port}"),
        _ => subdomain.to_owned(),
    }
}
