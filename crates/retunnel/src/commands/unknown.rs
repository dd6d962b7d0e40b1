//! Words that people try as commands, because other tunnels have them or because they forgot `http`.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use retunnel_client::LocalTarget;

/// Adds what to do instead to the error about an unknown command.
pub(crate) fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
        && let Some(tip) = tip(word)
    {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        // A similar word is no better advice.
        error.remove(ContextKind::SuggestedSubcommand);
    }
    error
}

fn tip(word: &str) -> Option<String> {
    let text = match word {
        "list" | "ls" | "tunnels" | "status" | "ps" => {
            "tunnels live as long as the command that opened them; its inspector lists them at http://127.0.0.1:4040, \
             and `retunnel diagnose` checks the connection to the server"
        }
        "login" | "signup" | "signin" | "auth" | "add-authtoken" => {
            "`retunnel register` creates an account, with `--invite CODE` where the server requires it; \
             `retunnel authtoken` saves the token of an account that you have"
        }
        "logout" => "tokens are in the file that `retunnel config --path` prints",
        "udp" => "UDP is not supported; `retunnel http` and `retunnel tcp` are",
        "https" | "tls" => "use `retunnel http`; with a server that uses TLS the public address is https://",
        "up" | "run" => "`retunnel start` opens the tunnels of retunnel.yml",
        "serve" => "`retunnel server` runs a server; `retunnel http PORT` publishes a local service",
        _ if word.parse::<LocalTarget>().is_ok() => {
            return Some(format!(
                "to publish a local service, use `retunnel http {word}`, or `retunnel tcp {word}` without HTTP"
            ));
        }
        _ => return None,
    };
    Some(text.to_owned())
}
