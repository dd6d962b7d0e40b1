//! Opening a tunnel: from a client's request to a live address.

use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use rand::RngExt;
use retunnel_proto::{
    TunnelId,
    message::{Refusal, RefusalCode, ReqTunnel, TunnelProtocol},
};
use sha2::{Digest, Sha256};
use tracing::info;

use super::Session;
use crate::{
    policy::Rules,
    tunnel::{
        Tunnel,
        activity::Activity,
        address::PublicAddress,
        name::{random_name, validate_name},
        upstream::Upstream,
    },
};

/// Random names tried before the server gives up. With ten million names and a hundred thousand tunnels, one attempt in a
/// hundred meets a taken name.
const NAME_TRIES: usize = 16;
/// Ports tried when the client leaves the choice to the server.
const PORT_TRIES: usize = 150;

/// Makes the upstream of a tunnel with this id, address and URL.
pub(in crate::control) type MakeUpstream<'a> =
    &'a (dyn Fn(&TunnelId, &PublicAddress, &str) -> Box<dyn Upstream> + Sync);

/// Names a tunnel: the same for the same address, and never part of another one, because all have the same length.
/// 2.x clients look for it inside the URL of a request.
fn tunnel_id(address: &PublicAddress) -> TunnelId {
    let digest = Sha256::digest(address.to_string());
    TunnelId::from_text(format!("t{}", HEXLOWER.encode(&digest[..10])))
}

impl Session {
    /// Leases the requested address, or a free one, and makes the tunnel live.
    ///
    /// # Errors
    /// The refusal to send to the client. Nothing is left of the tunnel then.
    pub(in crate::control) async fn open(
        &mut self,
        request: &ReqTunnel,
        upstream: MakeUpstream<'_>,
    ) -> Result<Arc<Tunnel>, Refusal> {
        let opened = self.open_any(request, upstream).await;
        match &opened {
            Ok(tunnel) => {
                info!(tunnel = %tunnel.address, url = %tunnel.url, "tunnel opened");
                self.tunnels.insert(tunnel.id.clone(), Arc::clone(tunnel));
            }
            Err(refusal) => info!(code = %refusal.code, "tunnel refused"),
        }
        opened
    }

    async fn open_any(&self, request: &ReqTunnel, upstream: MakeUpstream<'_>) -> Result<Arc<Tunnel>, Refusal> {
        if self.control.running.draining.is_cancelled() {
            return Err(Refusal::new(RefusalCode::ShuttingDown, "the server is stopping").after(1));
        }
        // Mistakes are reported before an address is taken.
        Rules::compile(&request.rules, request.protocol)?;
        match (request.protocol, &request.hostname) {
            (TunnelProtocol::Http, None) => self.open_name(request, upstream).await,
            (TunnelProtocol::Http, Some(hostname)) => {
                let hostname = self.control.hostnames.may_serve(hostname, self.account.id).await?;
                self.claim(PublicAddress::Host(hostname), request, upstream).await
            }
            (TunnelProtocol::Tcp, None) => self.open_port(request, upstream).await,
            (TunnelProtocol::Tcp, Some(_)) => {
                Err(Refusal::new(RefusalCode::InvalidRequest, "a TCP tunnel has a port, not a host name"))
            }
            (other, _) => Err(Refusal::new(RefusalCode::InvalidRequest, format!("this server has no {other} tunnels"))),
        }
    }

    async fn open_name(&self, request: &ReqTunnel, upstream: MakeUpstream<'_>) -> Result<Arc<Tunnel>, Refusal> {
        if let Some(wanted) = &request.subdomain {
            return self.claim(PublicAddress::Name(validate_name(wanted)?), request, upstream).await;
        }
        for _ in 0..NAME_TRIES {
            let address = PublicAddress::Name(random_name());
            if self.control.registry.is_free(&address) {
                match self.claim(address, request, upstream).await {
                    Err(refusal) if refusal.code == RefusalCode::NameUnavailable => {}
                    result => return result,
                }
            }
        }
        Err(Refusal::new(RefusalCode::Internal, "no free name was found"))
    }

    async fn open_port(&self, request: &ReqTunnel, upstream: MakeUpstream<'_>) -> Result<Arc<Tunnel>, Refusal> {
        let Some(range) = self.control.config.tcp_ports.clone() else {
            return Err(Refusal::new(RefusalCode::TcpDisabled, "this server has no TCP tunnels (`--tcp-ports`)"));
        };
        if let Some(port) = request.remote_port {
            if !range.contains(&port) {
                let message = format!("port {port} is outside this server's range {}-{}", range.start(), range.end());
                return Err(Refusal::new(RefusalCode::PortOutOfRange, message));
            }
            return self.claim(PublicAddress::Port(port), request, upstream).await;
        }
        let count = usize::from(range.end() - range.start()) + 1;
        let first = rand::rng().random_range(0..count);
        for offset in 0..count.min(PORT_TRIES) {
            let port = range.start() + u16::try_from((first + offset) % count).unwrap_or_default();
            let address = PublicAddress::Port(port);
            if self.control.registry.is_free(&address) {
                match self.claim(address, request, upstream).await {
                    Err(refusal) if refusal.code == RefusalCode::PortUnavailable => {}
                    result => return result,
                }
            }
        }
        let message = format!("no port of {}-{} is free", range.start(), range.end());
        Err(Refusal::new(RefusalCode::PortsExhausted, message).after(10))
    }

    async fn claim(
        &self,
        address: PublicAddress,
        request: &ReqTunnel,
        upstream: MakeUpstream<'_>,
    ) -> Result<Arc<Tunnel>, Refusal> {
        let control = &*self.control;
        let id = tunnel_id(&address);
        if self.tunnels.contains_key(&id) {
            let is_port = address.port().is_some();
            let code = if is_port { RefusalCode::PortUnavailable } else { RefusalCode::NameUnavailable };
            return Err(Refusal::new(code, format!("{address} is open in this session already")));
        }
        let url = match &address {
            PublicAddress::Name(name) => control.config.http_url(name, control.address.port()),
            PublicAddress::Host(hostname) => control.config.hostname_url(hostname, control.address.port()),
            PublicAddress::Port(port) => control.config.tcp_url(*port),
        };
        let tunnel = Arc::new(Tunnel {
            upstream: upstream(&id, &address, &url),
            policy: Box::new(Rules::compile(&request.rules, request.protocol)?),
            id,
            address,
            protocol: request.protocol,
            account: self.account.id,
            peer: self.peer,
            url,
            activity: Activity::new(Arc::clone(&self.changed)),
            closed: control.running.stopping.child_token(),
            refusal: OnceLock::new(),
        });
        control.registry.claim(&tunnel).await?;
        Ok(tunnel)
    }
}
