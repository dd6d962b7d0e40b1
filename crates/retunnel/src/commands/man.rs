//! `retunnel man`: man pages generated from the same text as `--help`.

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{
    args::{Cli, ManArgs},
    exit::Usage,
    output::Output,
};

pub(crate) fn run(args: &ManArgs, output: Output) -> Result<()> {
    let mut cli = Cli::command();
    cli.build();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let pages = std::iter::once((String::from("retunnel"), cli.clone()))
            .chain(cli.get_subcommands().map(|command| (format!("retunnel-{}", command.get_name()), command.clone())));
        for (name, command) in pages {
            let path = dir.join(format!("{name}.1"));
            std::fs::write(&path, page(command, &name)?).with_context(|| format!("cannot write {}", path.display()))?;
            output.result(&path.display().to_string());
        }
        return Ok(());
    }
    let (name, command) = match &args.command {
        None => ("retunnel".to_owned(), cli),
        Some(name) => {
            let found = cli.find_subcommand(name);
            let found = found.ok_or_else(|| Usage(format!("no command `{name}`; see `retunnel help`")))?;
            (format!("retunnel-{name}"), found.clone())
        }
    };
    output.raw(&page(command, &name)?);
    Ok(())
}

fn page(command: Command, name: &str) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let command = command.display_name(name.to_owned()).version(version);
    let mut page = Vec::new();
    Man::new(command)
        .title(name.to_uppercase())
        .section("1")
        .source(format!("retunnel {version}"))
        .render(&mut page)?;
    Ok(page)
}
