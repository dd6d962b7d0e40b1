//! Resolves settings: option, then environment, then `.env`, then tunnels file, then `~/.retunnel.conf`, then default.
//!
//! `.env` and a tunnels file may come from somebody else. They may name a server, but a token that the user saved goes only to
//! the server that it was saved for ([`ConfigFile::token`]), and `.env` names a server only if there is a token for it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use retunnel_client::{Client, ClientBuilder, Credentials, Dialect, Origin, Proxies, Proxy, ServerEndpoint, Token};
use retunnel_config::{ConfigFile, SavedToken, saved::FILE_NAME};

use crate::{
    accounts::SavedAccount,
    args::{Connection, Global},
    exit::Usage,
    output::Output,
    variables::{self, Variables, environment},
};

/// The proxies from option or environment. `none` disables them, even if the environment has some.
fn proxies(named: Option<&str>) -> Result<Proxies> {
    match named {
        Some("none") => Ok(Proxies::default()),
        Some(url) => Ok(Proxies::all(url.parse()?)),
        None => Ok(Proxies::from_variables(environment)?),
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

/// The client's settings from all sources.
pub(crate) struct Settings {
    pub(crate) builder: ClientBuilder,
    pub(crate) identity: Identity,
    /// The sources of the values.
    pub(crate) sources: Vec<Source>,
}

/// The server and the account, for the output, and what is to be saved once the server has accepted the token.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) server: ServerEndpoint,
    /// Where the server's name comes from.
    pub(crate) server_from: String,
    /// Where the token comes from; `None` if an account is registered.
    pub(crate) token: Option<(Token, String)>,
    /// Where accounts are saved; `None` if nothing is.
    pub(crate) saved: Option<SavedAccount>,
    /// The token belongs to no server yet: it is saved for the first one that accepts it.
    pub(crate) is_unbound: bool,
    /// The user chose the dialect, so that it is remembered.
    pub(crate) has_chosen_dialect: bool,
}

/// The server that is used, and how its name was found.
struct Named {
    server: ServerEndpoint,
    from: String,
    /// Named by an option, the environment or the saved configuration, not by a file of the working directory.
    is_by_user: bool,
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
        let in_tunnels = |text: Option<&str>| Some((text?.to_owned(), tunnels_file.shown()));
        let mut sources = Vec::new();
        let mut note =
            |setting, value: String, from: &str| sources.push(Source { setting, value, from: from.to_owned() });

        let named = named_server(connection, variables, tunnels_file, &file, output)?;
        let server = named.server.clone();
        note("server", server.to_string(), &named.from);

        let given = match &connection.token {
            Some(token) => Some((token.clone(), "--token".to_owned())),
            None => variables
                .security_value(variables::TOKEN)?
                .and_then(|_| variables.find(variables::TOKEN))
                .filter(|(_, from)| !is_dotenv(from) || is_server_of_dotenv(&server, variables))
                .or_else(|| in_tunnels(tunnels_file.token.filter(|token| !token.is_empty()))),
        };
        if let Some((token, from)) = &given {
            check_token(token, from)?;
        }
        let saved = |credentials: Credentials, what: &str| (credentials, format!("{shown}, {what}"));
        let mut is_unbound = false;
        let (credentials, from) = match given {
            // Where a token is saved for the server, it has been seen before.
            Some((token, from)) if file.token_for(&server).is_some() => {
                (Credentials::Saved { token: Token::new(token), origin: Origin::Chosen }, from)
            }
            Some((token, from)) => (Credentials::Token(Token::new(token)), from),
            None => match file.token(&server, named.is_by_user) {
                Some(SavedToken::Chosen(token)) => {
                    saved(Credentials::Saved { token, origin: Origin::Chosen }, "saved for this server")
                }
                Some(SavedToken::Registered(token)) => saved(
                    Credentials::Saved { token, origin: Origin::Registered },
                    "saved for this server, registered by this program",
                ),
                Some(SavedToken::Unbound(token)) => {
                    is_unbound = true;
                    saved(Credentials::Token(token), "saved without a server")
                }
                None => {
                    if !named.is_by_user && file.has_unbound(&server) {
                        output.warning(&format!(
                            "the token in {shown} is not used: {} names the server, and the token was not saved for it; \
                             `retunnel authtoken --server {server}` saves one",
                            named.from
                        ));
                    }
                    (Credentials::Register, String::new())
                }
            },
        };
        let token = credentials.token().map(|token| (token.clone(), from));
        match &token {
            Some((token, from)) => note("token", token.masked(), from),
            None => note("token", "none".into(), &format!("not set in an option, a variable or {shown}")),
        }
        if !server.is_tls() && !server.is_loopback() {
            output.warning(&format!(
                "the connection to {server} is not encrypted: others on the way can read the token and all traffic; \
                 use https:// if the server supports it"
            ));
        }

        let named_dialect = connection
            .dialect
            .as_ref()
            .map(|name| (name.clone(), "--dialect".to_owned()))
            // What `.env` says about a server is worth nothing for another one.
            .or_else(|| {
                variables.find("RETUNNEL_DIALECT").filter(|(_, from)| !is_dotenv(from) || is_dotenv(&named.from))
            })
            .or_else(|| in_tunnels(tunnels_file.dialect));
        let dialect = match &named_dialect {
            Some((name, _)) if name != "auto" => Some(name.parse()?),
            _ => None,
        };
        let remembered: Option<Dialect> = file.dialect(&server).and_then(|name| name.parse().ok());
        let has_chosen_dialect =
            named_dialect.as_ref().is_some_and(|(_, from)| from == "--dialect" || from == "RETUNNEL_DIALECT");
        match (named_dialect, remembered) {
            (Some((name, from)), _) => note("dialect", name, &from),
            (None, Some(older)) => note("dialect", format!("native or {older}"), &format!("{shown}, used before")),
            (None, None) => note("dialect", "native".into(), "default"),
        }

        let proxy = global.proxy.clone().map(|url| (url, "--proxy".to_owned()));
        let proxy = proxy.or_else(|| variables.find("RETUNNEL_PROXY"));
        let proxies = proxies(proxy.as_ref().map(|(url, _)| url.as_str()))?;
        if let Some((url, from)) = &proxy {
            // Without its password.
            let shown = if url == "none" { url.clone() } else { url.parse::<Proxy>()?.to_string() };
            note("proxy", shown, from);
        }
        let account = SavedAccount { path, server: server.clone() };
        let builder = Client::builder()
            .server(server.clone())
            .credentials(credentials)
            .accounts(Arc::new(account.clone()))
            .keep_trying(!server.is_default())
            .dialect(dialect)
            .older_dialect(remembered)
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
        let identity =
            Identity { server, server_from: named.from, token, saved: Some(account), is_unbound, has_chosen_dialect };
        Ok(Self { builder, identity, sources })
    }

    /// Uses an invitation when an account is registered.
    pub(crate) fn invite(mut self, code: Option<&String>, output: Output) -> Self {
        if let (Some(_), Some((_, from))) = (code, &self.identity.token) {
            output.warning(&format!("the invitation is not used: there is an account already ({from})"));
        }
        self.builder = self.builder.invite(code.cloned());
        self
    }
}

impl Identity {
    /// Without an account, and without a file to save one in.
    #[cfg(feature = "server")]
    pub(crate) fn unsaved(server: ServerEndpoint) -> Self {
        Self {
            server,
            server_from: String::new(),
            token: None,
            saved: None,
            is_unbound: false,
            has_chosen_dialect: false,
        }
    }
}

impl FromFile<'_> {
    fn shown(&self) -> String {
        self.path.map_or_else(|| "retunnel.yml".into(), |path| path.display().to_string())
    }
}

fn is_dotenv(from: &str) -> bool {
    from.ends_with(" in .env")
}

/// Whether the token in `.env` is for this server: the file names it, or none.
fn is_server_of_dotenv(server: &ServerEndpoint, variables: &Variables) -> bool {
    let named = variables.in_dotenv(variables::SERVER).filter(|text| !text.is_empty());
    named.is_none_or(|text| text.parse().is_ok_and(|named: ServerEndpoint| named.to_string() == server.to_string()))
}

/// A token that cannot be one is an error before it is sent anywhere.
pub(crate) fn check_token(token: &str, from: &str) -> Result<(), Usage> {
    let token = token.trim();
    if token.is_empty() {
        return Err(Usage(format!("{from} is empty")));
    }
    if token.starts_with(INVITATION) {
        return Err(Usage(format!(
            "{from} is an invitation, not a token; it creates an account and saves its token: retunnel register --invite {token}"
        )));
    }
    Ok(())
}

/// What the codes of invitations begin with.
const INVITATION: &str = "inv_";

/// The server from the first source that names one.
fn named_server(
    connection: &Connection,
    variables: &Variables,
    tunnels_file: FromFile<'_>,
    file: &ConfigFile,
    output: Output,
) -> Result<Named> {
    let by_user =
        |text: &str, from: String| -> Result<Named> { Ok(Named { server: text.parse()?, from, is_by_user: true }) };
    if let Some(text) = &connection.server {
        return by_user(text, "--server".into());
    }
    if let Some(text) = environment(variables::SERVER) {
        return by_user(&text, variables::SERVER.into());
    }
    let own = match file.server_url() {
        Some(text) => by_user(text, file.path().display().to_string())?,
        None => Named { server: ServerEndpoint::default(), from: "default".into(), is_by_user: true },
    };
    let by_directory = |text: &str, from: String| -> Result<Named> {
        let server: ServerEndpoint = text.parse()?;
        // A file that names the user's own server changes nothing.
        let is_by_user = server.to_string() == own.server.to_string();
        Ok(Named { server, from, is_by_user })
    };
    if let Some((text, from)) = variables.find(variables::SERVER).filter(|(_, from)| is_dotenv(from)) {
        let named = by_directory(&text, from)?;
        let is_token_of_user = connection.token.is_some() || environment(variables::TOKEN).is_some();
        let has_token = variables.value(variables::TOKEN).is_some() && !is_token_of_user;
        if named.is_by_user || has_token || (!is_token_of_user && file.token_for(&named.server).is_some()) {
            output.notice(&format!("{} names the server {}", named.from, named.server));
            return Ok(named);
        }
        output.warning(&format!(
            "{} is ignored: the file names {} without a token for it; add RETUNNEL_AUTH_TOKEN to the file, or use --server",
            named.from, named.server
        ));
    }
    match tunnels_file.server {
        Some(text) => by_directory(text, tunnels_file.shown()),
        None => Ok(own),
    }
}
