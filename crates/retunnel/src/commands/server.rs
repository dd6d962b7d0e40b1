//! `retunnel server`.

mod check;
mod reachable;
mod self_signed;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use retunnel_server::{
    Server,
    auth::Auth,
    config::{ServerConfig, ServerFile},
    store::Store,
};
use tracing::{error, info, warn};

pub(crate) use self::check::check;
use self::self_signed::SelfSigned;
use crate::{
    args::{Global, LogFormat, ServerArgs},
    commands::{
        descriptors, diagnostics, logging,
        signals::{Hangup, Signals},
        watch,
    },
    exit::Usage,
    memory,
    output::Output,
    variables::Variables,
};

pub(crate) fn run(args: ServerArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    logging::start(global, variables, "info", args.log_format == LogFormat::Json, false)?;
    descriptors::raise_limit();
    let action = args.action.is_some();
    let thread_count = args.threads.map_or_else(default_threads, usize::from);
    let is_self_signed = args.tls_self_signed;
    let mut config = config_of(args)?;
    let certificate = match (is_self_signed, &config.tls) {
        (false, _) => None,
        (true, Some(_)) => return Err(Usage("--tls-self-signed: the server has a certificate already".into()).into()),
        (true, None) => Some(self_signed::certificate(&config)?),
    };
    if let Some(certificate) = &certificate {
        config.tls = Some(certificate.files.clone());
    }
    let runtime = match thread_count {
        // Avoids moving tasks between threads.
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    let result = runtime.block_on(async {
        if action {
            return invite(&config, output).await;
        }
        tokio::select! {
            result = serve(config, certificate, output) => result,
            never = memory::trim_when_idle() => match never {},
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// Two threads that share the work are hardly faster than one and use more CPU, so half the cores are enough.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// File in the data directory with the address for clients, so that `retunnel server invite` knows it.
const URL_FILE: &str = "url";

/// The default data directory.
fn default_data_dir() -> Result<PathBuf> {
    use etcetera::BaseStrategy;
    Ok(etcetera::choose_base_strategy()
        .context("this user has no home directory; use --data-dir")?
        .data_dir()
        .join("retunnel"))
}

fn config_of(args: ServerArgs) -> Result<ServerConfig> {
    let file = match &args.config {
        Some(path) => {
            let text = watch::read(path).map_err(|error| Usage(format!("cannot read {}: {error}", path.display())))?;
            if let (Err(_), Err(diagnostics)) = (ServerFile::parse(&text), check(&text)) {
                return Err(diagnostics::invalid(path, &diagnostics).into());
            }
            ServerFile::parse(&text).map_err(|reason| Usage(format!("{}: {reason}", path.display())))?
        }
        None => ServerFile::default(),
    };
    let mut flags = ServerFile::default();
    flags.listen = args.listen;
    flags.domain = args.domain;
    flags.data_dir = args.data_dir;
    flags.tcp_ports = args.tcp_ports;
    flags.tls_cert = args.tls_cert;
    flags.tls_key = args.tls_key;
    flags.registration = args.registration;
    flags.public_url = args.public_url;
    flags.trusted_proxies = args.trusted_proxies;
    flags.dns_resolver = args.dns_resolver;
    flags.access_log = args.access_log;
    let mut config = flags.or(file).into_config(default_data_dir()?).map_err(|error| Usage(error.to_string()))?;
    if let Some(seconds) = args.grace_period {
        config.limits.grace_period = Duration::try_from_secs_f64(seconds)
            .map_err(|error| Usage(format!("grace-period: {error} (got `{seconds}`)")))?;
    }
    Ok(config)
}

async fn serve(config: ServerConfig, certificate: Option<SelfSigned>, output: Output) -> Result<()> {
    // Only certificates can be reloaded.
    let (mut signals, mut hangup) = match &config.tls {
        Some(_) => (Signals::listen_reloading()?, Some(Hangup::listen()?)),
        None => (Signals::listen()?, None),
    };
    let domain = config.domain.clone();
    let tcp_ports = config.tcp_ports.clone();
    let registration = config.registration;
    let urls = config.clone();
    let server = Server::start(config).await?;
    let address = server.address();
    if output.json {
        output.json(&serde_json::json!({
            "listening": address.to_string(), "domain": domain, "data_dir": server.data_dir(),
            "server": reachable::server_url(&urls, address),
            "ca_file": certificate.as_ref().map(|certificate| &certificate.files.cert),
            "fingerprint": certificate.as_ref().map(|certificate| &certificate.fingerprint),
        }));
    } else {
        let scheme = if urls.tls.is_some() { "https" } else { "http" };
        output.result(&format!("listening on {scheme}://{address}"));
    }
    output.status(&format!("tunnels      {}", urls.http_url("NAME", address.port())));
    output.status(&match tcp_ports {
        Some(range) => format!("tcp ports    {}-{}", range.start(), range.end()),
        None => "tcp ports    off".into(),
    });
    output.status(&format!("data         {}", server.data_dir().display()));
    output.status(&format!("registration {}", format!("{registration:?}").to_lowercase()));
    let server_url = reachable::server_url(&urls, address);
    let mut client = format!("retunnel http 8080 --server {server_url}");
    if let Some(certificate) = &certificate {
        output.status(&format!("certificate  self-signed, SHA-256 {}", certificate.fingerprint));
        client = format!("{client} --ca-file {}", certificate.files.cert.display());
    }
    output.status(&format!("connect with {client}"));
    for warning in reachable::warnings(&urls, address) {
        output.warning(warning);
    }
    if let Err(error) = std::fs::write(server.data_dir().join(URL_FILE), format!("{server_url}\n")) {
        warn!(%error, "cannot save the server's address; `retunnel server invite` cannot print it");
    }
    let trigger = server.shutdown_trigger();
    loop {
        tokio::select! {
            () = signals.next() => break,
            () = trigger.cancelled() => break,
            () = reload(&mut hangup) => match server.reload_certificate() {
                Ok(()) => info!("certificate reloaded"),
                Err(error) => error!(%error, "cannot reload the certificate; keeping the current one"),
            }
        }
    }
    output.status("Shutting down; waiting for active transfers (a second signal exits at once)");
    tokio::select! {
        () = server.shutdown() => {}
        () = signals.next() => {}
    }
    Ok(())
}

async fn reload(hangup: &mut Option<Hangup>) {
    match hangup {
        Some(hangup) => hangup.reload().await,
        None => std::future::pending().await,
    }
}

async fn invite(config: &ServerConfig, output: Output) -> Result<()> {
    let store = Store::open(&config.data_dir).await.context("cannot open the server's data")?;
    let code = Auth::new(store.clone()).invite().await?;
    store.close().await;
    // The address of the last start; before the first one, what the options say.
    let saved = std::fs::read_to_string(config.data_dir.join(URL_FILE)).unwrap_or_default();
    let url = match saved.trim() {
        "" => reachable::server_url(config, config.listen),
        url => url.to_owned(),
    };
    let command = format!("retunnel register --server {url} --invite {code}");
    if output.json {
        output.json(&serde_json::json!({ "invite": code, "server": url, "command": command }));
    } else {
        output.result(&code);
        output.status(&format!("valid for one account, which this command creates:\n  {command}"));
    }
    Ok(())
}
