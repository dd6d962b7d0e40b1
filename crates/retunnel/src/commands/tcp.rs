//! `retunnel tcp`.

use anyhow::Result;
use retunnel_client::TunnelSpec;

use crate::{
    args::{Global, TcpArgs},
    commands::tunnels::{self, TunnelSource},
    output::Output,
    settings::{FromFile, Settings},
    variables::Variables,
};

pub(crate) fn run(args: TcpArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    let mut spec = TunnelSpec::tcp(args.target.parse::<retunnel_client::LocalTarget>()?);
    if let Some(port) = args.remote_port {
        spec = spec.remote_port(port);
    }
    spec = args.rules.apply(spec, variables)?;
    let settings = Settings::new(&args.connection, variables, FromFile::default(), global, output)?;
    let settings = settings.invite(args.account.invite.as_ref(), output);
    tunnels::run(TunnelSource::CommandLine(spec), settings, None, global, variables, output)
}
