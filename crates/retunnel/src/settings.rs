//! Where values come from: flag, then environment, then `.env`, then `~/.retunnel.conf`, then the default.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, Result};
use retunnel_client::{
    Client, ClientBuilder, Proxies, ServerEndpoint, Token,
    config::file::{ConfigFile, FILE_NAME},
};

use crate::{
    args::{Connection, Global},
    exit::Usage,
    inspector,
    output::Output,
};

/// Variables of the environment and, behind them, of the file `.env` in the working directory.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    dotenv: HashMap<String, String>,
}

impl Variables {
    /// Reads `.env` when there is one.
    pub(crate) fn load() -> Result<Self> {
        let unreadable = |reason: String| Usage(format!("the file .env cannot be read: {reason}"));
        let entries = match dotenvy::from_path_iter(".env") {
            Ok(entries) => entries,
            Err(error) if error.not_found() => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error.to_string()).into()),
        };
        let mut dotenv = HashMap::new();
        for entry in entries {
            match entry {
                Ok((name, value)) => drop(dotenv.insert(name, value)),
                // Other programs may write lines of their own kind. The error's text would show the value.
                Err(dotenvy::Error::LineParse(line, _)) if !line.contains("RETUNNEL_") => {}
                Err(dotenvy::Error::LineParse(line, _)) => {
                    let name = line.split('=').next().unwrap_or_default().trim();
                    return Err(unreadable(format!("the value of {name} needs quotes")).into());
                }
                Err(error) => return Err(unreadable(error.to_string()).into()),
            }
        }
        Ok(Self { dotenv })
    }

    /// The value of a variable that decides who gets in. Set but empty is an error: it must not mean "nobody asked".
    pub(crate) fn security_value(&self, name: &str) -> Result<Option<String>> {
        let value = std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        match value.or_else(|| self.dotenv.get(name).cloned()) {
            Some(value) if value.trim().is_empty() => {
                Err(Usage(format!("{name} is set but empty; give it a value or unset it")).into())
            }
            value => Ok(value),
        }
    }

    /// The value of a variable that is set and not empty.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.dotenv.get(name).cloned()).filter(|value| !value.is_empty())
    }
}

/// The proxies that option or environment name. `none` means none, whatever the environment says.
fn proxies(global: &Global, variables: &Variables) -> Result<Proxies> {
    match global.proxy.clone().or_else(|| variables.value("RETUNNEL_PROXY")) {
        Some(none) if none == "none" => Ok(Proxies::default()),
        Some(url) => Ok(Proxies::all(url.parse()?)),
        None => Ok(Proxies::from_variables(|name| variables.value(name))?),
    }
}

fn ca_file(global: &Global, variables: &Variables) -> Result<Option<(String, Vec<u8>)>> {
    let Some(path) = global.ca_file.clone().or_else(|| variables.value("RETUNNEL_CA_FILE").map(PathBuf::from)) else {
        return Ok(None);
    };
    let shown = path.display().to_string();
    let pem = std::fs::read(&path).map_err(|error| Usage(format!("cannot read the CA file {shown}: {error}")))?;
    Ok(Some((shown, pem)))
}

/// Gives options that read a variable of the environment its value in `.env` as their default, so that `.env` counts
/// wherever the environment does, and behind it.
pub(crate) fn with_dotenv(command: clap::Command, variables: Option<&Variables>) -> clap::Command {
    let Some(variables) = variables.filter(|variables| !variables.dotenv.is_empty()) else { return command };
    // An empty one counts as none here; where it decides who gets in, `security_value` refuses it.
    let value = |argument: &clap::Arg| {
        let name = argument.get_env()?.to_str()?;
        variables.dotenv.get(name).filter(|value| !value.is_empty() && std::env::var_os(name).is_none()).cloned()
    };
    command
        .mut_args(|argument| match value(&argument) {
            Some(value) => argument.default_value(value),
            None => argument,
        })
        .mut_subcommands(|command| with_dotenv(command, Some(variables)))
}

/// Where the saved configuration is.
pub(crate) fn config_path() -> Result<PathBuf> {
    let home = etcetera::home_dir().context("this user has no home directory")?;
    Ok(home.join(FILE_NAME))
}

/// What a tunnels file says about the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FromFile<'a> {
    pub(crate) server: Option<&'a str>,
    pub(crate) token: Option<&'a str>,
    pub(crate) dialect: Option<&'a str>,
}

/// A client as all sources together describe it, and where a new token is saved.
pub(crate) struct Settings {
    pub(crate) builder: ClientBuilder,
    pub(crate) server: ServerEndpoint,
    pub(crate) path: PathBuf,
    /// The inspector that is wanted; set by the commands that have one.
    pub(crate) inspector: Option<inspector::Options>,
}

impl Settings {
    /// Puts the sources together.
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
            output.warning(&format!("{} could be read by others; it is private now", path.display()));
        }
        let named = connection
            .server
            .clone()
            .or_else(|| variables.value("RETUNNEL_SERVER_ENDPOINT"))
            .or_else(|| tunnels_file.server.map(str::to_owned))
            .or_else(|| file.server_url().map(str::to_owned));
        let server: ServerEndpoint = match named {
            Some(text) => text.parse()?,
            None => ServerEndpoint::default(),
        };
        let given = match &connection.token {
            Some(token) if token.trim().is_empty() => return Err(Usage("--token is empty".into()).into()),
            Some(token) => Some(token.clone()),
            None => variables.security_value("RETUNNEL_AUTH_TOKEN")?,
        };
        let given = given.or_else(|| tunnels_file.token.filter(|token| !token.is_empty()).map(str::to_owned));
        let given = given.map(Token::new);
        let named = connection
            .dialect
            .clone()
            .or_else(|| variables.value("RETUNNEL_DIALECT"))
            .or_else(|| tunnels_file.dialect.map(str::to_owned));
        let dialect = match named.as_deref() {
            None | Some("auto") => None,
            Some(name) => Some(name.parse()?),
        };
        let saved_here = file.token_for(&server.authority());
        // A saved token may belong to another server, or to an earlier life of this one; then an account is made here.
        // One that was named is used or refused.
        let is_guess = given.is_none();
        let builder = Client::builder()
            .server(server.clone())
            .token(given.or(saved_here).or_else(|| file.auth_token()))
            .replace_refused_token(is_guess)
            .keep_trying(!server.is_default())
            .dialect(dialect)
            .proxies(proxies(global, variables)?);
        let builder = match &ca_file(global, variables)? {
            _ if global.insecure => builder.insecure(true),
            Some((path, pem)) => builder.extra_roots(pem).map_err(|error| Usage(format!("{path}: {error}")))?,
            None => builder,
        };
        Ok(Self { builder, server, path, inspector: None })
    }
}
