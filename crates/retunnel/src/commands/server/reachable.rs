//! How a server is reached from other machines, and what may keep them away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use retunnel_server::config::ServerConfig;

/// The domain of a server that was given none.
const DEFAULT_DOMAIN: &str = "localhost";

/// What clients name in `--server`.
pub(super) fn server_url(config: &ServerConfig, address: SocketAddr) -> String {
    if config.public_url.is_some() || config.domain != DEFAULT_DOMAIN || address.ip().is_loopback() {
        // A certificate is valid for a name, not for an address.
        let by_name = config.public_url.is_some() || config.tls.is_some() || !address.ip().is_loopback();
        return if by_name { config.base_url(address.port()) } else { address.to_string() };
    }
    let ip =
        if address.ip().is_unspecified() { own_address(address.ip()).unwrap_or(address.ip()) } else { address.ip() };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

/// What other machines will not like.
pub(super) fn warnings(config: &ServerConfig, address: SocketAddr) -> Vec<&'static str> {
    if address.ip().is_loopback() {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    if config.public_host() == DEFAULT_DOMAIN {
        warnings.push(
            "the domain is `localhost`, so the URLs of tunnels work on this machine only; choose a domain with `--domain`",
        );
    }
    if config.base_url(address.port()).starts_with("http://") {
        warnings.push(
            "nothing is encrypted: tokens and visitors' data can be read on the way; use `--tls-cert` and `--tls-key`, \
             `--tls-self-signed` for tests, or a proxy with TLS and `--public-url https://…`",
        );
    }
    warnings
}

/// The address of this machine on the way to the internet. Nothing is sent: the system only chooses a route.
fn own_address(unspecified: IpAddr) -> Option<IpAddr> {
    // Addresses for documentation, which nobody has.
    const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
    const V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);
    let towards = |to: SocketAddr| {
        let from: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    // A socket of IPv6 accepts IPv4 as well.
    towards(V4).or_else(|| towards(V6).filter(|_| unspecified.is_ipv6()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(domain: &str, public_url: Option<&str>) -> ServerConfig {
        let mut config = ServerConfig::new("data".into());
        config.domain = domain.into();
        config.public_url = public_url.map(|url| url.parse().expect("a URL"));
        config
    }

    #[test]
    fn the_address_for_clients_works_from_where_they_are() {
        let address = |text: &str| text.parse().expect("an address");
        for (domain, public_url, listen, url) in [
            ("localhost", None, "127.0.0.1:6400", "127.0.0.1:6400"),
            ("localhost", None, "192.0.2.7:6400", "http://192.0.2.7:6400"),
            ("tunnel.test", None, "127.0.0.1:6400", "127.0.0.1:6400"),
            ("tunnel.test", None, "0.0.0.0:6400", "http://tunnel.test:6400"),
            ("tunnel.test", Some("https://tunnel.test"), "127.0.0.1:6400", "https://tunnel.test"),
        ] {
            assert_eq!(
                server_url(&config(domain, public_url), address(listen)),
                url,
                "{domain} {public_url:?} {listen}"
            );
        }
        let url = server_url(&config("localhost", None), address("0.0.0.0:6400"));
        // A machine without a network has no other address.
        let expected = own_address(Ipv4Addr::UNSPECIFIED.into()).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        assert_eq!(url, format!("http://{expected}:6400"));
    }

    #[test]
    fn what_keeps_other_machines_away_is_said() {
        let listen: SocketAddr = "0.0.0.0:80".parse().expect("an address");
        let count = |domain, public_url| warnings(&config(domain, public_url), listen).len();
        assert_eq!(count("localhost", None), 2);
        assert_eq!(count("tunnel.test", None), 1);
        assert_eq!(count("tunnel.test", Some("https://tunnel.test")), 0);
        assert_eq!(warnings(&config("localhost", None), "127.0.0.1:80".parse().expect("an address")).len(), 0);
    }
}
