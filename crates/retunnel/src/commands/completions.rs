//! `retunnel completions SHELL`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, output::Output};

pub(crate) fn run(shell: Shell, output: Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "retunnel", &mut script);
    output.raw(&script);
    Ok(())
}
