//! Environment variables, and `.env` as a second source of them.

use std::collections::HashMap;

use anyhow::Result;

use crate::exit::Usage;

/// Environment variables, then those in the file `.env` of the working directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables {
    dotenv: HashMap<String, String>,
}

impl Variables {
    /// Reads `.env` if it exists.
    pub(crate) fn load() -> Result<Self> {
        let unreadable = |reason: String| Usage(format!("cannot read .env: {reason}"));
        let entries = match dotenvy::from_path_iter(".env") {
            Ok(entries) => entries,
            Err(error) if error.not_found() => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error.to_string()).into()),
        };
        let mut dotenv = HashMap::new();
        for entry in entries {
            match entry {
                Ok((name, value)) => drop(dotenv.insert(name, value)),
                // Lines of other programs may have another syntax. The error text would show the value.
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

    /// The value of a variable that controls access. Set but empty is an error: it must not disable the protection.
    pub(crate) fn security_value(&self, name: &str) -> Result<Option<String>> {
        let value = std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        match value.or_else(|| self.dotenv.get(name).cloned()) {
            Some(value) if value.trim().is_empty() => {
                Err(Usage(format!("{name} is set but empty; give it a value or unset it")).into())
            }
            value => Ok(value),
        }
    }

    /// The value of a variable that is set and not empty, and its source.
    pub(crate) fn find(&self, name: &str) -> Option<(String, String)> {
        let from = if std::env::var_os(name).is_some() { name.to_owned() } else { format!("{name} in .env") };
        Some((self.value(name)?, from))
    }

    /// The value of a variable that is set and not empty.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.dotenv.get(name).cloned()).filter(|value| !value.is_empty())
    }
}

/// Gives options with an environment variable the value in `.env` as their default, so that `.env` works wherever the
/// environment does, with lower precedence.
pub(crate) fn with_dotenv(command: clap::Command, variables: Option<&Variables>) -> clap::Command {
    let Some(variables) = variables.filter(|variables| !variables.dotenv.is_empty()) else { return command };
    // Empty means unset here; `security_value` rejects it where it controls access.
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
