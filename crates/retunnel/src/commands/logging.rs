//! Sets up the log.

use std::fs::OpenOptions;

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    args::{Global, LogLevel},
    exit::Usage,
    variables::Variables,
};

/// Starts the log. `quiet_screen`: a live view uses the terminal, so the log goes to a file or nowhere.
pub(crate) fn start(
    global: &Global,
    variables: &Variables,
    default: &str,
    json: bool,
    quiet_screen: bool,
) -> Result<()> {
    let level = match global.log_level {
        Some(LogLevel::Trace) => "trace".to_owned(),
        Some(LogLevel::Debug) => "debug".to_owned(),
        Some(LogLevel::Info) => "info".to_owned(),
        Some(LogLevel::Warn) => "warn".to_owned(),
        Some(LogLevel::Error) => "error".to_owned(),
        None => match variables.value("RETUNNEL_LOG_LEVEL") {
            Some(level) => {
                let known = ["trace", "debug", "info", "warn", "warning", "error"];
                let level = level.to_ascii_lowercase();
                if !known.contains(&level.as_str()) {
                    return Err(Usage(format!("RETUNNEL_LOG_LEVEL: expected one of {known:?} (got `{level}`)")).into());
                }
                if level == "warning" { "warn".into() } else { level }
            }
            None => default.to_owned(),
        },
    };
    // Dependencies log at `trace` only.
    // The access log has its own switch, so a quiet log level must not disable it.
    let filter = match level.as_str() {
        "trace" => "trace".to_owned(),
        level => format!(
            "warn,retunnel={level},retunnel_client={level},retunnel_server={level},retunnel_link={level},\
             retunnel::access=info"
        ),
    };
    let filter = EnvFilter::new(if quiet_screen && global.log_file.is_none() { "off" } else { &filter });
    match &global.log_file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.with_context(|| format!("cannot write the log file {}", path.display()))?;
            let builder = fmt().with_env_filter(filter).with_ansi(false).with_writer(std::sync::Mutex::new(file));
            if json { builder.json().init() } else { builder.init() }
        }
        None => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let builder = fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
            if json { builder.json().init() } else { builder.init() }
        }
    }
    Ok(())
}
