//! `retunnel.yml`: several tunnels in one file, with `${NAME}` and `${NAME:default}` anywhere inside a value.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{Error, ValidationError},
    target::LocalTarget,
    tunnel::TunnelSpec,
};

/// An example with every key, for `retunnel config --example`.
pub const EXAMPLE: &str = r#"# retunnel.yml - start all tunnels with `retunnel start`
# ${NAME} and ${NAME:default} are replaced by environment variables anywhere inside a value.
server_addr: ${RETUNNEL_SERVER_ENDPOINT:localhost:6400}
# auth_token: ${RETUNNEL_AUTH_TOKEN}
# dialect: auto               # or native, 3, 2: what to speak with the server

tunnels:
  - name: web
    protocol: http
    local_port: 8080          # or: target: http://127.0.0.1:8080, unix:/run/app.sock
    subdomain: my-app         # optional
    # auth: user:password     # optional, asked from visitors
    # host_header: rewrite    # optional, for services that answer to localhost only (Vite, webpack, Django)
    # local_insecure: true    # optional, for target: https://... with a certificate nobody vouches for
  - name: ssh
    protocol: tcp
    local_port: 22
    # remote_port: 20022      # optional
"#;

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TunnelsFile {
    /// The server.
    pub server_addr: Option<String>,
    /// The account's token.
    pub auth_token: Option<String>,
    /// Read and ignored, as the published clients do.
    pub region: Option<String>,
    /// What to speak with the server: `auto`, `native`, `3` or `2`.
    pub dialect: Option<String>,
    /// Log level.
    pub log_level: Option<String>,
    /// The tunnels.
    pub tunnels: Vec<TunnelEntry>,
}

/// One tunnel of a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TunnelEntry {
    /// Name, unique in the file.
    pub name: String,
    /// `http` or `tcp`.
    pub protocol: String,
    /// Port of the local service; or `target`.
    #[serde(default)]
    pub local_port: Option<u16>,
    /// The local service in any form of [`LocalTarget`].
    #[serde(default)]
    pub target: Option<String>,
    /// Wanted name.
    #[serde(default)]
    pub subdomain: Option<String>,
    /// Wanted host name of one's own.
    #[serde(default)]
    pub hostname: Option<String>,
    /// `user:password` asked from visitors.
    #[serde(default)]
    pub auth: Option<String>,
    /// Wanted public port of a TCP tunnel.
    #[serde(default)]
    pub remote_port: Option<u16>,
    /// `rewrite`, or the host that the local service sees instead of the public one.
    #[serde(default)]
    pub host_header: Option<String>,
    /// Accept any certificate of a local service reached by TLS.
    #[serde(default)]
    pub local_insecure: Option<bool>,
    /// Whether the inspector sees the tunnel; yes by default.
    #[serde(default)]
    pub inspect: Option<bool>,
}

impl TunnelsFile {
    /// Reads a file's text. `variable` gives the value of an environment variable.
    ///
    /// # Errors
    /// What is wrong, with the key and, for YAML itself, the line.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // YAML 1.1 reads names such as `y` and `on` as truth values.
        let options = serde_saphyr::options! { strict_booleans: true };
        let mut value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        substitute(&mut value, "", &variable)?;
        let file: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        for (index, entry) in file.tunnels.iter().enumerate() {
            let twice = file.tunnels[..index].iter().any(|earlier| earlier.name == entry.name);
            if twice {
                return Err(format!("two tunnels have the name `{}`", entry.name));
            }
            entry.spec().map_err(|error| format!("tunnel `{}`: {error}", entry.name))?;
        }
        Ok(file)
    }
}

impl TunnelEntry {
    /// The tunnel to open.
    ///
    /// # Errors
    /// [`ValidationError`] of the first bad value.
    pub fn spec(&self) -> Result<TunnelSpec, Error> {
        let error = |what, value: &str, reason| Error::from(ValidationError { what, value: value.into(), reason });
        let target: LocalTarget = match (&self.target, self.local_port) {
            (Some(target), None) => target.parse()?,
            (None, Some(port)) if port != 0 => port.into(),
            (None, Some(_)) => return Err(error("local_port", "0", "a port is a number from 1 to 65535")),
            (None, None) => return Err(error("local_port", "", "this or `target` is needed")),
            (Some(target), Some(_)) => return Err(error("target", target, "`local_port` is given too; keep one")),
        };
        let mut spec = match self.protocol.as_str() {
            "http" => TunnelSpec::http(target),
            "tcp" => TunnelSpec::tcp(target),
            other => return Err(error("protocol", other, "expected http or tcp")),
        };
        if self.name.is_empty() {
            return Err(error("name", "", "a tunnel needs a name"));
        }
        spec = spec.name(&self.name).inspect(self.inspect.unwrap_or(true));
        if let Some(subdomain) = self.subdomain.as_deref().filter(|text| !text.is_empty()) {
            spec = spec.subdomain(subdomain)?;
        }
        if let Some(hostname) = self.hostname.as_deref().filter(|text| !text.is_empty()) {
            spec = spec.hostname(hostname);
        }
        if let Some(auth) = &self.auth {
            // An empty password must not open what it was meant to close.
            spec = spec.auth(auth.as_str())?;
        }
        if let Some(port) = self.remote_port.filter(|port| *port != 0) {
            spec = spec.remote_port(port);
        }
        if let Some(host) = self.host_header.as_deref().filter(|text| !text.is_empty()) {
            spec = spec.host_header(host)?;
        }
        if self.local_insecure == Some(true) {
            spec = spec.local_insecure();
        }
        Ok(spec)
    }
}

/// Replaces variables in every text. A text that was nothing but one variable becomes the number or truth value it
/// spells.
fn substitute(value: &mut Value, key: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            if !text.contains("${") {
                return Ok(());
            }
            let whole = text.starts_with("${") && text.find('}') == Some(text.len() - 1);
            let replaced = replaced(text, key, variable)?;
            *value = match (whole, replaced.parse::<u64>(), replaced.as_str()) {
                (true, Ok(number), _) => number.into(),
                (true, _, "true") => true.into(),
                (true, _, "false") => false.into(),
                _ => replaced.into(),
            };
        }
        Value::Array(values) => {
            for value in values {
                substitute(value, key, variable)?;
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                substitute(value, key, variable)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn replaced(text: &str, key: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        let end = after.find('}').ok_or_else(|| format!("{key}: `${{` without `}}`"))?;
        let (name, default) = after[..end].split_once(':').map_or((&after[..end], None), |(name, d)| (name, Some(d)));
        if name.is_empty() {
            return Err(format!("{key}: `${{}}` names no variable"));
        }
        out.push_str(before);
        match (variable(name), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "{key}: the environment variable {name} is not set; set it or write ${{{name}:default}}"
                ));
            }
        }
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TunnelsFile, String> {
        TunnelsFile::parse(text, |name| match name {
            "PORT" => Some("9000".into()),
            "HOST" => Some("a.test".into()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_anywhere_inside_a_value() {
        let file = parse(
            "server_addr: ${HOST}:${NONE:6400}\ntunnels:\n  - {name: 'x-${PORT}', protocol: http, local_port: '${PORT}'}\n  \
             - {name: y, protocol: tcp, target: '${HOST}:22', remote_port: '${RP:20001}', inspect: '${I:true}'}",
        )
        .expect("valid");
        assert_eq!(file.server_addr.as_deref(), Some("a.test:6400"));
        assert_eq!((file.tunnels[0].name.as_str(), file.tunnels[0].local_port), ("x-9000", Some(9000)));
        assert_eq!((file.tunnels[1].remote_port, file.tunnels[1].inspect), (Some(20_001), Some(true)));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, part) in [
            ("server_addr: ${UNSET}", "UNSET"),
            ("server_addr: ${HOST", "server_addr"),
            ("tunnles: []", "tunnles"),
            ("tunnels: [{name: a, protocol: udp, local_port: 1}]", "protocol"),
            ("tunnels: [{name: a, protocol: http}]", "local_port"),
            ("tunnels: [{name: a, protocol: http, local_port: 70000}]", "70000"),
            ("tunnels: [{name: a, protocol: http, local_port: 1, subdomain: -a}]", "subdomain"),
            ("tunnels: [{name: a, protocol: http, local_port: 1, auth: ''}]", "credentials"),
            ("tunnels: [{name: a, protocol: http, local_port: 1, target: '2'}]", "target"),
            ("tunnels: [{name: a, protocol: tcp, local_port: 1}, {name: a, protocol: tcp, local_port: 2}]", "two"),
            ("tunnels: [", "line"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(parse("").expect("empty"), TunnelsFile::default());
    }

    #[test]
    fn the_example_is_valid() {
        let file = TunnelsFile::parse(EXAMPLE, |_| None).expect("valid");
        assert_eq!(file.server_addr.as_deref(), Some("localhost:6400"));
        assert_eq!(file.tunnels.len(), 2);
    }
}
