//! The command line: every option, and the help that teaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};

/// A public address for a local service.
#[derive(Debug, Parser)]
#[command(
    name = "retunnel",
    disable_version_flag = true,
    about = "A public address for a local service, and the server to host it yourself",
    after_help = "Try it without a server:   retunnel demo\n\
                  Host the server:           retunnel server\n\
                  Publish port 8080:         retunnel http 8080\n\
                  Publish SSH:               retunnel tcp 22\n\
                  Several tunnels at once:   retunnel config --example > retunnel.yml && retunnel start\n\
                  In a script:               retunnel --json http 8080 | jq -r .url\n\
                  When it does not work:     retunnel diagnose\n\n\
                  Values come from the option, then RETUNNEL_* of the environment, then a file .env here, then \
                  ~/.retunnel.conf.\n\
                  Exit codes: 0 fine or Ctrl+C, 1 failed, 2 wrong usage, 69 server not there or refuses, \
                  75 refused for now, 78 configuration file unusable, 130 diagnose was stopped.",
    disable_help_subcommand = true,
    args_override_self = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print the version
    #[arg(long, short = 'V')]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options of every command, before or after it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Print results as one line of JSON; implies --quiet
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print results, warnings and errors only
    #[arg(long, short, global = true, env = "RETUNNEL_QUIET", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
    /// What is logged to stderr or the log file
    #[arg(long, short, global = true, value_enum, ignore_case = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Append the log to this file instead of stderr
    #[arg(long, global = true, env = "RETUNNEL_LOG_FILE", hide_env = true, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Accept any certificate of the server (only for tests: your token can be stolen)
    #[arg(long, short = 'k', global = true, env = "RETUNNEL_INSECURE", hide_env = true,
          value_parser = FalseyValueParser::new())]
    pub(crate) insecure: bool,
    /// Plain lines instead of the full-screen view
    #[arg(long, global = true, env = "RETUNNEL_NO_UI", hide_env = true)]
    pub(crate) no_ui: bool,
    /// Print everything that happens as one line of JSON each, after the first (docs/json-events.md); implies --json
    #[arg(long, global = true)]
    pub(crate) json_events: bool,
    /// Trust the certificate authorities of this PEM file too, beside the system's [env: RETUNNEL_CA_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Reach the server through this proxy, or `none`: an http://, https://, socks5:// or socks5h:// URL, with USER:PASSWORD@ where
    /// it wants them [env: RETUNNEL_PROXY, else HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) proxy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    Error,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish a local HTTP service
    #[command(after_help = "Examples:\n  retunnel http 8080\n  retunnel http 3000 --subdomain my-app\n  \
                            retunnel http https://localhost:8443 --auth me:secret\n  \
                            retunnel http 5173 --host-header rewrite\n  \
                            retunnel http unix:/run/app.sock --server tunnel.example.com")]
    Http(HttpArgs),
    /// Publish a local TCP service
    #[command(after_help = "Examples:\n  retunnel tcp 22\n  retunnel tcp 127.0.0.1:5432 --remote-port 20432")]
    Tcp(TcpArgs),
    /// Start the tunnels of a file, all in one session
    #[command(after_help = "Examples:\n  retunnel config --example > retunnel.yml\n  retunnel start\n  \
                            retunnel start team.yml web api\n\n\
                            While it runs, changes of the file are done at once, and on SIGHUP: new tunnels are opened, \
                            removed ones closed, changed ones opened again, all others are left alone. A file with \
                            mistakes changes nothing.")]
    Start(StartArgs),
    /// Check what stands between this machine and a tunnel, and say what is wrong
    #[command(
        after_help = "Examples:\n  retunnel diagnose\n  retunnel diagnose --server https://tunnel.example.com\n  \
                            retunnel diagnose 8080 --json\n\nChecks in this order: configuration, proxy, dns, tcp, tls, api, \
                            upgrade, clock, token, local. Nothing is changed: no account is made, no tunnel opened.\n\
                            Exit codes: 0 tunnels work, 69 something is wrong, 2 or 78 the configuration, 130 Ctrl+C."
    )]
    Diagnose(DiagnoseArgs),
    /// Save the token of your account
    #[command(after_help = "Without TOKEN it is asked for without being shown. Prefer this or --stdin: \
                            arguments are visible to other users of the machine.")]
    Authtoken(AuthtokenArgs),
    /// Show or check configuration files
    #[command(after_help = "Examples:\n  retunnel config --check\n  retunnel config --check team.yml --json\n\n\
                            A check tells FILE:LINE:COLUMN of every mistake and ends with 2, or with 0 when there is none.")]
    Config(ConfigArgs),
    /// Print a script that completes words in a shell
    #[command(after_help = "Examples:\n  bash: source <(retunnel completions bash)\n  \
                            zsh:  retunnel completions zsh > ~/.zfunc/_retunnel\n  \
                            fish: retunnel completions fish > ~/.config/fish/completions/retunnel.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all pages
    #[command(after_help = "Examples:\n  retunnel man | man -l -\n  retunnel man --dir /usr/local/share/man/man1")]
    Man(ManArgs),
    /// Print the version
    Version,
    /// List the libraries this program is built on
    Credits,
    /// Show help for a command
    Help {
        /// The command
        command: Option<String>,
    },
    /// Host your own server
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  retunnel server\n  \
                            retunnel server --listen 0.0.0.0:80 --domain tunnel.example.com\n  \
                            retunnel server --listen 0.0.0.0:443 --domain tunnel.example.com --tls-cert fullchain.pem --tls-key key.pem\n  \
                            retunnel server invite\n\nEvery option is also a key of the --config file (as `tcp-ports: 20000-20100`) \
                            and an environment variable (as RETUNNEL_SERVER_TCP_PORTS).")]
    Server(ServerArgs),
    /// Start a server, a sample service and a tunnel in one process, and show a request going through
    #[cfg(feature = "server")]
    Demo(DemoArgs),
}

/// Where and as whom to connect.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The server, as localhost:6400 or https://tunnel.example.com [env: RETUNNEL_SERVER_ENDPOINT]
    #[arg(long, value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// The account's token [env: RETUNNEL_AUTH_TOKEN]; prefer `retunnel authtoken`
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// What to speak with the server; auto is the best that it knows [env: RETUNNEL_DIALECT] [default: auto]
    #[arg(long, value_name = "DIALECT", value_parser = ["auto", "native", "3", "2"])]
    pub(crate) dialect: Option<String>,
}

/// The web inspector.
#[derive(Debug, Args)]
#[command(next_help_heading = "Inspector")]
pub(crate) struct InspectArgs {
    /// Where the inspector listens [default: 127.0.0.1:4040, or the next free port] [env: RETUNNEL_INSPECT_ADDR]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) inspect_addr: Option<String>,
    /// No inspector: nothing that passes is looked at [env: RETUNNEL_NO_INSPECT]
    #[arg(long, conflicts_with = "inspect_addr")]
    pub(crate) no_inspect: bool,
    /// Mask the values of these headers and fields too [env: RETUNNEL_INSPECT_MASK]
    #[arg(long, value_name = "NAMES")]
    pub(crate) inspect_mask: Vec<String>,
    /// Answer to this host name too; by default only to addresses and localhost [env: RETUNNEL_INSPECT_HOST]
    #[arg(long, value_name = "HOST")]
    pub(crate) inspect_host: Vec<String>,
    /// Keep so much of each body [default: 256]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..=16 * 1024))]
    pub(crate) inspect_body_limit: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    /// The local service: PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path
    pub(crate) target: String,
    /// Ask for this name below the server's domain
    #[arg(long, short, value_name = "NAME")]
    pub(crate) subdomain: Option<String>,
    /// Ask for a host name of your own
    #[arg(long, value_name = "HOST", conflicts_with = "subdomain")]
    pub(crate) hostname: Option<String>,
    /// Ask visitors for a user name and password
    #[arg(long, short, value_name = "USER:PASSWORD", env = "RETUNNEL_BASIC_AUTH", hide_env_values = true)]
    pub(crate) auth: Option<String>,
    /// What the service sees as its host: `rewrite` for its own address (Vite, webpack, Django), or a HOST
    #[arg(long, value_name = "HOST")]
    pub(crate) host_header: Option<String>,
    /// Accept any certificate of an https:// service (at localhost any is accepted anyway)
    #[arg(long)]
    pub(crate) local_insecure: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The page of this command
    pub(crate) command: Option<String>,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TcpArgs {
    /// The local service: PORT or HOST:PORT
    pub(crate) target: String,
    /// Ask for this public port
    #[arg(long, short, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) remote_port: Option<u16>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The file
    #[arg(default_value = "retunnel.yml")]
    pub(crate) file: PathBuf,
    /// Only these tunnels of the file
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiagnoseArgs {
    /// Local services to look at too: PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path
    #[arg(value_name = "LOCAL")]
    pub(crate) targets: Vec<String>,
    /// Look at the server and the local services of this tunnels file [default: retunnel.yml, if it is here and no LOCAL is
    /// named]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct AuthtokenArgs {
    /// The token
    pub(crate) token: Option<String>,
    /// Read the token from standard input
    #[arg(long, conflicts_with = "token")]
    pub(crate) stdin: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").multiple(false))]
pub(crate) struct ConfigArgs {
    /// Show the saved configuration, tokens masked (the default)
    #[arg(long, group = "what")]
    pub(crate) show: bool,
    /// Print an example of retunnel.yml
    #[arg(long, group = "what")]
    pub(crate) example: bool,
    /// Print where the saved configuration is
    #[arg(long, group = "what")]
    pub(crate) path: bool,
    /// List every mistake of a tunnels file
    #[arg(long, group = "what", value_name = "FILE", num_args = 0..=1, default_missing_value = "retunnel.yml")]
    pub(crate) check: Option<PathBuf>,
    /// Check a file for `retunnel server --config`
    #[cfg(feature = "server")]
    #[arg(long, group = "what", value_name = "FILE")]
    pub(crate) check_server: Option<PathBuf>,
}

#[cfg(feature = "server")]
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct ServerArgs {
    #[command(subcommand)]
    pub(crate) action: Option<ServerAction>,
    /// Read options from this YAML file
    #[arg(long, env = "RETUNNEL_SERVER_CONFIG", value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where visitors and clients connect [default: 127.0.0.1:6400]
    #[arg(long, env = "RETUNNEL_SERVER_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// Tunnels get names below this domain [default: localhost]
    #[arg(long, env = "RETUNNEL_SERVER_DOMAIN", value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Where the database is [default: the user's data directory]
    #[arg(long, env = "RETUNNEL_SERVER_DATA_DIR", value_name = "DIR", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Public ports for TCP tunnels, or `off` [default: 20000-29999]
    #[arg(long, env = "RETUNNEL_SERVER_TCP_PORTS", value_name = "FIRST-LAST")]
    pub(crate) tcp_ports: Option<String>,
    /// Speak TLS, with the certificate in this PEM file (behind it those of intermediate authorities); SIGHUP reads it anew
    #[arg(long, env = "RETUNNEL_SERVER_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as a PEM file
    #[arg(long, env = "RETUNNEL_SERVER_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Who may make an account: open, invite or closed [default: open on loopback, else invite]
    #[arg(long, env = "RETUNNEL_SERVER_REGISTRATION", value_name = "POLICY")]
    pub(crate) registration: Option<String>,
    /// How URLs are printed when a proxy stands in front, as https://tunnel.example.com
    #[arg(long, env = "RETUNNEL_SERVER_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Peers whose X-Forwarded-* headers are believed, as 10.0.0.0/8,127.0.0.1
    #[arg(long, env = "RETUNNEL_SERVER_TRUSTED_PROXIES", value_name = "NETS", value_delimiter = ',')]
    pub(crate) trusted_proxies: Option<Vec<String>>,
    /// The DNS server that is asked about host names [default: the system's]
    #[arg(long, env = "RETUNNEL_SERVER_DNS_RESOLVER", value_name = "ADDRESS:PORT")]
    pub(crate) dns_resolver: Option<String>,
    /// Log every request of a visitor
    #[arg(long, env = "RETUNNEL_SERVER_ACCESS_LOG", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) access_log: Option<bool>,
    /// Form of the log
    #[arg(long, env = "RETUNNEL_SERVER_LOG_FORMAT", value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Seconds running transfers have to finish when the server stops [default: 20]
    #[arg(long, env = "RETUNNEL_SERVER_GRACE_PERIOD", value_name = "SECONDS")]
    pub(crate) grace_period: Option<f64>,
    /// Threads that serve; one costs least for each request, more serve more of them [default: half the cores]
    #[arg(long, env = "RETUNNEL_SERVER_THREADS", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[cfg(feature = "server")]
#[derive(Debug, Subcommand)]
pub(crate) enum ServerAction {
    /// Print a code for one registration
    Invite,
}

#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[cfg(feature = "server")]
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Publish this local port instead of the sample service
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// End after the check, with exit code 0 or 1
    #[arg(long)]
    pub(crate) once: bool,
}
