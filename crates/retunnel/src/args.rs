//! The command line: every option and its help.

mod rules;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::rules::{Http, RuleArgs, Tcp};
use crate::variables::boolean;

/// Expose a local service to the internet.
#[derive(Debug, Parser)]
#[command(
    name = "retunnel",
    disable_version_flag = true,
    about = "Expose a local service to the internet through your own tunnel server",
    after_help = "Try it without a server:   retunnel demo\n\
                  Host your own server:      retunnel server\n\
                  Expose port 8080:          retunnel http 8080\n\
                  Expose SSH:                retunnel tcp 22\n\
                  Start several tunnels:     retunnel config --example > retunnel.yml && retunnel start\n\
                  In a script:               retunnel --json http 8080 | jq -r .url\n\
                  Find out what is wrong:    retunnel diagnose\n\n\
                  Options take precedence over RETUNNEL_* environment variables, then .env in the current directory, \
                  then ~/.retunnel.conf.\n\
                  Exit codes: 0 success or Ctrl+C, 1 failure, 2 usage error, 69 server unreachable or refused, \
                  75 temporarily refused, 78 invalid configuration file, 79 replaced by another client of the account, \
                  130 diagnose interrupted.",
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

/// Global options, accepted before or after the command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print results as one line of JSON; implies --quiet
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only results, warnings and errors
    #[arg(long, short, global = true, env = "RETUNNEL_QUIET", hide_env = true, value_parser = boolean)]
    pub(crate) quiet: bool,
    /// Log level for stderr or the log file
    #[arg(long, short, global = true, value_enum, ignore_case = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Append the log to a file instead of stderr
    #[arg(long, global = true, env = "RETUNNEL_LOG_FILE", hide_env = true, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Do not verify the server's certificate (for tests only: your token can be stolen)
    #[arg(long, short = 'k', global = true, env = "RETUNNEL_INSECURE", hide_env = true, value_parser = boolean)]
    pub(crate) insecure: bool,
    /// Print plain lines instead of the full-screen view
    #[arg(long, global = true, env = "RETUNNEL_NO_UI", hide_env = true, value_parser = boolean)]
    pub(crate) no_ui: bool,
    /// Print every event as a line of JSON after the result (docs/json-events.md); implies --json
    #[arg(long, global = true)]
    pub(crate) json_events: bool,
    /// Trust the certificate authorities in this PEM file in addition to the system's [env: RETUNNEL_CA_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Connect to the server through this proxy: an http://, https://, socks5:// or socks5h:// URL, optionally with
    /// USER:PASSWORD@; `none` connects directly [env: RETUNNEL_PROXY, then HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY]
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
    /// Expose a local HTTP service
    #[command(after_help = "Examples:\n  retunnel http 8080\n  retunnel http 3000 --subdomain my-app\n  \
                            retunnel http https://localhost:8443 --auth me:secret\n  \
                            retunnel http 5173 --host-header rewrite\n  \
                            retunnel http unix:/run/app.sock --server tunnel.example.com")]
    Http(HttpArgs),
    /// Expose a local TCP service
    #[command(after_help = "Examples:\n  retunnel tcp 22\n  retunnel tcp 127.0.0.1:5432 --remote-port 20432")]
    Tcp(TcpArgs),
    /// Start the tunnels defined in a file
    #[command(after_help = "Examples:\n  retunnel config --example > retunnel.yml\n  retunnel start\n  \
                            retunnel start team.yml web api\n\n\
                            The file is reloaded when it changes and on SIGHUP: new tunnels are opened, removed ones \
                            closed, changed ones reopened, all others left alone. An invalid file changes nothing.")]
    Start(StartArgs),
    /// Check the connection to the server and explain what is wrong
    #[command(
        after_help = "Examples:\n  retunnel diagnose\n  retunnel diagnose --server https://tunnel.example.com\n  \
                            retunnel diagnose 8080 --json\n\nRuns these checks in order: configuration, proxy, dns, tcp, tls, \
                            api, upgrade, clock, token, local. Changes nothing: creates no account, opens no tunnel.\n\
                            Exit codes: 0 tunnels work, 69 a check failed, 2 or 78 invalid configuration, 130 Ctrl+C."
    )]
    Diagnose(DiagnoseArgs),
    /// Save your account token
    #[command(after_help = "Without TOKEN, prompts for it without showing it. Prefer the prompt or --stdin: \
                            other users of this machine can see arguments.\n\
                            A token is used with one server only. Without --server, that is the first server that you name \
                            (an option, a variable or ~/.retunnel.conf, not a file of the working directory) and that accepts it.")]
    Authtoken(AuthtokenArgs),
    /// Create an account and save its token
    #[command(after_help = "Examples:\n  retunnel register --server tunnel.example.com --invite CODE\n\n\
                            Servers that let everyone register need no invitation; there, `http`, `tcp` and `start` create an \
                            account by themselves.")]
    Register(RegisterArgs),
    /// Manage custom host names
    #[command(after_help = "Examples:\n  retunnel hostname add shop.example.org\n  \
                            retunnel hostname verify shop.example.org\n  retunnel http 8080 --hostname shop.example.org")]
    Hostname(HostnameArgs),
    /// Show or check configuration files
    #[command(after_help = "Examples:\n  retunnel config --check\n  retunnel config --check team.yml --json\n\n\
                            A check prints every error as FILE:LINE:COLUMN: MESSAGE. It exits with 2 if there are any, otherwise with 0.")]
    Config(ConfigArgs),
    /// Generate a shell completion script
    #[command(after_help = "Examples:\n  bash: source <(retunnel completions bash)\n  \
                            zsh:  retunnel completions zsh > ~/.zfunc/_retunnel\n  \
                            fish: retunnel completions fish > ~/.config/fish/completions/retunnel.fish")]
    Completions {
        /// Shell to generate the script for
        shell: clap_complete::Shell,
    },
    /// Print a man page, or write all man pages to a directory
    #[command(after_help = "Examples:\n  retunnel man | man -l -\n  retunnel man --dir /usr/local/share/man/man1")]
    Man(ManArgs),
    /// Print the version
    Version,
    /// List the libraries used by this program
    Credits,
    /// Print help for a command
    Help {
        /// Command to describe
        command: Option<String>,
    },
    /// Run a tunnel server
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  retunnel server\n  \
                            retunnel server --listen 0.0.0.0:80 --domain tunnel.example.com\n  \
                            retunnel server --listen 0.0.0.0:443 --domain tunnel.example.com --tls-cert fullchain.pem --tls-key key.pem\n  \
                            retunnel server invite\n\nEvery option is also a key in the --config file (for example `tcp-ports: 20000-20100`) \
                            and an environment variable (for example RETUNNEL_SERVER_TCP_PORTS).")]
    Server(ServerArgs),
    /// Run a server, a sample service and a tunnel in one process, and send a request through them
    #[cfg(feature = "server")]
    Demo(DemoArgs),
}

/// The server and the account.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Server to connect to, for example tunnel.example.com; with TLS unless it is http:// or this machine [env: RETUNNEL_SERVER_ENDPOINT] [default: localhost:6400]
    #[arg(long, value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// Account token; prefer `retunnel authtoken` [env: RETUNNEL_AUTH_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Protocol to use; auto is the native one, or the older one that was used with this server before
    /// [env: RETUNNEL_DIALECT] [default: auto]
    #[arg(long, value_name = "DIALECT", value_parser = ["auto", "native", "3", "2"])]
    pub(crate) dialect: Option<String>,
}

/// How an account is created.
#[derive(Debug, Args)]
pub(crate) struct NewAccount {
    /// Create the account with this invitation, for servers that require one
    #[arg(long, value_name = "CODE")]
    pub(crate) invite: Option<String>,
}

/// The web inspector.
#[derive(Debug, Args)]
#[command(next_help_heading = "Inspector")]
pub(crate) struct InspectArgs {
    /// Address of the inspector [env: RETUNNEL_INSPECT_ADDR] [default: 127.0.0.1:4040, or the next free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) inspect_addr: Option<String>,
    /// Disable the inspector [env: RETUNNEL_NO_INSPECT]
    #[arg(long, conflicts_with = "inspect_addr")]
    pub(crate) no_inspect: bool,
    /// Mask the values of these additional headers and fields [env: RETUNNEL_INSPECT_MASK]
    #[arg(long, value_name = "NAMES")]
    pub(crate) inspect_mask: Vec<String>,
    /// Allow this host name in addition to IP addresses and localhost [env: RETUNNEL_INSPECT_HOST]
    #[arg(long, value_name = "HOST")]
    pub(crate) inspect_host: Vec<String>,
    /// Capture at most this much of each body [default: 256]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..=16 * 1024))]
    pub(crate) inspect_body_limit: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    /// Local service: PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path
    pub(crate) target: String,
    /// Request this subdomain of the server's domain
    #[arg(long, short, value_name = "NAME")]
    pub(crate) subdomain: Option<String>,
    /// Request a custom host name
    #[arg(long, value_name = "HOST", conflicts_with = "subdomain")]
    pub(crate) hostname: Option<String>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs<Http>,
    /// Do not verify the certificate of an https:// service (never verified on localhost)
    #[arg(long)]
    pub(crate) local_insecure: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) account: NewAccount,
    #[command(flatten)]
    pub(crate) inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Command to print the page of
    pub(crate) command: Option<String>,
    /// Write the pages of all commands to this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TcpArgs {
    /// Local service: PORT or HOST:PORT
    pub(crate) target: String,
    /// Request this public port
    #[arg(long, short, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) remote_port: Option<u16>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs<Tcp>,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) account: NewAccount,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Tunnels file
    #[arg(default_value = "retunnel.yml")]
    pub(crate) file: PathBuf,
    /// Tunnels to start [default: all]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) account: NewAccount,
    #[command(flatten)]
    pub(crate) inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiagnoseArgs {
    /// Local services to check: PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path
    #[arg(value_name = "LOCAL")]
    pub(crate) targets: Vec<String>,
    /// Check the server and the local services of this tunnels file [default: retunnel.yml if it exists and no LOCAL is given]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct AuthtokenArgs {
    /// Token to save
    pub(crate) token: Option<String>,
    /// Read the token from standard input
    #[arg(long, conflicts_with = "token")]
    pub(crate) stdin: bool,
    /// Server that the token is for [env: RETUNNEL_SERVER_ENDPOINT] [default: the first one that you name and that accepts it]
    #[arg(long, value_name = "SERVER")]
    pub(crate) server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    pub(crate) account: NewAccount,
    /// E-mail address of the account [default: an anonymous account]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) email: Option<String>,
    /// Server to register with [env: RETUNNEL_SERVER_ENDPOINT] [default: localhost:6400]
    #[arg(long, value_name = "SERVER")]
    pub(crate) server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct HostnameArgs {
    #[command(subcommand)]
    pub(crate) action: HostnameAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostnameAction {
    /// Claim a host name and show the DNS records that prove that it is yours
    Add(OneHostname),
    /// Look for the DNS records of a host name
    Verify(OneHostname),
    /// List your host names
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Give a host name up; its tunnel is closed
    Remove(OneHostname),
}

#[derive(Debug, Args)]
pub(crate) struct OneHostname {
    /// Host name, for example shop.example.org
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").multiple(false))]
pub(crate) struct ConfigArgs {
    /// Show the saved configuration with masked tokens (default)
    #[arg(long, group = "what")]
    pub(crate) show: bool,
    /// Print an example retunnel.yml
    #[arg(long, group = "what")]
    pub(crate) example: bool,
    /// Print the path of the saved configuration
    #[arg(long, group = "what")]
    pub(crate) path: bool,
    /// Check a tunnels file and list all errors
    #[arg(long, group = "what", value_name = "FILE", num_args = 0..=1, default_missing_value = "retunnel.yml")]
    pub(crate) check: Option<PathBuf>,
    /// Check a server configuration file and list all errors
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
    /// Address for visitors and clients [default: 127.0.0.1:6400]
    #[arg(long, env = "RETUNNEL_SERVER_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// Domain of the tunnels; each gets a subdomain [default: localhost]
    #[arg(long, env = "RETUNNEL_SERVER_DOMAIN", value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Directory of the database [default: the user's data directory]
    #[arg(long, env = "RETUNNEL_SERVER_DATA_DIR", value_name = "DIR", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Public ports for TCP tunnels, or `off` [default: 20000-29999]
    #[arg(long, env = "RETUNNEL_SERVER_TCP_PORTS", value_name = "FIRST-LAST")]
    pub(crate) tcp_ports: Option<String>,
    /// Enable TLS: PEM file with the certificate followed by its intermediates; reloaded on SIGHUP
    #[arg(long, env = "RETUNNEL_SERVER_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate
    #[arg(long, env = "RETUNNEL_SERVER_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Enable TLS with a self-signed certificate, for tests; it is made once and kept in the data directory
    #[arg(long, env = "RETUNNEL_SERVER_TLS_SELF_SIGNED", conflicts_with_all = ["tls_cert", "tls_key"])]
    pub(crate) tls_self_signed: bool,
    /// Who can create an account: open, invite or closed [default: open on loopback, otherwise invite]
    #[arg(long, env = "RETUNNEL_SERVER_REGISTRATION", value_name = "POLICY")]
    pub(crate) registration: Option<String>,
    /// Public URL when behind a reverse proxy, for example https://tunnel.example.com
    #[arg(long, env = "RETUNNEL_SERVER_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Proxies whose X-Forwarded-* headers are trusted, for example 10.0.0.0/8,127.0.0.1
    #[arg(long, env = "RETUNNEL_SERVER_TRUSTED_PROXIES", value_name = "NETS", value_delimiter = ',')]
    pub(crate) trusted_proxies: Option<Vec<String>>,
    /// DNS server for the verification of custom host names [default: the system's]
    #[arg(long, env = "RETUNNEL_SERVER_DNS_RESOLVER", value_name = "ADDRESS:PORT")]
    pub(crate) dns_resolver: Option<String>,
    /// Log every visitor request
    #[arg(long, env = "RETUNNEL_SERVER_ACCESS_LOG", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL",
          value_parser = boolean)]
    pub(crate) access_log: Option<bool>,
    /// Log format
    #[arg(long, env = "RETUNNEL_SERVER_LOG_FORMAT", value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Seconds that active transfers have to finish on shutdown [default: 20]
    #[arg(long, env = "RETUNNEL_SERVER_GRACE_PERIOD", value_name = "SECONDS")]
    pub(crate) grace_period: Option<f64>,
    /// Worker threads: fewer use less CPU per request, more handle more requests [default: half the CPU cores]
    #[arg(long, env = "RETUNNEL_SERVER_THREADS", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[cfg(feature = "server")]
#[derive(Debug, Subcommand)]
pub(crate) enum ServerAction {
    /// Create an invite code for one registration
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
    /// Expose this local port instead of the sample service
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Exit after the request, with 0 on success or 1 on failure
    #[arg(long)]
    pub(crate) once: bool,
}
