//! The web inspector: a local web server that shows captured requests and replays them.
//!
//! Call [`Inspector::bind`] before the client starts, because the client needs its observer, and [`Inspector::serve`] after.

mod api;
mod capture;
mod context;
mod decode;
mod export;
mod failure;
mod guard;
mod head;
mod mask;
mod messages;
mod ngrok;
mod pages;
mod record;
mod replay;
mod sides;
mod store;
mod streamed;
mod view;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use retunnel_client::{Client, Event, Events, tap::Observer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::sleep};

#[cfg(all(test, feature = "server"))]
pub(crate) use failure::FailureCode;

use crate::{
    args::InspectArgs,
    exit::{InspectorListenError, Usage},
    variables::Variables,
};

/// The default port. If it is in use, the next ones are tried.
const PORT: u16 = 4040;
/// Number of ports to try, and so of clients with an inspector on one machine.
const PORTS: u16 = 100;
/// Maximum number of connections. A browser opens six for each page.
const MAX_CONNECTIONS: usize = 128;
/// Timeout for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes captured of each body by default.
const BODY_LIMIT: usize = 256 * 1024;

/// The settings of the inspector.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where to listen; `None` means the first free port from 4040.
    address: Option<SocketAddr>,
    hosts: Vec<String>,
    mask: mask::Mask,
    body_limit: usize,
}

impl Options {
    /// Whether the user gave an address.
    pub(crate) const fn has_address(&self) -> bool {
        self.address.is_some()
    }

    /// Reads option, then environment, then default. `None` if the inspector is disabled.
    pub(crate) fn new(args: &InspectArgs, variables: &Variables) -> anyhow::Result<Option<Self>> {
        let address = match (&args.inspect_addr, args.no_inspect) {
            (_, true) => return Ok(None),
            (Some(text), false) => Some(text.clone()),
            (None, false) => variables.value("RETUNNEL_INSPECT_ADDR"),
        };
        if args.inspect_addr.is_none() && variables.is_on("RETUNNEL_NO_INSPECT")? {
            return Ok(None);
        }
        let address = match address {
            Some(text) => Some(parse(&text).ok_or_else(|| {
                Usage(format!(
                    "inspector address: expected ADDRESS:PORT or PORT, for example 127.0.0.1:4040 (got `{text}`)"
                ))
            })?),
            None => None,
        };
        let names = |given: &[String], variable: &str| match (given, variables.value(variable)) {
            ([], Some(value)) => vec![value],
            (given, _) => given.to_vec(),
        };
        let split =
            |names: Vec<String>| names.iter().flat_map(|name| name.split(',')).map(|n| n.trim().to_owned()).collect();
        Ok(Some(Self {
            address,
            hosts: split(names(&args.inspect_host, "RETUNNEL_INSPECT_HOST")),
            mask: mask::Mask::new(&names(&args.inspect_mask, "RETUNNEL_INSPECT_MASK")),
            body_limit: args.inspect_body_limit.map_or(BODY_LIMIT, |kib| kib as usize * 1024),
        }))
    }
}

fn parse(text: &str) -> Option<SocketAddr> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    match text.strip_prefix("localhost:") {
        Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

/// An inspector that listens.
#[derive(Debug)]
pub(crate) struct Inspector {
    listener: TcpListener,
    address: SocketAddr,
    options: Options,
    store: Arc<store::Store>,
}

impl Inspector {
    /// Starts to listen.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) async fn bind(options: Options) -> Result<Self, InspectorListenError> {
        let first = options.address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, PORT).into());
        let ports = if options.address.is_some() { 1 } else { PORTS };
        let mut failure = None;
        for step in 0..ports {
            let address = SocketAddr::new(first.ip(), first.port() + step);
            match TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener))) {
                Ok((address, listener)) => {
                    let store = Arc::new(store::Store::new(options.body_limit));
                    return Ok(Self { listener, address, options, store });
                }
                Err(source) => {
                    failure.get_or_insert(InspectorListenError { address, source });
                }
            }
        }
        Err(failure.expect("at least one port was tried"))
    }

    /// The observer for the client's exchanges.
    pub(crate) fn observer(&self) -> Arc<dyn Observer> {
        Arc::new(capture::Recorder::new(Arc::clone(&self.store), None))
    }

    /// The URL for a browser.
    pub(crate) fn url(&self) -> String {
        let shown = if self.address.ip().is_unspecified() {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.address.port())
        } else {
            self.address
        };
        format!("http://{shown}")
    }

    /// Whether only this machine can reach it.
    pub(crate) const fn is_private(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Serves until the tasks are dropped.
    pub(crate) fn serve(self, client: Arc<Client>) -> JoinSet<()> {
        let store = Arc::clone(&self.store);
        let events = client.events();
        let state = Arc::new(context::Context {
            store: self.store,
            mask: self.options.mask,
            guard: Arc::new(guard::Guard::new(self.address, &self.options.hosts)),
            client,
            opened: std::sync::Mutex::default(),
            worker: Arc::new(Semaphore::new(1)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(self.listener, api::router(state)));
        tasks.spawn(follow(events, store));
        tasks
    }
}

/// Notes what the server reports about visitors' requests.
async fn follow(mut events: Events, store: Arc<store::Store>) {
    while let Some(event) = events.next().await {
        if let Event::Request { tunnel, request, .. } = event {
            store.reported(&tunnel, &request);
        }
    }
}

async fn accept(listener: TcpListener, router: axum::Router) {
    let mut connections = JoinSet::new();
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((socket, _)) = accepted else {
                    // Out of file descriptors: wait until some are free.
                    sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router.clone()));
                // A browser that disconnects is not a failure.
                connections.spawn(async move { drop(connection.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
