//! Proxies between a client and its server: which one applies, and the handshakes with them.

use std::{fmt, net::IpAddr, str::FromStr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{endpoint::is_loopback, validation::ValidationError};

/// Largest answer of an HTTP proxy.
const MAX_ANSWER: usize = 16 * 1024;
/// Longest name, user and password that SOCKS5 can carry.
const SOCKS_TEXT: usize = 255;

/// A proxy: `http://`, `https://`, `socks5://` or `socks5h://`, with `user:password@` if it requires them.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    kind: Kind,
    host: String,
    port: u16,
    login: Option<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP CONNECT.
    Http {
        /// The connection to the proxy uses TLS.
        tls: bool,
    },
    Socks5 {
        /// The proxy resolves the server's name.
        remote_names: bool,
    },
}

/// Without the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http { tls: false } => "http",
            Kind::Http { tls: true } => "https",
            Kind::Socks5 { remote_names: false } => "socks5",
            Kind::Socks5 { remote_names: true } => "socks5h",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Proxy {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        // The value may contain a password, so it is not repeated.
        let error = |reason| ValidationError { what: "proxy", value: "***".into(), reason };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (kind, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http { tls: false }, 80),
            "https" => (Kind::Http { tls: true }, 443),
            "socks5" => (Kind::Socks5 { remote_names: false }, 1080),
            "socks5h" | "socks" => (Kind::Socks5 { remote_names: true }, 1080),
            _ => return Err(error("expected http://, https://, socks5:// or socks5h://")),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (login, address) = match authority.rsplit_once('@') {
            Some((login, address)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                (Some((percent_decoded(user), percent_decoded(password))), address)
            }
            None => (None, authority),
        };
        if let Some((user, password)) = &login
            && (user.is_empty() || user.len() > SOCKS_TEXT || password.len() > SOCKS_TEXT)
        {
            return Err(error("the user name is empty, or user name or password is longer than 255 bytes"));
        }
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(error("expected HOST:PORT"));
        }
        let port = match port {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| error("the port is not a number from 1 to 65535"))?,
            None => default_port,
        };
        Ok(Self { kind, host: host.to_owned(), port, login })
    }
}

/// Decodes bytes written as `%41`.
fn percent_decoded(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A proxy's refusal to connect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    /// Trying again with the same values cannot help.
    pub(crate) is_final: bool,
}

impl Refused {
    pub(crate) fn new(reason: impl Into<String>, is_final: bool) -> Self {
        Self { reason: reason.into(), is_final }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::new(format!("ended the connection: {error}"), false)
    }
}

impl Proxy {
    /// Address of the proxy.
    pub(crate) fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Whether the connection to the proxy uses TLS.
    pub(crate) const fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Http { tls: true })
    }

    /// Whether the client must resolve the server's name.
    pub(crate) const fn wants_address(&self) -> bool {
        matches!(self.kind, Kind::Socks5 { remote_names: false })
    }

    /// Asks for a connection to the server. After that the socket carries the server's bytes.
    pub(crate) async fn open<S>(&self, socket: &mut S, host: &str, port: u16) -> Result<(), Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match self.kind {
            Kind::Http { .. } => self.connect(socket, host, port).await,
            Kind::Socks5 { .. } => self.socks5(socket, host, port).await,
        }
    }

    async fn connect<S>(&self, socket: &mut S, host: &str, port: u16) -> Result<(), Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some((user, password)) = &self.login {
            let login = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
            request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == MAX_ANSWER {
                return Err(Refused::new("sent an answer without an end", true));
            }
            // One byte at a time: what follows the head belongs to the server.
            head.push(socket.read_u8().await?);
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).take(120).collect();
        match line.split(' ').nth(1) {
            Some(status) if line.starts_with("HTTP/1.") && status.len() == 3 && status.starts_with('2') => Ok(()),
            Some("407") if self.login.is_none() => Err(Refused::new(
                format!("requires a user name and password (`{line}`); write them as USER:PASSWORD@HOST:PORT"),
                true,
            )),
            Some("407") => Err(Refused::new(format!("does not accept the user name or password (`{line}`)"), true)),
            _ => Err(Refused::new(format!("does not connect to {authority}: it answered `{line}`"), false)),
        }
    }

    /// RFC 1928, and RFC 1929 for the password.
    async fn socks5<S>(&self, socket: &mut S, host: &str, port: u16) -> Result<(), Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        const NO_LOGIN: u8 = 0;
        const PASSWORD: u8 = 2;
        let methods: &[u8] = if self.login.is_some() { &[5, 2, NO_LOGIN, PASSWORD] } else { &[5, 1, NO_LOGIN] };
        socket.write_all(methods).await?;
        let mut answer = [0; 2];
        socket.read_exact(&mut answer).await?;
        match (answer, &self.login) {
            ([5, NO_LOGIN], _) => {}
            ([5, PASSWORD], Some((user, password))) => {
                let mut message = vec![1];
                for text in [user, password] {
                    message.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                    message.extend_from_slice(text.as_bytes());
                }
                socket.write_all(&message).await?;
                socket.read_exact(&mut answer).await?;
                if answer[1] != 0 {
                    return Err(Refused::new("does not accept the user name or password", true));
                }
            }
            ([5, _], None) => {
                let how = "requires a user name and password; write them as socks5h://USER:PASSWORD@HOST:PORT";
                return Err(Refused::new(how, true));
            }
            ([5, _], Some(_)) => {
                return Err(Refused::new("requires another kind of authentication than a password", true));
            }
            _ => return Err(Refused::new("does not speak SOCKS5", true)),
        }
        let mut request = vec![5, 1, 0];
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => {
                request.push(1);
                request.extend_from_slice(&address.octets());
            }
            Ok(IpAddr::V6(address)) => {
                request.push(4);
                request.extend_from_slice(&address.octets());
            }
            Err(_) => {
                let length =
                    u8::try_from(host.len()).map_err(|_| Refused::new("cannot carry a name of this length", true))?;
                request.extend_from_slice(&[3, length]);
                request.extend_from_slice(host.as_bytes());
            }
        }
        request.extend_from_slice(&port.to_be_bytes());
        socket.write_all(&request).await?;
        let mut head = [0; 4];
        socket.read_exact(&mut head).await?;
        let reason = match head[1] {
            0 => None,
            2 => Some("its rules forbid it"),
            3 => Some("network unreachable"),
            4 => Some("host unreachable"),
            5 => Some("connection refused"),
            6 => Some("no answer in time"),
            _ => Some("it failed"),
        };
        if let Some(reason) = reason {
            return Err(Refused::new(format!("does not connect to {host}:{port}: {reason}"), head[1] == 2));
        }
        // The address it connected from is not needed.
        let length = match head[3] {
            1 => 4,
            4 => 16,
            _ => usize::from(socket.read_u8().await?),
        };
        let mut rest = vec![0; length + 2];
        socket.read_exact(&mut rest).await?;
        Ok(())
    }
}

/// A proxy, and the variable that it comes from.
type Named = (Proxy, Option<&'static str>);

/// How a server is reached, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Through(&'a Proxy, Option<&'static str>),
    /// No proxy is configured for such servers.
    Direct,
    /// A proxy is configured, but not for servers on this machine.
    Loopback,
    /// A proxy is configured, but `NO_PROXY` lists this server.
    Excepted,
}

/// Which servers are reached through which proxy.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    for_tls: Option<Named>,
    for_plain: Option<Named>,
    except: Vec<Exception>,
    /// Set explicitly, so it applies to servers on this machine too.
    always: bool,
}

impl Proxies {
    /// One proxy for every server, also for servers at loopback addresses.
    #[must_use]
    pub fn all(proxy: Proxy) -> Self {
        Self { for_tls: Some((proxy.clone(), None)), for_plain: Some((proxy, None)), except: Vec::new(), always: true }
    }

    /// Reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, each also in lower case, which wins. Servers at
    /// loopback addresses are reached directly.
    ///
    /// # Errors
    /// [`ValidationError`] of a variable whose value is not a proxy.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ValidationError> {
        let value = |name: &str| variable(&name.to_ascii_lowercase()).or_else(|| variable(name));
        let first = |names: &[&'static str]| {
            let found = names.iter().find_map(|name| Some((*name, value(name).filter(|value| !value.is_empty())?)));
            found
                .map(|(name, value)| match value.parse() {
                    Ok(proxy) => Ok((proxy, Some(name))),
                    Err(error) => Err(ValidationError { what: name, ..error }),
                })
                .transpose()
        };
        Ok(Self {
            for_tls: first(&["HTTPS_PROXY", "ALL_PROXY"])?,
            // A link is one long connection. A proxy that allows CONNECT for encrypted servers allows it as well.
            for_plain: first(&["HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY"])?,
            except: value("NO_PROXY").unwrap_or_default().split(',').filter_map(Exception::read).collect(),
            always: false,
        })
    }

    /// The proxy for a server.
    #[must_use]
    pub(crate) fn choose(&self, host: &str, port: u16, tls: bool) -> Option<&Proxy> {
        match self.route(host, port, tls) {
            Route::Through(proxy, _) => Some(proxy),
            _ => None,
        }
    }

    /// The route to a server.
    pub(crate) fn route(&self, host: &str, port: u16, tls: bool) -> Route<'_> {
        match if tls { &self.for_tls } else { &self.for_plain } {
            None => Route::Direct,
            Some(_) if !self.always && is_loopback(host) => Route::Loopback,
            Some(_) if self.except.iter().any(|except| except.matches(host, port)) => Route::Excepted,
            Some((proxy, variable)) => Route::Through(proxy, *variable),
        }
    }
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    Net(IpAddr, u8),
    /// A name and all names below it.
    Name(String, Option<u16>),
}

impl Exception {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "*" {
            return Some(Self::Everything);
        }
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
            let all = if address.is_ipv4() { 32 } else { 128 };
            return Some(Self::Net(address, bits.and_then(|bits| bits.parse().ok()).unwrap_or(all).min(all)));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().ok()),
            None => (text, None),
        };
        let name = name.trim_start_matches("*.").trim_start_matches('.').trim_matches(['[', ']']).to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Name(name, port))
    }

    fn matches(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self {
            Self::Everything => true,
            Self::Net(net, bits) => host.parse::<IpAddr>().is_ok_and(|address| is_within(address, *net, *bits)),
            Self::Name(name, only) => {
                let below = host.strip_suffix(name.as_str());
                only.is_none_or(|only| only == port) && below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

fn is_within(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let shift = width - u32::from(bits).min(width);
        a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
    };
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn proxies_are_read_and_never_shown_with_their_password() {
        for (text, shown) in [
            ("http://proxy.test:3128", "http://proxy.test:3128"),
            ("proxy.test:3128", "http://proxy.test:3128"),
            ("http://me:p%40ss@proxy.test/", "http://proxy.test:80"),
            ("socks5://[::1]:9050", "socks5://[::1]:9050"),
            ("SOCKS5H://a:b@proxy.test", "socks5h://proxy.test:1080"),
            ("https://me:pw@proxy.test", "https://proxy.test:443"),
        ] {
            assert_eq!(format!("{:?}", text.parse::<Proxy>().expect(text)), shown);
        }
        let proxy: Proxy = "http://me:p%40s%zs@proxy.test".parse().expect("valid");
        assert_eq!(proxy.login, Some(("me".into(), "p@s%zs".into())));
        for text in ["ftp://a", "http://", "http://a:0", "http://:pw@a:1", "socks5://"] {
            let error = text.parse::<Proxy>().expect_err(text);
            assert!(!error.to_string().contains("pw"), "{error}");
        }
    }

    fn variables(pairs: &'static [(&str, &str)]) -> Proxies {
        let value = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Proxies::from_variables(value).expect("valid")
    }

    #[test]
    fn variables_choose_by_scheme_and_lower_case_wins() {
        let proxies = variables(&[
            ("HTTPS_PROXY", "http://upper:1"),
            ("https_proxy", "http://lower:1"),
            ("ALL_PROXY", "socks5://all:2"),
        ]);
        let chosen = |tls| proxies.choose("a.test", 80, tls).map(ToString::to_string);
        assert_eq!(chosen(true).as_deref(), Some("http://lower:1"));
        assert_eq!(chosen(false).as_deref(), Some("socks5://all:2"));
        let broken = Proxies::from_variables(|name| (name == "ALL_PROXY").then(|| "gopher://a".into()));
        assert!(broken.expect_err("no proxy").to_string().contains("ALL_PROXY"));
    }

    #[test]
    fn loopback_servers_are_reached_directly_unless_asked() {
        let proxies = variables(&[("ALL_PROXY", "http://p:1")]);
        for host in ["localhost", "app.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(proxies.choose(host, 1, false), None, "{host}");
        }
        let asked = Proxies::all("http://p:1".parse().expect("valid"));
        assert!(asked.choose("localhost", 1, false).is_some());
    }

    #[test]
    fn no_proxy_takes_names_ports_and_nets() {
        let proxies = variables(&[
            ("ALL_PROXY", "http://p:1"),
            ("NO_PROXY", "corp.test, .inner.test,*.star.test,odd.test:8443,10.0.0.0/8,192.168.1.7,fd00::/8"),
        ]);
        for (host, port, direct) in [
            ("corp.test", 1, true),
            ("a.corp.test", 1, true),
            ("notcorp.test", 1, false),
            ("x.INNER.test", 1, true),
            ("y.star.test", 1, true),
            ("odd.test", 8443, true),
            ("odd.test", 443, false),
            ("10.200.1.1", 1, true),
            ("11.0.0.1", 1, false),
            ("192.168.1.7", 1, true),
            ("192.168.1.8", 1, false),
            ("fd12::1", 1, true),
            ("fe80::1", 1, false),
        ] {
            assert_eq!(proxies.choose(host, port, true).is_none(), direct, "{host}:{port}");
        }
        let nothing = variables(&[("ALL_PROXY", "http://p:1"), ("no_proxy", "*")]);
        assert_eq!(nothing.choose("a.test", 1, true), None);
    }

    /// What a proxy receives, and the result of its answer.
    async fn talk(proxy: &str, host: &str, answer: &'static [u8]) -> (Vec<u8>, Result<(), Refused>) {
        let (mut ours, mut theirs) = duplex(4096);
        theirs.write_all(answer).await.expect("room");
        theirs.shutdown().await.expect("open");
        let proxy: Proxy = proxy.parse().expect("valid");
        let result = proxy.open(&mut ours, host, 443).await;
        drop(ours);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.expect("readable");
        (said, result)
    }

    #[tokio::test]
    async fn connect_names_the_server_and_the_login() {
        let (said, result) = talk("http://me:pw@p:1", "a.test", b"HTTP/1.0 200 Fine\r\nX: y\r\n\r\n").await;
        assert_eq!(result, Ok(()));
        assert_eq!(
            String::from_utf8_lossy(&said),
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nProxy-Authorization: Basic bWU6cHc=\r\n\r\n"
        );
        for (answer, part, is_final) in [
            (&b"HTTP/1.1 407 Auth\r\n\r\n"[..], "requires a user name", true),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403", false),
            (b"SSH-2.0-x\r\n\r\n", "SSH", false),
            (b"HTTP/1.1 2", "ended the connection", false),
        ] {
            let (_, result) = talk("http://p:1", "a.test", answer).await;
            let refused = result.expect_err(part);
            assert!(refused.reason.contains(part), "{refused:?}");
            assert_eq!(refused.is_final, is_final, "{refused:?}");
        }
    }

    #[tokio::test]
    async fn socks5_sends_names_and_numbers() {
        let (said, result) = talk("socks5h://p", "a.test", &[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        assert_eq!((said.as_slice(), result), (&b"\x05\x01\x00\x05\x01\x00\x03\x06a.test\x01\xbb"[..], Ok(())));
        let (said, result) = talk("socks5h://u:pw@p", "1.2.3.4", &[5, 2, 1, 0, 5, 0, 0, 3, 1, 9, 0, 0]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(said, b"\x05\x02\x00\x02\x01\x01u\x02pw\x05\x01\x00\x01\x01\x02\x03\x04\x01\xbb");
        for (proxy, answer, part) in [
            ("socks5h://p", &[5, 255][..], "requires a user name"),
            ("socks5h://u:x@p", &[5, 2, 1, 1], "does not accept"),
            ("socks5h://p", &[5, 0, 5, 5, 0, 1], "connection refused"),
            ("socks5h://p", b"HTTP/1.1", "SOCKS5"),
        ] {
            let answer: &'static [u8] = answer.to_vec().leak();
            let refused = talk(proxy, "a.test", answer).await.1.expect_err(part);
            assert!(refused.reason.contains(part), "{refused:?}");
        }
    }
}
