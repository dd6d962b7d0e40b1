//! Where a request goes, by the host that it names.

use retunnel_proto::http1::host::Host;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// The base domain, `localhost` or an address: the REST API and the clients.
    Api,
    /// A name below the base domain.
    Tunnel(String),
    /// Another host name; an account may have registered it.
    Foreign(String),
}

impl Route {
    /// Where a request for this host goes on a server with this base domain.
    pub(super) fn of(host: &Host, base_domain: &str) -> Self {
        let name = match host {
            Host::Address(_) => return Self::Api,
            Host::Name(name) => name,
        };
        if name == base_domain || name == "localhost" {
            return Self::Api;
        }
        match name.strip_suffix(base_domain).and_then(|rest| rest.strip_suffix('.')) {
            Some(label) if !label.contains('.') => Self::Tunnel(label.to_owned()),
            // A number such as 2130706433 is an address to some programs; it is no name here.
            _ => Self::Foreign(name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str) -> Option<Route> {
        Host::parse(host.as_bytes()).map(|host| Route::of(&host, "example.com"))
    }

    #[test]
    fn row_15_spellings_of_a_host_reach_the_same_tunnel() {
        for host in
            ["app.example.com", "APP.Example.COM", "app.example.com.", "app.example.com:8080", "app.example.com:443"]
        {
            assert_eq!(route(host), Some(Route::Tunnel("app".into())), "{host}");
        }
    }

    #[test]
    fn rows_14_and_16_other_hosts_never_reach_a_tunnel() {
        for host in ["", "a,b", "a@b", "a b", "/", "a:99999", "a:80x", "a:-1", "[::1", "[::1]x", "..", "a..b", "a:1:2"]
        {
            assert_eq!(route(host), None, "{host}");
        }
        for host in ["1.2.3.4", "[::1]:80", "example.com", "localhost:6400", "EXAMPLE.com."] {
            assert_eq!(route(host), Some(Route::Api), "{host}");
        }
        for host in ["x.y.example.com", "2130706433", "other.test", "notexample.com", "0x7f.1"] {
            assert_eq!(route(host), Some(Route::Foreign(host.into())), "{host}");
        }
    }
}
