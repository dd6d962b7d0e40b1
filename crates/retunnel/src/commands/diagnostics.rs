//! Prints the diagnostics of a file.

use std::path::Path;

use retunnel_config::{Diagnostics, Position};

use crate::exit::Usage;

/// Each diagnostic in the form that editors recognize: `FILE:LINE:COLUMN: what`.
pub(crate) fn lines<'a>(file: &'a Path, diagnostics: &'a Diagnostics) -> impl Iterator<Item = String> + 'a {
    diagnostics.list().iter().map(move |diagnostic| {
        let between = if diagnostic.line == 0 { " " } else { "" };
        format!("{}:{between}{diagnostic}", file.display())
    })
}

/// The diagnostic for a tunnels file that opens nothing.
pub(crate) fn no_tunnels() -> Diagnostics {
    let mut diagnostics = Diagnostics::default();
    diagnostics.add(Position::default(), "has no tunnels to open");
    diagnostics
}

/// The error for a file with diagnostics.
pub(crate) fn invalid(file: &Path, diagnostics: &Diagnostics) -> Usage {
    let count = diagnostics.list().len();
    let plural = if count == 1 { "" } else { "s" };
    let lines: Vec<String> = lines(file, diagnostics).collect();
    Usage(format!("{} has {count} error{plural}\n{}", file.display(), lines.join("\n")))
}
