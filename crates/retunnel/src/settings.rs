//! Resolves settings: option, then environment, then `.env`, then tunnels file, then `~/.retunnel.conf`, then default.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use retunnel_client::{Client, ClientBuilder, Credentials, Issuer, Proxies, Proxy, ServerEndpoint, Token};
use retunnel_config::{ConfigFile, saved::FILE_NAME};

use crate::{
    args::{Connection, Global},
    exit::Usage,
    output::Output,
    variables::Variables,
};

/// The proxies from option or environment. `none` disables them, even if the environment has some.
fn proxies(named: Option<&str>, variables: &Variables) -> Result<Proxies> {
    match named {
        Some("none") => Ok(Proxies::default()),
        Some(url) => Ok(Proxies::all(url.parse()?)),
        None => Ok(Proxies::from_variables(|name| variables.value(name))?),
    }
}

/// The path of the saved configuration.
pub(crate) fn config_path() -> Result<PathBuf> {
    let home = etcetera::home_dir().context("this user has no home directory")?;
    Ok(home.join(FILE_NAME))
}

/// Connection settings of a tunnels file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FromFile<'a> {
    pub(crate) path: Option<&'a Path>,
    pub(crate) server: Option<&'a str>,
    pub(crate) token: Option<&'a str>,
    pub(crate) dialect: Option<&'a str>,
}

/// A setting and the source of its value.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) setting: &'static str,
    /// The value for display; secrets are masked.
    pub(crate) value: String,
    pub(crate) from: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.setting, self.value, self.from)
    }
}

/// The client's settings from all sources, and where a new token is saved.
pub(crate) struct Settings {
    pub(crate) builder: ClientBuilder,
    pub(crate) server: ServerEndpoint,
    pub(crate) path: PathBuf,
    /// The sources of the values.
    pub(crate) sources: Vec<Source>,
}

impl Settings {
    /// Combines the sources.
    pub(crate) fn new(
        connection: &Connection,
        variables: &Variables,
        tunnels_file: FromFile<'_>,
        global: &Global,
        output: Output,
    ) -> Result<Self> {
        let path = config_path()?;
        let file = ConfigFile::read(&path)?;
        if file.make_private()? {
            output.warning(&format!("{} was readable by other users; permissions were restricted", path.display()));
        }
        let shown = path.display().to_string();
        let in_tunnels = |text: Option<&str>| {
            let from = tunnels_file.path.map_or_else(|| "retunnel.yml".into(), |path| path.display().to_string());
            Some((text?.to_owned(), from))
        };
        let by_option = |value: &Option<String>, option: &str| Some((value.clone()?, option.to_owned()));
        let mut sources = Vec::new();
        let mut note =
            |setting, value: String, from: &str| sources.push(Source { setting, value, from: from.to_owned() });

        let named = by_option(&connection.server, "--server")
            .or_else(|| variables.find("RETUNNEL_SERVER_ENDPOINT"))
            .or_else(|| in_tunnels(tunnels_file.server))
            .or_else(|| Some((file.server_url()?.to_owned(), shown.clone())));
        let server: ServerEndpoint = match &named {
            Some((text, _)) => text.parse()?,
            None => ServerEndpoint::default(),
        };
        note("server", server.to_string(), named.as_ref().map_or("default", |(_, from)| from));

        let given = match &connection.token {
            Some(token) if token.trim().is_empty() => return Err(Usage("--token is empty".into()).into()),
            Some(token) => Some((token.clone(), "--token".to_owned())),
            None => match variables.security_value("RETUNNEL_AUTH_TOKEN")? {
                Some(_) => variables.find("RETUNNEL_AUTH_TOKEN"),
                None => in_tunnels(tunnels_file.token.filter(|token| !token.is_empty())),
            },
        };
        // A saved token may belong to another server, or to an earlier installation of this one; then a new account is
        // created. A token that was given is never replaced.
        let (credentials, from) = match given {
            Some((token, from)) => (Credentials::Token(Token::new(token)), from),
            None => match (file.token_for(&server.authority()), file.auth_token()) {
                (Some(token), _) => (
                    Credentials::Saved { token, issuer: Issuer::ThisServer },
                    format!("{shown}, saved for this server"),
                ),
                (None, Some(token)) => (Credentials::Saved { token, issuer: Issuer::Unknown }, shown.clone()),
                (None, None) => (Credentials::Register, shown.clone()),
            },
        };
        match credentials.token() {
            Some(token) => note("token", token.masked(), &from),
            None => note("token", "none".into(), &format!("not set in an option, a variable or {shown}")),
        }

        let named = by_option(&connection.dialect, "--dialect")
            .or_else(|| variables.find("RETUNNEL_DIALECT"))
            .or_else(|| in_tunnels(tunnels_file.dialect));
        let dialect = match &named {
            Some((name, _)) if name != "auto" => Some(name.parse()?),
            _ => None,
        };
        let (name, from) = named.unwrap_or_else(|| ("auto".into(), "default".into()));
        note("dialect", name, &from);

        let proxy = by_option(&global.proxy, "--proxy").or_else(|| variables.find("RETUNNEL_PROXY"));
        let proxies = proxies(proxy.as_ref().map(|(url, _)| url.as_str()), variables)?;
        if let Some((url, from)) = &proxy {
            // Without its password.
            let shown = if url == "none" { url.clone() } else { url.parse::<Proxy>()?.to_string() };
            note("proxy", shown, from);
        }
        let builder = Client::builder()
            .server(server.clone())
            .credentials(credentials)
            .keep_trying(!server.is_default())
            .dialect(dialect)
            .proxies(proxies);
        let ca_path = global.ca_file.as_ref().map(|path| (path.display().to_string(), "--ca-file".to_owned()));
        let ca_path = ca_path.or_else(|| variables.find("RETUNNEL_CA_FILE"));
        let ca_file = match &ca_path {
            Some((path, _)) => {
                Some(std::fs::read(path).map_err(|error| Usage(format!("cannot read the CA file {path}: {error}")))?)
            }
            None => None,
        };
        if global.insecure {
            note("certificates", "not verified".into(), "--insecure or RETUNNEL_INSECURE");
        } else if let Some((path, from)) = &ca_path {
            note("authorities", path.clone(), from);
        }
        let builder = match (ca_file, ca_path) {
            _ if global.insecure => builder.insecure(true),
            (Some(pem), Some((path, _))) => {
                builder.extra_roots(&pem).map_err(|error| Usage(format!("{path}: {error}")))?
            }
            _ => builder,
        };
        Ok(Self { builder, server, path, sources })
    }
}
