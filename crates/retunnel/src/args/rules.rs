//! Options for rules in short form, one for each entry of the client library's table.

use std::marker::PhantomData;

use anyhow::Result;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use retunnel_client::{SHORT_RULES, ShortRule, TunnelProtocol, TunnelSpec};

use crate::variables::Variables;

/// What the tunnels of a command carry.
pub(crate) trait Carries {
    const PROTOCOL: TunnelProtocol;
}

#[derive(Debug)]
pub(crate) struct Http;

impl Carries for Http {
    const PROTOCOL: TunnelProtocol = TunnelProtocol::Http;
}

#[derive(Debug)]
pub(crate) struct Tcp;

impl Carries for Tcp {
    const PROTOCOL: TunnelProtocol = TunnelProtocol::Tcp;
}

/// The values of these options, in the order of the table.
#[derive(Debug)]
pub(crate) struct RuleArgs<P> {
    values: Vec<(&'static ShortRule, Option<String>)>,
    protocol: PhantomData<P>,
}

fn rules_of<P: Carries>() -> impl Iterator<Item = &'static ShortRule> {
    SHORT_RULES.iter().filter(|short| short.protocols.contains(&P::PROTOCOL))
}

impl<P> RuleArgs<P> {
    /// Adds the rules to a tunnel. A rule whose option is not given is read from its environment variable or `.env`.
    pub(crate) fn apply(self, mut spec: TunnelSpec, variables: &Variables) -> Result<TunnelSpec> {
        for (short, value) in self.values {
            let value = match (value, short.variable) {
                (None, Some(name)) => variables.security_value(name)?,
                (value, _) => value,
            };
            if let Some(value) = value {
                spec = spec.short_rule(short, &value)?;
            }
        }
        Ok(spec)
    }
}

impl<P: Carries> FromArgMatches for RuleArgs<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = rules_of::<P>().map(|short| (short, matches.get_one::<String>(short.key).cloned())).collect();
        Ok(Self { values, protocol: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<P: Carries> Args for RuleArgs<P> {
    fn augment_args(command: Command) -> Command {
        command.args(rules_of::<P>().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn option(short: &'static ShortRule) -> Arg {
    let mut option =
        Arg::new(short.key).long(short.option).value_name(short.value_name).help(short.help).hide_env_values(true);
    if let Some(letter) = short.short_option {
        option = option.short(letter);
    }
    if let Some(name) = short.variable {
        option = option.env(name);
    }
    option
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_short_rule_is_an_option_of_the_commands_that_can_have_it() {
        let cli = Cli::command();
        for (name, protocol) in [("http", TunnelProtocol::Http), ("tcp", TunnelProtocol::Tcp)] {
            let command = cli.find_subcommand(name).expect("a command");
            for short in SHORT_RULES {
                let option = command.get_arguments().find(|option| option.get_long() == Some(short.option));
                assert_eq!(option.is_some(), short.protocols.contains(&protocol), "{name} --{}", short.option);
            }
        }
    }
}
