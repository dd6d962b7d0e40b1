//! Opening a tunnel: what both dialects do alike between a client's request and the answer.

use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use rand::RngExt;
use retunnel_proto::{
    TunnelId,
    message::{Refusal, RefusalCode, ReqTunnel, TunnelProtocol},
};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tracing::info;

use crate::{
    auth::Account,
    core::Core,
    edge::{
        access::BasicAuth,
        host::{random_name, validate_name},
        origin::LocalOrigin,
        tcp,
    },
    registry::Key,
    tunnel::{Activity, Tunnel, Upstream},
};

/// Random names tried before the server gives up. With a million names and ten thousand tunnels, one in a hundred
/// tries meets a taken name.
const NAME_TRIES: usize = 16;
/// Ports tried when the client leaves the choice to the server.
const PORT_TRIES: usize = 150;

/// Who opens a tunnel, and where its visitors shall go.
pub(crate) struct Opening<'a> {
    pub(crate) account: &'a Account,
    /// Told when visitors did something.
    pub(crate) changed: &'a Arc<Notify>,
    /// Whether this session has the tunnel already.
    pub(crate) open_here: &'a (dyn Fn(&TunnelId) -> bool + Sync),
    pub(crate) upstream: &'a (dyn Fn(&TunnelId, &Key) -> Upstream + Sync),
}

/// What an HTTP tunnel does with its requests.
#[derive(Debug, Clone, Default)]
struct HttpOptions {
    access: Option<BasicAuth>,
    origin: Option<LocalOrigin>,
}

/// Names a tunnel: the same for the same address, and never part of another one, because all have the same length.
/// 2.x clients look for it inside the URL of a request.
pub(crate) fn tunnel_id(key: &Key) -> TunnelId {
    let digest = Sha256::digest(key.to_string());
    TunnelId::from_text(format!("t{}", HEXLOWER.encode(&digest[..10])))
}

/// Leases the wanted address, or a free one, and makes the tunnel live.
///
/// # Errors
/// The refusal to send to the client. Nothing is left behind then.
pub(crate) async fn open_tunnel(
    core: &Arc<Core>,
    request: &ReqTunnel,
    opening: Opening<'_>,
) -> Result<Arc<Tunnel>, Refusal> {
    if core.draining.is_cancelled() {
        return Err(Refusal {
            code: RefusalCode::ShuttingDown,
            message: "the server is stopping".into(),
            retry_after: Some(1),
        });
    }
    let access = match &request.http_auth {
        Some(_) if request.protocol == TunnelProtocol::Tcp => {
            return Err(Refusal::new(RefusalCode::InvalidRequest, "a TCP tunnel cannot ask visitors for a password"));
        }
        Some(auth) => {
            Some(BasicAuth::new(auth).map_err(|error| Refusal::new(RefusalCode::InvalidRequest, error.to_string()))?)
        }
        None => None,
    };
    let local_origin = match &request.local_origin {
        Some(_) if request.protocol == TunnelProtocol::Tcp => {
            return Err(Refusal::new(RefusalCode::InvalidRequest, "a TCP tunnel has no Host header to rewrite"));
        }
        Some(text) => Some(LocalOrigin::parse(text).ok_or_else(|| {
            Refusal::new(RefusalCode::InvalidRequest, "the host for the local service is not HOST or HOST:PORT")
        })?),
        None => None,
    };
    let hostname = match &request.hostname {
        Some(_) if request.protocol == TunnelProtocol::Tcp => {
            return Err(Refusal::new(RefusalCode::InvalidRequest, "a TCP tunnel has a port, not a host name"));
        }
        Some(hostname) => Some(core.hostnames.may_serve(hostname, opening.account.id).await?),
        None => None,
    };
    let tunnel = match request.protocol {
        TunnelProtocol::Http if let Some(hostname) = hostname => {
            let options = HttpOptions { access, origin: local_origin };
            claim(core, Key::Host(hostname), TunnelProtocol::Http, &opening, options)?
        }
        TunnelProtocol::Http => http(core, request, &opening, HttpOptions { access, origin: local_origin })?,
        TunnelProtocol::Tcp => tcp(core, request, &opening)?,
    };
    info!(tunnel = %tunnel.key, url = %tunnel.url, "tunnel opened");
    Ok(tunnel)
}

fn http(
    core: &Arc<Core>,
    request: &ReqTunnel,
    opening: &Opening<'_>,
    options: HttpOptions,
) -> Result<Arc<Tunnel>, Refusal> {
    if let Some(wanted) = &request.subdomain {
        let name = validate_name(wanted)?;
        return claim(core, Key::Name(name), TunnelProtocol::Http, opening, options);
    }
    for _ in 0..NAME_TRIES {
        let key = Key::Name(random_name());
        if core.registry.is_free(&key) {
            match claim(core, key, TunnelProtocol::Http, opening, options.clone()) {
                Err(refusal) if refusal.code == RefusalCode::NameUnavailable => {}
                result => return result,
            }
        }
    }
    Err(Refusal::new(RefusalCode::Internal, "no free name was found"))
}

fn tcp(core: &Arc<Core>, request: &ReqTunnel, opening: &Opening<'_>) -> Result<Arc<Tunnel>, Refusal> {
    let Some(range) = core.config.tcp_ports.clone() else {
        return Err(Refusal::new(RefusalCode::TcpDisabled, "this server has no TCP tunnels (`--tcp-ports`)"));
    };
    if let Some(port) = request.remote_port {
        if !range.contains(&port) {
            let message = format!("port {port} is outside this server's range {}-{}", range.start(), range.end());
            return Err(Refusal::new(RefusalCode::PortOutOfRange, message));
        }
        let tunnel = claim(core, Key::Port(port), TunnelProtocol::Tcp, opening, HttpOptions::default())?;
        return listen(core, tunnel, port);
    }
    let count = usize::from(range.end() - range.start()) + 1;
    let first = rand::rng().random_range(0..count);
    for offset in 0..count.min(PORT_TRIES) {
        let port = range.start() + u16::try_from((first + offset) % count).unwrap_or_default();
        let key = Key::Port(port);
        if !core.registry.is_free(&key) {
            continue;
        }
        match claim(core, key, TunnelProtocol::Tcp, opening, HttpOptions::default()) {
            Ok(tunnel) => match listen(core, tunnel, port) {
                Err(refusal) if refusal.code == RefusalCode::PortUnavailable => {}
                result => return result,
            },
            Err(refusal) if refusal.code == RefusalCode::PortUnavailable => {}
            Err(refusal) => return Err(refusal),
        }
    }
    let message = format!("no port of {}-{} is free", range.start(), range.end());
    Err(Refusal { code: RefusalCode::PortsExhausted, message, retry_after: Some(10) })
}

/// Binds the port of a claimed tunnel, unless it is still bound for its owner. A port that cannot be bound is released.
fn listen(core: &Arc<Core>, tunnel: Arc<Tunnel>, port: u16) -> Result<Arc<Tunnel>, Refusal> {
    if core.registry.has_listener(port) {
        return Ok(tunnel);
    }
    match tcp::listen(core, port) {
        Ok(listener) => {
            core.registry.add_listener(port, listener);
            Ok(tunnel)
        }
        Err(error) => {
            core.registry.release(&tunnel);
            let message = format!("port {port} cannot be opened on the server: {error}");
            Err(Refusal::new(RefusalCode::PortUnavailable, message))
        }
    }
}

fn claim(
    core: &Arc<Core>,
    key: Key,
    protocol: TunnelProtocol,
    opening: &Opening<'_>,
    options: HttpOptions,
) -> Result<Arc<Tunnel>, Refusal> {
    let id = tunnel_id(&key);
    if (opening.open_here)(&id) {
        let code = if key.port().is_some() { RefusalCode::PortUnavailable } else { RefusalCode::NameUnavailable };
        return Err(Refusal::new(code, format!("{key} is open in this session already")));
    }
    let url = match &key {
        Key::Name(name) => core.config.http_url(name, core.address.port()),
        Key::Host(hostname) => core.config.hostname_url(hostname, core.address.port()),
        Key::Port(port) => core.config.tcp_url(*port),
    };
    let tunnel = Arc::new(Tunnel {
        upstream: (opening.upstream)(&id, &key),
        id,
        key,
        protocol,
        account: opening.account.id,
        url,
        access: options.access,
        local_origin: options.origin,
        activity: Activity::new(Arc::clone(opening.changed)),
        closed: core.stopping.child_token(),
        refusal: OnceLock::new(),
    });
    core.registry.claim(&tunnel)?;
    Ok(tunnel)
}
