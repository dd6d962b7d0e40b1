//! `retunnel config`: shows, exemplifies and checks configuration files.

use std::path::Path;

use anyhow::{Context, Result};
use retunnel_client::config::{
    document::Mistakes,
    file::ConfigFile,
    yaml::{EXAMPLE, TunnelsFile},
};
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

/// What was checked, or its mistakes as the result and the end.
fn judged<T>(file: &Path, checked: Result<T, Mistakes>, output: Output) -> Result<T> {
    checked.map_err(|mistakes| {
        if output.json {
            output.json(&json!({ "file": file, "valid": false, "mistakes": mistakes.list() }));
        }
        mistaken(file, &mistakes).into()
    })
}

/// Each mistake as editors and people find it: `FILE:LINE:COLUMN: what`.
pub(crate) fn lines<'a>(file: &'a Path, mistakes: &'a Mistakes) -> impl Iterator<Item = String> + 'a {
    mistakes.list().iter().map(move |mistake| {
        let between = if mistake.line == 0 { " " } else { "" };
        format!("{}:{between}{mistake}", file.display())
    })
}

/// All that is wrong with a file, as a reason to end.
pub(crate) fn mistaken(file: &Path, mistakes: &Mistakes) -> Usage {
    let count = mistakes.list().len();
    let plural = if count == 1 { "" } else { "s" };
    let lines: Vec<String> = lines(file, mistakes).collect();
    Usage(format!("{} has {count} mistake{plural}\n{}", file.display(), lines.join("\n")))
}
