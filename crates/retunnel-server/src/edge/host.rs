//! Host names: what a request is routed by, and what may be asked for as a name.

use std::net::{IpAddr, Ipv6Addr};

use rand::RngExt;
use retunnel_proto::message::{Refusal, RefusalCode};

/// Longest host name (RFC 1035) and label.
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// A host as a key: lower case, without port and trailing dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Name(String),
    Address(IpAddr),
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// The base domain, `localhost` or an address: the REST API and the clients.
    Api,
    /// A name below the base domain.
    Tunnel(String),
    /// A host name that is not ours; somebody may have registered it.
    Foreign(String),
}

impl Host {
    /// Reads `host`, `host:port`, `1.2.3.4:port` or `[::1]:port`; `None` when it is none of these.
    pub(crate) fn parse(authority: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(authority).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, behind) = rest.split_once(']')?;
                let port = if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) };
                (inside.parse::<Ipv6Addr>().ok().map(|address| Self::Address(address.into()))?, port)
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                (Self::name(host)?, port)
            }
        };
        // An empty port is allowed by RFC 3986.
        let valid = port.is_none_or(|port| {
            port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
        });
        valid.then_some(host)
    }

    fn name(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        (name.len() <= MAX_HOST && name.split('.').all(label)).then(|| Self::Name(name.to_ascii_lowercase()))
    }

    /// Where a request for this host goes on a server with this base domain.
    pub(crate) fn route(&self, base_domain: &str) -> Route {
        let name = match self {
            Self::Address(_) => return Route::Api,
            Self::Name(name) => name,
        };
        if name == base_domain || name == "localhost" {
            return Route::Api;
        }
        match name.strip_suffix(base_domain).and_then(|rest| rest.strip_suffix('.')) {
            Some(label) if !label.contains('.') => Route::Tunnel(label.to_owned()),
            // A number such as 2130706433 is an address to some programs; it is nobody's name here.
            _ => Route::Foreign(name.clone()),
        }
    }
}

/// Names that would look like a part of the server itself.
const RESERVED: &[&str] = &[
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "console",
    "dns",
    "ftp",
    "hostmaster",
    "imap",
    "isatap",
    "localhost",
    "login",
    "mail",
    "metrics",
    "mx",
    "ns",
    "ns1",
    "ns2",
    "oauth",
    "pop",
    "postmaster",
    "retunnel",
    "root",
    "security",
    "smtp",
    "ssh",
    "ssl",
    "support",
    "system",
    "webmaster",
    "wpad",
    "www",
];

/// Checks a name that a client asks for and gives it in lower case.
///
/// # Errors
/// [`RefusalCode::NameInvalid`] or [`RefusalCode::NameReserved`].
pub(crate) fn validate_name(wanted: &str) -> Result<String, Refusal> {
    let invalid = |why: &str| {
        let message = format!("a name has 1 to 63 letters, digits and hyphens, none of them first or last: {why}");
        Err(Refusal::new(RefusalCode::NameInvalid, message))
    };
    if wanted.is_empty() || wanted.len() > MAX_LABEL {
        return invalid(&format!("this one has {} characters", wanted.len()));
    }
    let name = wanted.to_ascii_lowercase();
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return invalid("this one has another character");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return invalid("this one begins or ends with a hyphen");
    }
    // Punycode (`xn--`) shows as other letters in browsers, so that it can look like somebody else's name; RFC 5891
    // keeps every label with hyphens in places three and four for such encodings.
    if name.as_bytes().get(2..4) == Some(b"--") {
        return invalid("hyphens in places three and four are kept for international names, which are not supported");
    }
    if RESERVED.contains(&name.as_str()) {
        return Err(Refusal::new(
            RefusalCode::NameReserved,
            format!("the name `{name}` is reserved; choose another one"),
        ));
    }
    Ok(name)
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "ample", "aqua", "arctic", "azure", "bold", "brave", "breezy", "bright", "brisk",
    "bronze", "calm", "candid", "cheery", "civil", "clean", "clear", "clever", "coral", "cosmic", "cozy", "crisp",
    "curious", "daring", "deft", "dusty", "eager", "early", "easy", "epic", "fair", "fancy", "fast", "fine", "fleet",
    "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "green", "handy", "happy", "hardy", "honest",
    "humble", "ideal", "ivory", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "lunar", "mellow",
    "merry", "mighty", "modest", "neat", "nimble", "noble", "novel", "open", "opal", "patient", "plucky", "polite",
    "proud", "quick", "quiet", "rapid", "ready", "regal", "robust", "rosy", "royal", "ruby", "sandy", "serene",
    "sharp", "shiny", "silent", "silver", "simple", "smart", "snowy", "solar", "solid", "spry", "steady", "stellar",
    "sturdy", "sunny", "super", "swift", "tidy", "tranquil", "trusty", "upbeat", "urban", "vast", "velvet", "vivid",
    "warm", "wise", "witty", "young", "zesty",
];

const NOUNS: &[&str] = &[
    "acorn", "alpaca", "anchor", "apple", "arrow", "aspen", "badger", "bamboo", "beacon", "bear", "beaver", "birch",
    "bison", "bridge", "brook", "canyon", "cedar", "cliff", "cloud", "clover", "comet", "condor", "coyote", "crane",
    "creek", "cricket", "dawn", "deer", "delta", "dolphin", "dove", "dragon", "eagle", "ember", "falcon", "fern",
    "ferret", "finch", "fjord", "forest", "fox", "garden", "gecko", "glacier", "grove", "harbor", "hare", "hawk",
    "heron", "hill", "ibis", "iris", "island", "jaguar", "juniper", "kestrel", "kiwi", "koala", "lagoon", "lake",
    "lark", "lemur", "lily", "lion", "llama", "lotus", "lynx", "maple", "marmot", "meadow", "meteor", "mint", "moon",
    "moose", "nebula", "newt", "oak", "ocean", "orca", "orchid", "osprey", "otter", "owl", "panda", "pebble",
    "penguin", "pine", "planet", "plum", "pony", "puffin", "quail", "rabbit", "raven", "reef", "river", "robin",
    "salmon", "seal", "sparrow", "spruce", "stone", "stork", "summit", "swan", "thistle", "tiger", "tulip", "turtle",
    "valley", "walnut", "whale", "willow", "wolf", "wren", "yak", "zebra",
];

/// A readable name such as `brisk-otter-41`, one of more than ten million.
pub(crate) fn random_name() -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let noun = NOUNS[rng.random_range(0..NOUNS.len())];
    format!("{adjective}-{noun}-{}", rng.random_range(10..1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str) -> Option<Route> {
        Host::parse(host.as_bytes()).map(|host| host.route("example.com"))
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

    #[test]
    fn row_20_names_that_are_refused() {
        let long = "a".repeat(64);
        for name in ["", &long, "-a", "a-", "a.b", "a_b", "..", "ä", "xn--pple-43d", "xn--abc", "a b", "а"] {
            assert_eq!(validate_name(name).expect_err(name).code, RefusalCode::NameInvalid, "{name}");
        }
        for name in ["www", "api", "ADMIN"] {
            assert_eq!(validate_name(name).expect_err(name).code, RefusalCode::NameReserved, "{name}");
        }
        assert_eq!(validate_name("My-App2").expect("valid"), "my-app2");
        assert_eq!(validate_name(&"a".repeat(63)).expect("valid").len(), 63);
    }

    #[test]
    fn random_names_are_valid() {
        for _ in 0..1000 {
            let name = random_name();
            assert_eq!(validate_name(&name).as_deref(), Ok(name.as_str()));
        }
        assert!(RESERVED.is_sorted());
    }
}
