//! `retunnel`: client and server in one program.

#![expect(rustdoc::bare_urls, reason = "option texts are shown in a terminal")]

mod accounts;
mod args;
mod commands;
#[cfg(all(test, feature = "server"))]
mod error_list;
mod exit;
mod inspector;
mod memory;
mod output;
mod printable;
mod settings;
mod ui;
mod variables;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use output::Output;
use variables::Variables;

fn main() -> ExitCode {
    let variables = Variables::load();
    let command = variables::with_dotenv(Cli::command(), &variables);
    let matches = command.try_get_matches().unwrap_or_else(|error| commands::unknown::explain(error).exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let output = Output::new(&cli.global);
    match run(cli, &variables, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, hint) = exit::of(&error);
            output.error(&exit::text(&error), hint.as_deref());
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli, variables: &Variables, output: Output) -> anyhow::Result<()> {
    if cli.version {
        return commands::version::run(output);
    }
    let Some(command) = cli.command else {
        output.styled(&Cli::command().render_help().ansi().to_string());
        return Ok(());
    };
    let global = cli.global;
    variables.check()?;
    variables.warnings().iter().for_each(|warning| output.warning(warning));
    match command {
        Command::Http(args) => commands::http::run(args, &global, variables, output),
        Command::Tcp(args) => commands::tcp::run(args, &global, variables, output),
        Command::Start(args) => commands::start::run(args, &global, variables, output),
        Command::Diagnose(args) => commands::diagnose::run(args, &global, variables, output),
        Command::Authtoken(args) => commands::authtoken::run(args, output),
        Command::Register(args) => commands::register::run(&args, &global, variables, output),
        Command::Hostname(args) => commands::hostname::run(args, &global, variables, output),
        Command::Config(args) => commands::config::run(&args, variables, output),
        Command::Completions { shell } => commands::completions::run(shell, output),
        Command::Man(args) => commands::man::run(&args, output),
        Command::Version => commands::version::run(output),
        Command::Credits => commands::credits::run(output),
        Command::Help { command } => commands::help::run(command.as_deref(), output),
        #[cfg(feature = "server")]
        Command::Server(args) => commands::server::run(args, &global, variables, output),
        #[cfg(feature = "server")]
        Command::Demo(args) => commands::demo::run(&args, &global, variables, output),
    }
}
