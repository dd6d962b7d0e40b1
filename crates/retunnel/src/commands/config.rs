//! `retunnel config`: shows and checks configuration files, and prints an example.

use std::path::Path;

use anyhow::{Context, Result};
use retunnel_config::{ConfigFile, Diagnostics, TunnelsFile, tunnels};
use serde_json::json;

use crate::{
    args::ConfigArgs,
    commands::{
        diagnostics::{self, invalid},
        watch,
    },
    exit::Usage,
    output::Output,
    settings::config_path,
    variables::Variables,
};

pub(crate) fn run(args: &ConfigArgs, variables: &Variables, output: Output) -> Result<()> {
    if args.example {
        output.result(tunnels::example().trim_end());
        return Ok(());
    }
    let path = config_path()?;
    if args.path {
        output.result(&path.display().to_string());
        return Ok(());
    }
    if let Some(file) = &args.check {
        let text = watch::read(file).map_err(|error| Usage(format!("cannot read {}: {error}", file.display())))?;
        let checked = TunnelsFile::parse(&text, |name| variables.for_tunnels_file(name));
        let checked = checked.and_then(|file| match file.tunnels.is_empty() {
            true => Err(diagnostics::no_tunnels()),
            false => Ok(file),
        });
        let tunnels = report(file, checked, output)?.tunnels.len();
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
        let text = watch::read(file).map_err(|error| Usage(format!("cannot read {}: {error}", file.display())))?;
        report(file, super::server::check(&text), output)?;
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
    output.result(&serde_json::to_string_pretty(&file.shown()).context("cannot show the file")?);
    Ok(())
}

/// What was checked, or an error with all diagnostics.
fn report<T>(file: &Path, checked: Result<T, Diagnostics>, output: Output) -> Result<T> {
    checked.map_err(|diagnostics| {
        if output.json {
            output.json(&json!({ "file": file, "valid": false, "mistakes": diagnostics.list() }));
        }
        invalid(file, &diagnostics).into()
    })
}
