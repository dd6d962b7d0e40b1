//! `retunnel config`: shows, exemplifies and checks configuration files.

use anyhow::{Context, Result};
use retunnel_client::config::{
    file::ConfigFile,
    yaml::{EXAMPLE, TunnelsFile},
};

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
        let tunnels = TunnelsFile::parse(&text, |name| variables.value(name))
            .map_err(|reason| Usage(format!("{}: {reason}", file.display())))?;
        if output.json {
            output.json(&serde_json::json!({ "file": file, "tunnels": tunnels.tunnels.len() }));
        } else {
            output.status(&format!("{} is valid: {} tunnels", file.display(), tunnels.tunnels.len()));
        }
        return Ok(());
    }
    let file = ConfigFile::read(&path)?;
    if output.json {
        output.json(&serde_json::json!({ "path": path, "exists": file.exists(), "config": file.shown() }));
        return Ok(());
    }
    output.status(&format!("# {}{}", path.display(), if file.exists() { "" } else { " (does not exist yet)" }));
    output.result(&serde_json::to_string_pretty(&file.shown()).context("the file cannot be shown")?);
    Ok(())
}
