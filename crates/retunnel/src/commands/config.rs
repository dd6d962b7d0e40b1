//! `retunnel config`: shows, exemplifies and checks configuration files.

use std::path::Path;

use anyhow::{Context, Result};
use retunnel_config::{ConfigFile, Diagnostics, TunnelsFile, tunnels::EXAMPLE};
use serde_json::json;

use crate::{
    args::ConfigArgs,
    exit::Usage,
    output::Output,
    settings::{Variables, config_path},
};

pub(crate) fn run(args: &ConfigArgs, variables: &Variables, output: Output) -> Result<()> {
    if args.example {
        output.result(EXAMPLE.trim_end());
        return Ok(());
    }
    let path = config_path()?;
    if args.path {
        output.result(&path.display().to_string());
        return Ok(());
    }
    if let Some(file) = &args.check {
        let text =
            std::fs::read_to_string(file).map_err(|error| Usage(format!("cannot read {}: {error}", file.display())))?;
        let checked = TunnelsFile::parse(&text, |name| variables.value(name));
        let tunnels = judged(file, checked, output)?.tunnels.len();
        if output.json {
            output.json(&json!({ "file": file, "valid": true, "mistakes": [], "tunnels": tunnels }));
        } else {
            let plural = if tunnels == 1 { "" } else { "s" };
            output.status(&format!("{} is valid: {tunnels} tunnel{plural}", file.display()));
        }
        return Ok(());
    }
    #[cfg(feature = "server")]
    if let Some(file) = &args.check_server {
        let text =
            std::fs::read_to_string(file).map_err(|error| Usage(format!("cannot read {}: {error}", file.display())))?;
        judged(file, super::server::check(&text), output)?;
        if output.json {
            output.json(&json!({ "file": file, "valid": true, "mistakes": [] }));
        } else {
            output.status(&format!("{} is valid", file.display()));
        }
        return Ok(());
    }
    let file = ConfigFile::read(&path)?;
    if output.json {
        output.json(&json!({ "path": path, "exists": file.exists(), "config": file.shown() }));
        return Ok(());
    }
    output.status(&format!("# {}{}", path.display(), if file.exists() { "" } else { " (does not exist yet)" }));
    output.result(&serde_json::to_string_pretty(&file.shown()).context("the file cannot be shown")?);
    Ok(())
}

/// What was checked, or an error with all diagnostics.
fn judged<T>(file: &Path, checked: Result<T, Diagnostics>, output: Output) -> Result<T> {
    checked.map_err(|diagnostics| {
        if output.json {
            output.json(&json!({ "file": file, "valid": false, "mistakes": diagnostics.list() }));
        }
        invalid(file, &diagnostics).into()
    })
}

/// Each diagnostic in the form that editors recognize: `FILE:LINE:COLUMN: what`.
pub(crate) fn lines<'a>(file: &'a Path, diagnostics: &'a Diagnostics) -> impl Iterator<Item = String> + 'a {
    diagnostics.list().iter().map(move |diagnostic| {
        let between = if diagnostic.line == 0 { " " } else { "" };
        format!("{}:{between}{diagnostic}", file.display())
    })
}

/// The error for a file with diagnostics.
pub(crate) fn invalid(file: &Path, diagnostics: &Diagnostics) -> Usage {
    let count = diagnostics.list().len();
    let plural = if count == 1 { "" } else { "s" };
    let lines: Vec<String> = lines(file, diagnostics).collect();
    Usage(format!("{} has {count} mistake{plural}\n{}", file.display(), lines.join("\n")))
}
