//! `retunnel help [COMMAND]`.

use anyhow::Result;
use clap::CommandFactory;

use crate::{args::Cli, exit::Usage, output::Output};

pub(crate) fn run(command: Option<&str>, output: Output) -> Result<()> {
    let mut cli = Cli::command();
    let help = match command {
        None => cli.render_long_help(),
        Some(name) => {
            cli.build();
            cli.find_subcommand_mut(name)
                .ok_or_else(|| Usage(format!("no command `{name}`; see `retunnel help`")))?
                .render_long_help()
        }
    };
    output.styled(&help.ansi().to_string());
    Ok(())
}
