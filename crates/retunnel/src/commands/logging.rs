//! Sets up the log.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Stderr, Write},
    sync::Arc,
};

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, field::MakeExt, fmt, fmt::format};

use crate::{
    args::{Global, LogLevel},
    exit::Usage,
    printable::{self, Escaping},
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
    let target = match &global.log_file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Target::File(Arc::new(file.with_context(|| format!("cannot write the log file {}", path.display()))?))
        }
        None => Target::Stderr(io::stderr()),
    };
    let ansi = global.log_file.is_none() && io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_ansi(ansi);
    if json {
        builder.json().with_writer(move || JsonTarget(target.clone())).init();
    } else {
        // What visitors, servers and local services say is in the fields, and must not reach a terminal as it is.
        let fields = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(Escaping(writer), "{value:?}"),
            name => write!(Escaping(writer), "{name}={value:?}"),
        });
        builder.fmt_fields(fields.delimited(" ")).with_writer(move || target.clone()).init();
    }
    Ok(())
}

/// Where lines go.
enum Target {
    File(Arc<File>),
    Stderr(Stderr),
}

impl Clone for Target {
    fn clone(&self) -> Self {
        match self {
            Self::File(file) => Self::File(Arc::clone(file)),
            Self::Stderr(_) => Self::Stderr(io::stderr()),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stderr(stderr) => stderr.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stderr(stderr) => stderr.flush(),
        }
    }
}

/// The same for lines of JSON, which come whole.
struct JsonTarget(Target);

impl Write for JsonTarget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable::json(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
