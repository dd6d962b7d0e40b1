//! `retunnel authtoken`: saves the account's token.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use crossterm::{
    event::{self, Event, KeyCode, KeyModifiers},
    terminal,
};
use retunnel_client::Token;
use retunnel_config::{ConfigError, ConfigFile};

use crate::{args::AuthtokenArgs, exit::Usage, output::Output, settings::config_path};

/// Longest token that is read.
const MAX_TOKEN: u64 = 4096;

pub(crate) fn run(args: AuthtokenArgs, output: Output) -> Result<()> {
    let text = match args.token {
        Some(token) => token,
        None if args.stdin || !std::io::stdin().is_terminal() => {
            let mut text = String::new();
            std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text).context("cannot read standard input")?;
            if text.is_empty() && !args.stdin {
                bail!("no token was given");
            }
            text
        }
        None => prompt()?,
    };
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(Usage("a token is one word and not empty".into()).into());
    }
    let path = config_path()?;
    let token = Token::new(text);
    match ConfigFile::save_auth_token(&path, &token) {
        // Whoever saves a token wants the file to work again; what was in it stays beside it.
        Err(ConfigError::Invalid { reason, .. }) => {
            let kept = ConfigFile::set_aside(&path)?;
            output.warning(&format!("{}: {reason}; it is now {}", path.display(), kept.display()));
            ConfigFile::save_auth_token(&path, &token)?;
        }
        result => result?,
    }
    if output.json {
        output.json(&serde_json::json!({ "saved": path, "token": token.masked() }));
    } else {
        output.status(&format!("Token {} saved to {}", token.masked(), path.display()));
    }
    Ok(())
}

/// Reads a line from the terminal without showing it.
fn prompt() -> Result<String> {
    let mut stderr = std::io::stderr();
    write!(stderr, "Token: ")?;
    stderr.flush()?;
    terminal::enable_raw_mode().context("the terminal cannot hide the token; use --stdin")?;
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
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => bail!("no token was given"),
            KeyCode::Backspace => {
                text.pop();
            }
            KeyCode::Char(character) => text.push(character),
            _ => {}
        }
    }
}
