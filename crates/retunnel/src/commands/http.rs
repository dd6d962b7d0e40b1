//! `retunnel http`.

use anyhow::Result;
use retunnel_client::TunnelSpec;

use crate::{
    args::{Global, HttpArgs},
    commands::tunnels::{self, TunnelSource},
    inspector::Options,
    output::Output,
    settings::{FromFile, Settings},
    variables::Variables,
};

pub(crate) fn run(args: HttpArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    let mut spec = TunnelSpec::http(args.target.parse::<retunnel_client::LocalTarget>()?);
    if let Some(subdomain) = args.subdomain {
        spec = spec.subdomain(subdomain)?;
    }
    if let Some(hostname) = args.hostname {
        spec = spec.hostname(hostname);
    }
    spec = args.rules.apply(spec, variables)?;
    if args.local_insecure {
        spec = spec.local_insecure();
    }
    let settings = Settings::new(&args.connection, variables, FromFile::default(), global, output)?;
    let settings = settings.invite(args.account.invite.as_ref(), output);
    let inspector = Options::new(&args.inspect, variables)?;
    tunnels::run(TunnelSource::CommandLine(spec), settings, inspector, global, variables, output)
}
