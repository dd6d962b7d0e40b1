//! `~/.retunnel.conf`: a JSON object with mode 0600. It is replaced atomically, keeps unknown keys, and is never
//! overwritten while it cannot be parsed.
//!
//! A token belongs to one server. The published clients know only one token, `auth_token`, and no server for it. It belongs
//! to `server_url` if the file has that; otherwise the first server that accepts it keeps it, and a server gets it only if
//! the user names that server ([`ConfigFile::token`]).

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use retunnel_client::{ServerEndpoint, Token};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::text;

/// Largest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;
/// Name of the file in the home directory.
pub const FILE_NAME: &str = ".retunnel.conf";
/// Tokens by server, in addition to the single `auth_token` of the published clients.
const TOKENS: &str = "tokens";
const AUTH_TOKEN: &str = "auth_token";
/// Whether `auth_token` was saved after those in `tokens`, and no server has accepted it yet.
const IS_NEWER: &str = "auth_token_is_newer";
/// What else is known about servers.
const SERVERS: &str = "servers";
/// Whether the client registered the account by itself.
const REGISTERED: &str = "registered";
const DIALECT: &str = "dialect";

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

/// A saved token and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedToken {
    /// The user saved it for this server.
    Chosen(Token),
    /// The client registered the account with this server by itself.
    Registered(Token),
    /// The user saved it without a server, and no server has accepted it yet.
    Unbound(Token),
}

impl SavedToken {
    /// The token itself.
    #[must_use]
    pub fn into_token(self) -> Token {
        match self {
            Self::Chosen(token) | Self::Registered(token) | Self::Unbound(token) => token,
        }
    }
}

/// Held while an account is registered, so that programs that start together share one. The system releases it when the process
/// ends.
#[derive(Debug)]
pub struct RegistrationLock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] fs::File);

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
        let text = match text::read(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                return Err(ConfigError::Invalid { path, reason: source.to_string() });
            }
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

    /// The token to use with a server. One that was saved without a server is used only if the user named this server, not
    /// a file that may come from somebody else.
    #[must_use]
    pub fn token(&self, server: &ServerEndpoint, is_named_by_user: bool) -> Option<SavedToken> {
        let bound = self.token_for(server);
        let is_newer = self.keys.get(IS_NEWER).is_some_and(|value| *value == Value::Bool(true));
        let unbound = self.unbound(server).filter(|_| is_named_by_user && (bound.is_none() || is_newer));
        unbound.map(SavedToken::Unbound).or(bound)
    }

    /// The token that was saved for this very server.
    #[must_use]
    pub fn token_for(&self, server: &ServerEndpoint) -> Option<SavedToken> {
        let token = Token::new(self.keys.get(TOKENS)?.get(server.to_string())?.as_str()?);
        let is_registered = self.about(server, REGISTERED).is_some_and(|value| *value == Value::Bool(true));
        Some(if is_registered { SavedToken::Registered(token) } else { SavedToken::Chosen(token) })
    }

    /// `auth_token` as long as it can be this server's, and no server has accepted it yet.
    fn unbound(&self, server: &ServerEndpoint) -> Option<Token> {
        let token = self.text(AUTH_TOKEN)?;
        let is_bound = self
            .keys
            .get(TOKENS)
            .and_then(Value::as_object)
            .is_some_and(|all| all.values().any(|other| *other == token));
        let is_for_another = self
            .server_url()
            .is_some_and(|url| url.parse().is_ok_and(|named: ServerEndpoint| named.to_string() != server.to_string()));
        (!is_bound && !is_for_another).then(|| Token::new(token))
    }

    /// Whether there is a token whose server is not known.
    #[must_use]
    pub fn has_unbound(&self, server: &ServerEndpoint) -> bool {
        self.unbound(server).is_some()
    }

    /// The published dialect that this server speaks.
    #[must_use]
    pub fn dialect(&self, server: &ServerEndpoint) -> Option<&str> {
        self.about(server, DIALECT)?.as_str()
    }

    fn about(&self, server: &ServerEndpoint, key: &str) -> Option<&Value> {
        self.keys.get(SERVERS)?.get(server.to_string())?.get(key)
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

    /// Saves a token that the user gave without a server, keeping everything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_auth_token(path: impl Into<PathBuf>, token: &Token) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            keys.insert(AUTH_TOKEN.into(), token.expose().into());
            // The published clients write nothing else, and the oldest of them read nothing else.
            if keys.contains_key(TOKENS) {
                keys.insert(IS_NEWER.into(), true.into());
            }
        })
    }

    /// Saves a token that the user gave for one server, keeping everything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_token_for(path: impl Into<PathBuf>, server: &ServerEndpoint, token: &Token) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            keys.remove(IS_NEWER);
            object(keys, TOKENS).insert(server.to_string(), token.expose().into());
            object(object(keys, SERVERS), &server.to_string()).remove(REGISTERED);
        })
    }

    /// Saves the token of an account that the client registered by itself, keeping everything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_registered(
        path: impl Into<PathBuf>,
        server: &ServerEndpoint,
        token: &Token,
    ) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            object(keys, TOKENS).insert(server.to_string(), token.expose().into());
            object(object(keys, SERVERS), &server.to_string()).insert(REGISTERED.into(), true.into());
        })
    }

    /// Remembers the published dialect that a server speaks.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn save_dialect(path: impl Into<PathBuf>, server: &ServerEndpoint, dialect: &str) -> Result<(), ConfigError> {
        Self::update(path.into(), |keys| {
            object(object(keys, SERVERS), &server.to_string()).insert(DIALECT.into(), dialect.into());
        })
    }

    /// Waits until no other process registers an account.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock_registration(path: &Path) -> io::Result<RegistrationLock> {
        // Not the lock of changes: registering may take seconds, and saving a token must not wait for it.
        lock(path, "conf.registering").map(RegistrationLock)
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
        let _lock = lock(&path, "conf.lock").map_err(|source| failed(&path, source))?;
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

/// The object of a key. Something else there is replaced.
fn object<'a>(keys: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = keys.entry(key).or_insert_with(|| Map::new().into());
    if !value.is_object() {
        *value = Map::new().into();
    }
    value.as_object_mut().expect("it was made one")
}

/// Held while the file is changed. The system releases it when the process ends.
fn lock(path: &Path, extension: &str) -> io::Result<fs::File> {
    let file = private_options().create(true).truncate(false).open(path.with_extension(extension))?;
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
        ConfigFile::save_token_for(&path, &server("a.test:1"), &Token::new("rt_for_a_server_x")).expect("saved");
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.keys["future"]["a"], 1);
        assert_eq!(read.keys["auth_token"], "rt_0123456789abcdef");
        assert_eq!(read.token_for(&server("a.test:1")), Some(SavedToken::Chosen(Token::new("rt_for_a_server_x"))));
        assert_eq!(read.token_for(&server("http://a.test:1")), None, "without TLS it is another server");
        assert_eq!(read.token_for(&server("b.test:1")), None);
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

    fn server(text: &str) -> ServerEndpoint {
        text.parse().expect("a server")
    }

    #[test]
    fn what_the_user_saved_last_for_a_server_counts() {
        let (_directory, path) = file();
        let (a, b) = (server("a.test"), server("localhost:1"));
        let token = |name: &str| Token::new(name);
        let read = || ConfigFile::read(&path).expect("valid");
        // Without a server it is for the server that the user names first, and no file can name it.
        ConfigFile::save_auth_token(&path, &token("first")).expect("saved");
        assert_eq!(read().token(&a, true), Some(SavedToken::Unbound(token("first"))));
        assert_eq!(read().token(&a, false), None);
        ConfigFile::save_token_for(&path, &a, &token("first")).expect("accepted there");
        assert_eq!(read().token(&a, false), Some(SavedToken::Chosen(token("first"))));
        assert_eq!(read().token(&b, true), None, "it belongs to the other server");
        // An account that was registered by itself is replaced by what the user saves.
        ConfigFile::save_registered(&path, &b, &token("anonymous")).expect("saved");
        assert_eq!(read().token(&b, true), Some(SavedToken::Registered(token("anonymous"))));
        ConfigFile::save_auth_token(&path, &token("second")).expect("saved");
        assert_eq!(read().token(&b, true), Some(SavedToken::Unbound(token("second"))));
        assert_eq!(read().token(&b, false), Some(SavedToken::Registered(token("anonymous"))));
        ConfigFile::save_token_for(&path, &b, &token("second")).expect("accepted there");
        assert_eq!(read().token(&b, true), Some(SavedToken::Chosen(token("second"))));
        assert_eq!(read().token(&a, true), Some(SavedToken::Chosen(token("first"))));
    }

    #[test]
    fn a_token_of_the_published_clients_belongs_to_their_server() {
        let (_directory, path) = file();
        let text = r#"{"auth_token": "rt_x", "server_url": "wss://a.test", "api_url": "https://a.test"}"#;
        fs::write(&path, text).expect("written");
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.token(&server("https://a.test"), true), Some(SavedToken::Unbound(Token::new("rt_x"))));
        assert_eq!(read.token(&server("http://a.test:443"), true), None);
        assert_eq!(read.token(&server("b.test"), true), None);
        // It is newer than nothing: what this program saved for a server stays.
        ConfigFile::save_registered(&path, &server("a.test"), &Token::new("rt_y")).expect("saved");
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.token(&server("a.test"), true), Some(SavedToken::Registered(Token::new("rt_y"))));
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
                        ConfigFile::save_registered(
                            path,
                            &server(&format!("s{writer}:{}", n + 1)),
                            &Token::new("rt_x"),
                        )
                        .expect("saved");
                    }
                });
            }
        });
        let read = ConfigFile::read(&path).expect("valid");
        assert_eq!(read.keys[TOKENS].as_object().expect("an object").len(), 40);
    }
}
