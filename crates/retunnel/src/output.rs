//! All output goes through here: results to stdout, everything else to stderr.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::{args::Global, printable};

/// How much to print, and in which format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    /// Print every event as a line of JSON.
    pub(crate) json_events: bool,
    pub(crate) quiet: bool,
    /// The user asked for --quiet, which --json only implies.
    is_silent: bool,
    /// Never show the full-screen view.
    no_ui: bool,
}

impl Output {
    /// From the options. JSON output implies nothing else on stdout.
    pub(crate) const fn new(global: &Global) -> Self {
        let json = global.json || global.json_events;
        Self {
            json,
            json_events: global.json_events,
            quiet: global.quiet || json,
            is_silent: global.quiet,
            no_ui: global.no_ui,
        }
    }

    /// Prints a result byte by byte.
    pub(crate) fn raw(self, bytes: &[u8]) {
        let mut stdout = std::io::stdout();
        let _ = stdout.write_all(bytes);
        let _ = stdout.flush();
    }

    /// Prints a result for people and scripts.
    pub(crate) fn result(self, text: &str) {
        write_line(&mut anstream::stdout(), &printable::lines(text));
    }

    /// Prints a text of this program with colours. Text from elsewhere in it must be printable already.
    pub(crate) fn styled(self, text: &str) {
        write_line(&mut anstream::stdout(), text);
    }

    /// Prints a result as one line of JSON.
    pub(crate) fn json(self, value: &Value) {
        write_line(&mut std::io::stdout(), &printable::json(&value.to_string()));
    }

    /// Prints progress, unless --quiet.
    pub(crate) fn status(self, text: &str) {
        if !self.quiet {
            write_line(&mut anstream::stderr(), &printable::lines(text));
        }
    }

    /// Prints what the user should know even if only the result is of interest, unless --quiet.
    pub(crate) fn notice(self, text: &str) {
        if !self.is_silent {
            write_line(&mut anstream::stderr(), text);
        }
    }

    /// Prints a warning.
    pub(crate) fn warning(self, text: &str) {
        use owo_colors::OwoColorize;
        write_line(&mut anstream::stderr(), &format!("{} {}", "warning:".yellow().bold(), printable::lines(text)));
    }

    /// Prints why the program exits, and a hint.
    pub(crate) fn error(self, text: &str, hint: Option<&str>) {
        use owo_colors::OwoColorize;
        let mut stderr = anstream::stderr();
        write_line(&mut stderr, &format!("{} {}", "error:".red().bold(), printable::lines(text)));
        if let Some(hint) = hint {
            write_line(&mut stderr, &format!("{} {}", "hint:".cyan().bold(), printable::lines(hint)));
        }
    }

    /// Whether a live view can be shown: stdout and stderr are a terminal.
    pub(crate) fn is_interactive(self) -> bool {
        // A terminal without escape sequences.
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_allowed = !self.json && !self.quiet && !self.no_ui && !is_dumb;
        is_allowed && std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
    }
}

/// A closed pipe (`retunnel … | head`) is not a failure.
fn write_line(stream: &mut dyn Write, text: &str) {
    let _ = writeln!(stream, "{text}");
    let _ = stream.flush();
}

/// A human-readable size: `1.5 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A human-readable duration: `1h 02m 03s`.
pub(crate) fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds:02}s"),
        (hours, minutes, seconds) => format!("{hours}h {minutes:02}m {seconds:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(super::bytes(999), "999 B");
        assert_eq!(super::bytes(1_500_000), "1.5 MB");
        assert_eq!(super::duration(Duration::from_secs(59)), "59s");
        assert_eq!(super::duration(Duration::from_secs(3723)), "1h 02m 03s");
    }
}
