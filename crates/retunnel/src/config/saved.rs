//! `~/.retunnel.conf`: a JSON object with mode 0600. It is replaced atomically, keeps unknown keys, and is never
//! overwritten while it cannot be parsed.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use retunnel_client::Token;
use serde_json::{Map, Value};
use thiserror::Error;

/// Name of the file in the home directory.
pub const FILE_NAME: &str = ".retunnel.conf";
/// Tokens by server, in addition to the single `auth_token` of the published clients.
const TOKENS: &str = "tokens";
const AUTH_TOKEN: &str = "auth_token";

/// Why a configuration file cannot be used.
#[doc(alias = "ConfigurationError")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What failed: `read`, `write`, `move` or `protect`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's text is not valid. The file is not changed.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
}

/// The contents of the file.
#[doc(alias = "ConfigManager")]
#[doc(alias = "config_manager")]
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    keys: Map<String, Value>,
    exists: bool,
}

impl ConfigFile {
    /// Reads the file; a missing one is empty.
    ///
    /// # Errors
    /// [`ConfigError`]; the file is not changed.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let path = path.into();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, keys: Map::new(), exists: false });
            }
            Err(source) => return Err(ConfigError::Io { action: "read", path, source }),
        };
        match serde_json::from_str(&text) {
            Ok(Value::Object(keys)) => Ok(Self { path, keys, exists: true }),
            Ok(_) => Err(ConfigError::Invalid { path, reason: "expected a JSON object".into() }),
            Err(error) => Err(ConfigError::Invalid { path, reason: format!("not valid JSON: {error}") }),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file exists.
    #[must_use]
    pub const fn exists(&self) -> bool {
        self.exists
    }

    /// The token saved for this server.
    #[must_use]
    pub fn token_for(&self, server: &str) -> Option<Token> {
        self.keys.get(TOKENS)?.get(server)?.as_str().map(Token::new)
    }

    /// The token saved for any server (`retunnel authtoken`).
    #[must_use]
    pub fn auth_token(&self) -> Option<Token> {
        self.text(AUTH_TOKEN).map(Token::new)
    }

    /// The server saved by the user. The published clients' default counts as none.
    #[must_use]
    pub fn server_url(&self) -> Option<&str> {
        self.text("server_url").filter(|url| *url != "wss://retunnel.net")
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// Every key with its value, tokens masked.
    #[must_use]
    pub fn shown(&self) -> Value {
        let mask = |value: &Value| value.as_str().map_or(Value::Null, |text| Token::new(text).masked().into());
        let mut shown = self.keys.clone();
        for (key, value) in &mut shown {
            if key == AUTH_TOKEN {
                *value = mask(value);
            } else if let (TOKENS, Value::Object(tokens)) = (key.as_str(), &mut *value) {
                tokens.values_mut().for_each(|token| *token = mask(token));
            }
        }
        Value::Object(shown)
    }

    /// Saves the token for any server, keeping everything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_auth_token(path: impl Into<PathBuf>, token: &Token) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            keys.insert(AUTH_TOKEN.into(), token.expose().into());
        })
    }

    /// Saves the token for one server, keeping everything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_token_for(path: impl Into<PathBuf>, server: &str, token: &Token) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            let tokens = keys.entry(TOKENS).or_insert_with(|| Value::Object(Map::new()));
            if !tokens.is_object() {
                *tokens = Value::Object(Map::new());
            }
            tokens[server] = token.expose().into();
        })
    }

    /// Renames a file that cannot be parsed and returns its new path.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn set_aside(path: &Path) -> Result<PathBuf, ConfigError> {
        let failed = |source| ConfigError::Io { action: "move", path: path.into(), source };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut kept = path.as_os_str().to_owned();
        kept.push(format!(".corrupt-{seconds}"));
        fs::rename(path, &kept).map_err(failed)?;
        Ok(kept.into())
    }

    /// Reads, changes and replaces the file under a lock against our other processes.
    fn update(path: PathBuf, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), ConfigError> {
        let failed = |path: &Path, source| ConfigError::Io { action: "write", path: path.into(), source };
        // A symbolic link is followed, so that it is not replaced by a file.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let _lock = lock(&path).map_err(|source| failed(&path, source))?;
        let mut file = Self::read(&path)?;
        change(&mut file.keys);
        let text = format!("{:#}\n", Value::Object(file.keys));
        replace(&path, text.as_bytes()).map_err(|source| failed(&path, source))
    }

    /// Removes other users' access to the file. Returns whether they had any.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn make_private(&self) -> Result<bool, ConfigError> {
        #[cfg(unix)]
        if self.exists {
            use std::os::unix::fs::PermissionsExt;
            let failed = |source| ConfigError::Io { action: "protect", path: self.path.clone(), source };
            let mode = fs::metadata(&self.path).map_err(failed)?.permissions().mode();
            if mode & 0o077 != 0 {
                fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn private_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Held while the file is changed. The system releases it when the process ends.
fn lock(path: &Path) -> io::Result<fs::File> {
    let file = private_options().create(true).truncate(false).open(path.with_extension("conf.lock"))?;
    file.lock()?;
    Ok(file)
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".retunnel.conf.{}", retunnel_proto::random_text(10)));
    let written = (|| {
        let mut file = private_options().create_new(true).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE_NAME);
        (directory, path)
    }

    #[test]
    fn unknown_keys_are_kept_and_tokens_are_private() {
        let (_directory, path) = file();
        fs::write(&path, r#"{"future": {"a": 1}, "auth_token": null}"#).expect("written");
        ConfigFile::save_auth_token(&path, &Token::new("rt_0123456789abcdef")).expect("saved");
        ConfigFile::save_token_for(&path, "a.test:1", &Token::new("rt_for_a_server_x")).expect("saved");
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.keys["future"]["a"], 1);
        assert_eq!(read.auth_token(), Some(Token::new("rt_0123456789abcdef")));
        assert_eq!(read.token_for("a.test:1"), Some(Token::new("rt_for_a_server_x")));
        assert_eq!(read.token_for("b.test:1"), None);
        let shown = read.shown().to_string();
        assert!(shown.contains("****cdef") && !shown.contains("rt_"), "{shown}");
        assert_eq!(
            fs::read_dir(path.parent().expect("a parent")).expect("readable").count(),
            2,
            "the file and its lock"
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = || fs::metadata(&path).expect("exists").permissions().mode() & 0o777;
            assert_eq!(mode(), 0o600);
            assert!(!read.make_private().expect("possible"));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("possible");
            assert!(read.make_private().expect("possible"));
            assert_eq!(mode(), 0o600);
        }
    }

    #[test]
    fn row_46_an_unreadable_file_is_an_error_and_stays() {
        let (_directory, path) = file();
        for text in ["", "{", "[1]", "{\"auth_token\": \"rt_"] {
            fs::write(&path, text).expect("written");
            assert!(ConfigFile::read(&path).is_err(), "{text}");
            assert!(ConfigFile::save_auth_token(&path, &Token::new("rt_new")).is_err(), "{text}");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
        fs::remove_file(&path).expect("removed");
        assert!(!ConfigFile::read(&path).expect("empty").exists());
        assert!(!path.exists(), "reading makes no file");
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_stays_one() {
        let (directory, path) = file();
        let real = directory.path().join("real.conf");
        fs::write(&real, "{}").expect("written");
        std::os::unix::fs::symlink(&real, &path).expect("linked");
        ConfigFile::save_auth_token(&path, &Token::new("rt_x")).expect("saved");
        assert!(fs::symlink_metadata(&path).expect("there").is_symlink());
        assert!(fs::read_to_string(&real).expect("there").contains("rt_x"));
    }

    #[test]
    fn two_writers_lose_nothing() {
        let (_directory, path) = file();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for n in 0..10 {
                        ConfigFile::save_token_for(path, &format!("{writer}:{n}"), &Token::new("rt_x")).expect("saved");
                    }
                });
            }
        });
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.keys[TOKENS].as_object().expect("an object").len(), 40);
    }
}
