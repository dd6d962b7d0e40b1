//! `retunnel authtoken`: saves the account token.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use crossterm::{
    event::{self, Event, KeyCode, KeyModifiers},
    terminal,
};
use retunnel_client::{ServerEndpoint, Token};
use retunnel_config::{ConfigError, ConfigFile};

use crate::{
    args::AuthtokenArgs,
    exit::Usage,
    output::Output,
    settings::{check_token, config_path},
    variables::{self, environment},
};

/// Maximum length of a token.
const MAX_TOKEN: u64 = 4096;

pub(crate) fn run(args: AuthtokenArgs, output: Output) -> Result<()> {
    let server = match args.server.or_else(|| environment(variables::SERVER)) {
        Some(text) => Some(text.parse::<ServerEndpoint>()?),
        None => None,
    };
    let text = match args.token {
        Some(token) => token,
        None if args.stdin || !std::io::stdin().is_terminal() => {
            let mut text = String::new();
            std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text).context("cannot read standard input")?;
            if text.is_empty() && !args.stdin {
                bail!("no token given");
            }
            text
        }
        None => prompt()?,
    };
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(Usage("the token must be one word".into()).into());
    }
    check_token(text, "this")?;
    let path = config_path()?;
    let token = Token::new(text);
    let save = || match &server {
        Some(server) => ConfigFile::save_token_for(&path, server, &token),
        None => ConfigFile::save_auth_token(&path, &token),
    };
    match save() {
        // Saving a token repairs a broken file. The broken one is kept under another name.
        Err(ConfigError::Invalid { reason, .. }) => {
            let kept = ConfigFile::set_aside(&path)?;
            output.warning(&format!("{}: {reason}; renamed to {}", path.display(), kept.display()));
            save()?;
        }
        result => result?,
    }
    if output.json {
        let server = server.map(|server| server.to_string());
        output.json(&serde_json::json!({ "saved": path, "token": token.masked(), "server": server }));
        return Ok(());
    }
    let (masked, path) = (token.masked(), path.display());
    output.status(&match server {
        Some(server) => format!("Token {masked} for {server} saved to {path}"),
        None => format!(
            "Token {masked} saved to {path}, for the first server that you name and that accepts it; `--server` names it now"
        ),
    });
    Ok(())
}

/// Prompts for a line without showing it.
fn prompt() -> Result<String> {
    let mut stderr = std::io::stderr();
    write!(stderr, "Token: ")?;
    stderr.flush()?;
    terminal::enable_raw_mode().context("cannot hide the token on this terminal; use --stdin")?;
    let text = read_hidden();
    terminal::disable_raw_mode()?;
    writeln!(stderr)?;
    text
}

fn read_hidden() -> Result<String> {
    let mut text = String::new();
    loop {
        let Event::Key(key) = event::read()? else { continue };
        if !key.is_press() {
            continue;
        }
        match key.code {
            KeyCode::Enter => return Ok(text),
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => bail!("no token given"),
            KeyCode::Backspace => {
                text.pop();
            }
            KeyCode::Char(character) => text.push(character),
            _ => {}
        }
    }
}
