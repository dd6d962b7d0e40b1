//! Environment variables, and `.env` as a second source of some of them.

use std::{fs, io};

use anyhow::Result;
use retunnel_config::Dotenv;

use crate::exit::Usage;

/// What `.env` may set: the working directory may belong to somebody else, whose file must not decide which certificates are
/// trusted, how the server is reached, which files are written or who can reach the inspector. It may name a server together
/// with a token for it ([`crate::settings`]).
const IN_DOTENV: [&str; 9] = [
    SERVER,
    TOKEN,
    "RETUNNEL_BASIC_AUTH",
    "RETUNNEL_DIALECT",
    "RETUNNEL_INSPECT_MASK",
    "RETUNNEL_LOG_LEVEL",
    "RETUNNEL_NO_INSPECT",
    "RETUNNEL_NO_UI",
    "RETUNNEL_QUIET",
];
/// The server to connect to.
pub(crate) const SERVER: &str = "RETUNNEL_SERVER_ENDPOINT";
/// The account's token.
pub(crate) const TOKEN: &str = "RETUNNEL_AUTH_TOKEN";

/// Environment variables, then those in the file `.env` of the working directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables {
    dotenv: Dotenv,
    /// Why `.env` is not read, although it exists.
    unreadable: Option<String>,
}

impl Variables {
    /// Reads `.env` if it exists.
    pub(crate) fn load() -> Self {
        match fs::read(".env") {
            Ok(bytes) => Self { dotenv: Dotenv::parse(&bytes), unreadable: None },
            // Virtual environments of Python are often directories of this name.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
                Self::default()
            }
            Err(error) => Self { unreadable: Some(error.to_string()), ..Self::default() },
        }
    }

    /// Variables of this program that `.env` sets and may not set, and why the file cannot be read.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let is_ours = |name: &&str| self.dotenv.value(name).is_some_and(|value| !value.is_empty());
        let ignored = NOT_IN_DOTENV.into_iter().filter(is_ours).map(|name| {
            format!("{name} in .env is ignored: a file of the working directory may not set it; use an option or the environment")
        });
        self.unreadable.iter().map(|reason| format!(".env is ignored: {reason}")).chain(ignored).collect()
    }

    /// An error if a variable in `.env` that this program reads has an unclear value. The text does not show the value.
    pub(crate) fn check(&self) -> Result<()> {
        match self
            .dotenv
            .unclear()
            .iter()
            .find(|name| IN_DOTENV.contains(&name.as_str()) && std::env::var_os(name).is_none())
        {
            Some(name) => Err(Usage(format!("cannot read .env: the value of {name} needs quotes")).into()),
            None => Ok(()),
        }
    }

    /// The value of a variable that controls access. Set but empty is an error: it must not disable the protection.
    pub(crate) fn security_value(&self, name: &str) -> Result<Option<String>> {
        match std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).or_else(|| self.in_dotenv(name))
        {
            Some(value) if value.trim().is_empty() => {
                Err(Usage(format!("{name} is set but empty; give it a value or unset it")).into())
            }
            value => Ok(value),
        }
    }

    /// The value of a variable that is set and not empty, and its source.
    pub(crate) fn find(&self, name: &str) -> Option<(String, String)> {
        // A variable that is set but empty hides the file's.
        if std::env::var_os(name).is_some() {
            return Some((environment(name)?, name.to_owned()));
        }
        Some((self.in_dotenv(name).filter(|value| !value.is_empty())?, format!("{name} in .env")))
    }

    /// The value of a variable that is set and not empty.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.find(name).map(|(value, _)| value)
    }

    /// The value of a variable with which a tunnels file is completed: any that is set.
    pub(crate) fn for_tunnels_file(&self, name: &str) -> Option<String> {
        if std::env::var_os(name).is_some() {
            return environment(name);
        }
        self.dotenv.value(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// Whether a variable is on.
    pub(crate) fn is_on(&self, name: &str) -> Result<bool> {
        match self.find(name) {
            Some((value, from)) => Ok(boolean(&value).map_err(|reason| Usage(format!("{from}: {reason}")))?),
            None => Ok(false),
        }
    }

    /// The value in `.env` of a variable that the file may set.
    pub(crate) fn in_dotenv(&self, name: &str) -> Option<String> {
        self.dotenv.value(name).filter(|_| IN_DOTENV.contains(&name)).map(str::to_owned)
    }
}

/// The variables that are read and that `.env` may not set, to say so.
const NOT_IN_DOTENV: [&str; 20] = [
    "RETUNNEL_CA_FILE",
    "RETUNNEL_INSECURE",
    "RETUNNEL_INSPECT_ADDR",
    "RETUNNEL_INSPECT_HOST",
    "RETUNNEL_LOG_FILE",
    "RETUNNEL_PROXY",
    "RETUNNEL_SERVER_ACCESS_LOG",
    "RETUNNEL_SERVER_CONFIG",
    "RETUNNEL_SERVER_DATA_DIR",
    "RETUNNEL_SERVER_DNS_RESOLVER",
    "RETUNNEL_SERVER_DOMAIN",
    "RETUNNEL_SERVER_GRACE_PERIOD",
    "RETUNNEL_SERVER_LISTEN",
    "RETUNNEL_SERVER_LOG_FORMAT",
    "RETUNNEL_SERVER_PUBLIC_URL",
    "RETUNNEL_SERVER_REGISTRATION",
    "RETUNNEL_SERVER_TCP_PORTS",
    "RETUNNEL_SERVER_TLS_CERT",
    "RETUNNEL_SERVER_TLS_KEY",
    "RETUNNEL_SERVER_TRUSTED_PROXIES",
];

/// The value of a variable of the environment that is set and not empty.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads a value that is on or off. Empty is off, as if it were not set.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("expected 1, true, yes or on; or 0, false, no or off (got `{text}`)")),
    }
}

/// Gives options with an environment variable the value in `.env` as their default, so that `.env` works wherever the
/// environment does, with lower precedence.
pub(crate) fn with_dotenv(command: clap::Command, variables: &Variables) -> clap::Command {
    // Empty means unset here; `security_value` rejects it where it controls access.
    let value = |argument: &clap::Arg| {
        let name = argument.get_env()?.to_str()?;
        variables.in_dotenv(name).filter(|value| !value.is_empty() && std::env::var_os(name).is_none())
    };
    command
        .mut_args(|argument| match value(&argument) {
            Some(value) => argument.default_value(value),
            None => argument,
        })
        .mut_subcommands(|command| with_dotenv(command, variables))
}
