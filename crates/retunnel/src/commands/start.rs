//! `retunnel start`: the tunnels of a file.

use anyhow::Result;
use clap::ValueEnum;
use retunnel_config::TunnelsFile;

use crate::{
    args::{Global, LogLevel, StartArgs},
    commands::{
        diagnostics,
        reload::LoadedFile,
        tunnels::{self, TunnelSource},
        watch,
    },
    exit::Usage,
    inspector::Options,
    output::Output,
    settings::{FromFile, Settings},
    variables::Variables,
};

pub(crate) fn run(args: StartArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    let shown = args.file.display();
    let text = watch::read(&args.file).map_err(|error| {
        Usage(format!("cannot read {shown}: {error}; `retunnel config --example > retunnel.yml` creates one"))
    })?;
    let file = TunnelsFile::parse(&text, |name| variables.for_tunnels_file(name))
        .map_err(|diagnostics| diagnostics::invalid(&args.file, &diagnostics))?;
    if let Some(unknown) = args.names.iter().find(|name| file.tunnels.iter().all(|tunnel| tunnel.name != **name)) {
        return Err(Usage(format!("{shown} has no tunnel `{unknown}`")).into());
    }
    if file.tunnels.is_empty() {
        return Err(diagnostics::invalid(&args.file, &diagnostics::no_tunnels()).into());
    }
    // Option and environment take precedence over the file.
    let mut global = global.clone();
    if let (None, None, Some(level)) = (global.log_level, variables.value("RETUNNEL_LOG_LEVEL"), &file.log_level) {
        let level = LogLevel::from_str(level, true).map_err(|reason| Usage(format!("{shown}: log_level: {reason}")))?;
        global.log_level = Some(level);
    }
    let from_file = FromFile {
        path: Some(&args.file),
        server: file.server_addr.as_deref(),
        token: file.auth_token.as_deref(),
        dialect: file.dialect.as_deref(),
    };
    let settings = Settings::new(&args.connection, variables, from_file, &global, output)?;
    let settings = settings.invite(args.account.invite.as_ref(), output);
    let inspector = Options::new(&args.inspect, variables)?;
    let file = LoadedFile { path: args.file, names: args.names, text, file, variables: variables.clone() };
    tunnels::run(TunnelSource::File(Box::new(file)), settings, inspector, &global, variables, output)
}
