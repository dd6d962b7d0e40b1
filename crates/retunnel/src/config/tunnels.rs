//! `retunnel.yml`: several tunnels in one file, with `${NAME}` and `${NAME:default}` anywhere inside a value.

mod rules;

use retunnel_client::{
    Dialect, Error, LocalTarget, Rule, SHORT_RULES, ServerEndpoint, ShortRule, TunnelProtocol, TunnelSpec,
    ValidationError,
};

use crate::document::{Diagnostics, Fields, Node, Position, Value};

const FILE_KEYS: [&str; 6] = ["server_addr", "auth_token", "region", "dialect", "log_level", "tunnels"];
/// Those of rules in short form come in addition.
const TUNNEL_KEYS: [&str; 10] = [
    "name",
    "protocol",
    "local_port",
    "target",
    "subdomain",
    "hostname",
    "remote_port",
    "local_insecure",
    "inspect",
    "rules",
];
const PROTOCOLS: [&str; 2] = ["http", "tcp"];
const LOG_LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "warning", "error"];

/// An example, for `retunnel config --example`.
#[must_use]
pub fn example() -> String {
    let line = |short: &ShortRule| {
        let setting = format!("# {}: {}", short.key, short.example);
        format!("    {setting:<25} # {}\n", short.purpose)
    };
    let lines = |protocol| -> String {
        SHORT_RULES.iter().filter(|short| short.protocols.first() == Some(&protocol)).map(line).collect()
    };
    EXAMPLE
        .replace("    RULES OF HTTP\n", &lines(TunnelProtocol::Http))
        .replace("    RULES OF TCP\n", &lines(TunnelProtocol::Tcp))
}

const EXAMPLE: &str = r#"# retunnel.yml - start all tunnels with `retunnel start`
# ${NAME} and ${NAME:default} are replaced by environment variables anywhere inside a value.
server_addr: ${RETUNNEL_SERVER_ENDPOINT:localhost:6400}
# auth_token: ${RETUNNEL_AUTH_TOKEN}
# dialect: auto               # or native, 3, 2: the protocol to use

tunnels:
  - name: web
    protocol: http
    local_port: 8080          # or: target: http://127.0.0.1:8080, unix:/run/app.sock
    subdomain: my-app         # optional
    RULES OF HTTP
    # local_insecure: true    # optional, for target: https://... with an untrusted certificate
  - name: ssh
    protocol: tcp
    local_port: 22
    # remote_port: 20022      # optional
    RULES OF TCP
"#;

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelsFile {
    /// The server.
    pub server_addr: Option<String>,
    /// The account's token.
    pub auth_token: Option<String>,
    /// Ignored, as in the published clients.
    pub region: Option<String>,
    /// Dialect: `auto`, `native`, `3` or `2`.
    pub dialect: Option<String>,
    /// Log level.
    pub log_level: Option<String>,
    /// The tunnels.
    pub tunnels: Vec<TunnelEntry>,
}

/// One tunnel of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelEntry {
    /// Name, unique in the file.
    pub name: String,
    /// `http` or `tcp`.
    pub protocol: String,
    /// Port of the local service; alternative to `target`.
    pub local_port: Option<u16>,
    /// The local service in any form of [`LocalTarget`].
    pub target: Option<String>,
    /// Requested name.
    pub subdomain: Option<String>,
    /// Requested custom host name.
    pub hostname: Option<String>,
    /// Requested public port of a TCP tunnel.
    pub remote_port: Option<u16>,
    /// Accept any certificate of a local service reached by TLS.
    pub local_insecure: Option<bool>,
    /// Whether the inspector records the tunnel. Default yes.
    pub inspect: Option<bool>,
    /// Rules in short form: key and value, in the order of [`SHORT_RULES`].
    pub short_rules: Vec<(&'static str, String)>,
    /// Rules of any type, in the order of the file.
    pub rules: Vec<Rule>,
}

impl TunnelsFile {
    /// Parses a file's text. `variable` returns the value of an environment variable.
    ///
    /// # Errors
    /// All diagnostics.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Diagnostics> {
        let mut document = Node::parse(text)?;
        let mut diagnostics = Diagnostics::default();
        substitute(&mut document, "", &variable, &mut diagnostics);
        let fields = document.fields(&FILE_KEYS, "", &mut diagnostics);
        let file = Self {
            server_addr: fields.text("server_addr", &mut diagnostics),
            auth_token: fields.text("auth_token", &mut diagnostics),
            region: fields.text("region", &mut diagnostics),
            dialect: fields.word("dialect", &dialects(), &mut diagnostics),
            log_level: fields.word("log_level", &LOG_LEVELS, &mut diagnostics),
            tunnels: tunnels(&fields, &mut diagnostics),
        };
        if let Some(Err(error)) = file.server_addr.as_ref().map(|text| text.parse::<ServerEndpoint>()) {
            wrong(&fields, "server_addr", &error, &mut diagnostics);
        }
        diagnostics.into_result(file)
    }
}

fn dialects() -> Vec<&'static str> {
    std::iter::once("auto").chain(Dialect::ALL.iter().map(|dialect| dialect.as_str())).collect()
}

fn wrong(fields: &Fields<'_>, key: &str, error: &ValidationError, diagnostics: &mut Diagnostics) {
    fields.wrong(key, &format!("{} (got `{}`)", error.reason, error.value), diagnostics);
}

fn tunnels(fields: &Fields<'_>, diagnostics: &mut Diagnostics) -> Vec<TunnelEntry> {
    let Some(node) = fields.find("tunnels") else { return Vec::new() };
    let Value::List(nodes) = &node.value else {
        fields.wrong("tunnels", "expected a list, with `-` before each tunnel", diagnostics);
        return Vec::new();
    };
    let mut taken = Vec::new();
    let read = |(number, node): (usize, &Node)| entry(node, number + 1, &mut taken, diagnostics);
    nodes.iter().enumerate().map(read).collect()
}

/// A value that only one tunnel of a file can have.
type Taken = (&'static str, String, Position);

fn entry(node: &Node, number: usize, taken: &mut Vec<Taken>, diagnostics: &mut Diagnostics) -> TunnelEntry {
    let named = match &node.value {
        Value::Map(fields) => fields.iter().find(|(key, _)| key.name == "name"),
        _ => None,
    };
    let what = match named.map(|(_, node)| &node.value) {
        Some(Value::Text(name)) if !name.is_empty() => format!("tunnel `{name}`: "),
        _ => format!("tunnel {number}: "),
    };
    let keys: Vec<&str> = TUNNEL_KEYS.into_iter().chain(SHORT_RULES.iter().map(|short| short.key)).collect();
    let fields = node.fields(&keys, &what, diagnostics);
    let mut short_rule = |short: &ShortRule| Some((short.key, fields.text(short.key, diagnostics)?));
    let short_rules = SHORT_RULES.iter().filter_map(&mut short_rule).collect();
    let entry = TunnelEntry {
        name: fields.text("name", diagnostics).unwrap_or_default(),
        protocol: fields.word("protocol", &PROTOCOLS, diagnostics).unwrap_or_default(),
        local_port: fields.port("local_port", false, diagnostics),
        target: fields.text("target", diagnostics),
        subdomain: fields.text("subdomain", diagnostics),
        hostname: fields.text("hostname", diagnostics),
        remote_port: fields.port("remote_port", true, diagnostics),
        local_insecure: fields.flag("local_insecure", diagnostics),
        inspect: fields.flag("inspect", diagnostics),
        short_rules,
        rules: rules::read(&fields, diagnostics),
    };
    let is_missing = |keys: &[&str]| keys.iter().all(|key| fields.find(key).is_none());
    let needed: [(&str, &[&str]); 3] =
        [("`name`", &["name"]), ("`protocol`", &["protocol"]), ("`local_port` or `target`", &["local_port", "target"])];
    let missing: Vec<&str> = needed.iter().filter(|(_, keys)| is_missing(keys)).map(|(shown, _)| *shown).collect();
    if !missing.is_empty() {
        diagnostics.add(node.position, format!("{what}missing: {}", missing.join(", ")));
    }
    if entry.name.is_empty() && fields.find("name").is_some_and(|node| matches!(node.value, Value::Text(_))) {
        fields.wrong("name", "a tunnel needs a name", diagnostics);
    }
    for (key, error) in entry.invalid() {
        wrong(&fields, key, &error, diagnostics);
    }
    if fields.find("target").is_some() && fields.find("local_port").is_some() {
        fields.wrong("target", "`local_port` is given too; keep one", diagnostics);
    }
    let port = entry.remote_port.filter(|port| *port != 0).map(|port| port.to_string());
    for (key, value) in [
        ("name", Some(entry.name.clone())),
        ("subdomain", entry.subdomain.as_deref().map(str::to_ascii_lowercase)),
        ("hostname", entry.hostname.as_deref().map(str::to_ascii_lowercase)),
        ("remote_port", port),
    ] {
        let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
        match taken.iter().find(|(other, earlier, _)| *other == key && *earlier == value) {
            Some((.., position)) => {
                let line = position.line;
                fields.wrong(key, &format!("the tunnel in line {line} already has `{value}`"), diagnostics);
            }
            None => taken.push((key, value, fields.position(key))),
        }
    }
    entry
}

impl TunnelEntry {
    /// The tunnel to open.
    ///
    /// # Errors
    /// [`ValidationError`] for the first invalid value.
    pub fn spec(&self) -> Result<TunnelSpec, Error> {
        let error = |what, value: &str, reason| Error::from(ValidationError { what, value: value.into(), reason });
        let target: LocalTarget = match (&self.target, self.local_port) {
            (Some(target), None) => target.parse()?,
            (None, Some(port)) if port != 0 => port.into(),
            (None, Some(_)) => return Err(error("local_port", "0", "a port is a number from 1 to 65535")),
            (None, None) => return Err(error("local_port", "", "this or `target` is needed")),
            (Some(target), Some(_)) => return Err(error("target", target, "`local_port` is given too; keep one")),
        };
        let mut spec = match self.protocol.as_str() {
            "http" => TunnelSpec::http(target),
            "tcp" => TunnelSpec::tcp(target),
            other => return Err(error("protocol", other, "expected http or tcp")),
        };
        if self.name.is_empty() {
            return Err(error("name", "", "a tunnel needs a name"));
        }
        spec = spec.name(&self.name).inspect(self.inspect.unwrap_or(true));
        if let Some(subdomain) = self.subdomain.as_deref().filter(|text| !text.is_empty()) {
            spec = spec.subdomain(subdomain)?;
        }
        if let Some(hostname) = self.hostname.as_deref().filter(|text| !text.is_empty()) {
            spec = spec.hostname(hostname);
        }
        if let Some(port) = self.remote_port.filter(|port| *port != 0) {
            spec = spec.remote_port(port);
        }
        if self.local_insecure == Some(true) {
            spec = spec.local_insecure();
        }
        for (short, text) in self.given_short_rules() {
            spec = spec.short_rule(short, text)?;
        }
        Ok(self.rules.iter().cloned().fold(spec, TunnelSpec::rule))
    }

    /// The rules in short form that have a value.
    fn given_short_rules(&self) -> impl Iterator<Item = (&'static ShortRule, &str)> {
        let text = |key| self.short_rules.iter().find(|(given, _)| *given == key).map(|(_, text)| text.as_str());
        let given = SHORT_RULES.iter().filter_map(move |short| Some((short, text(short.key)?)));
        // An empty password must not leave the tunnel open to everyone.
        given.filter(|(short, text)| short.restricts_access || !text.is_empty())
    }

    /// The invalid values with their keys.
    fn invalid(&self) -> Vec<(&'static str, ValidationError)> {
        let spec = || TunnelSpec::http(1);
        let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let others = [
            ("target", self.target.as_ref().and_then(|text| text.parse::<LocalTarget>().err())),
            ("subdomain", given(&self.subdomain).and_then(|text| spec().subdomain(text).err())),
        ];
        let target = LocalTarget::port(1);
        let rules = self.given_short_rules().map(|(short, text)| (short.key, short.parse(text, &target).err()));
        others.into_iter().chain(rules).filter_map(|(key, error)| Some((key, error?))).collect()
    }
}

/// Replaces variables in every text.
fn substitute(node: &mut Node, key: &str, variable: &impl Fn(&str) -> Option<String>, diagnostics: &mut Diagnostics) {
    match &mut node.value {
        Value::Text(text) if text.contains("${") => match replaced(text, variable) {
            Ok(replaced) => {
                // A value that is a single variable may be a number or a Boolean.
                node.from_variable = text.starts_with("${") && text.find('}') == Some(text.len() - 1);
                *text = replaced;
            }
            Err(reason) => diagnostics.add(node.position, format!("`{key}`: {reason}")),
        },
        Value::List(nodes) => nodes.iter_mut().for_each(|node| substitute(node, key, variable, diagnostics)),
        Value::Map(fields) => {
            fields.iter_mut().for_each(|(key, node)| substitute(node, &key.name, variable, diagnostics));
        }
        _ => {}
    }
}

fn replaced(text: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        let end = after.find('}').ok_or_else(|| "`${` without `}`".to_owned())?;
        let (name, default) = after[..end].split_once(':').map_or((&after[..end], None), |(name, d)| (name, Some(d)));
        if name.is_empty() {
            return Err("`${}` names no variable".into());
        }
        out.push_str(before);
        match (variable(name), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!("the environment variable {name} is not set; set it or write ${{{name}:default}}"));
            }
        }
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TunnelsFile, Diagnostics> {
        TunnelsFile::parse(text, |name| match name {
            "PORT" => Some("9000".into()),
            "HOST" => Some("a.test".into()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_anywhere_inside_a_value() {
        let file = parse(
            "server_addr: ${HOST}:${NONE:6400}\ntunnels:\n  - {name: 'x-${PORT}', protocol: http, local_port: '${PORT}'}\n  \
             - {name: y, protocol: tcp, target: '${HOST}:22', remote_port: '${RP:20001}', inspect: '${I:true}'}",
        )
        .expect("valid");
        assert_eq!(file.server_addr.as_deref(), Some("a.test:6400"));
        assert_eq!((file.tunnels[0].name.as_str(), file.tunnels[0].local_port), ("x-9000", Some(9000)));
        assert_eq!((file.tunnels[1].remote_port, file.tunnels[1].inspect), (Some(20_001), Some(true)));
    }

    /// The diagnostics of a text, as shown.
    fn diagnostics(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn every_mistake_is_reported_with_its_position() {
        let text = "\
server_adr: a.test
dialect: 4
log_level: loud
auth_token: 17
tunnels:
  - name: web
    protocol: htpp
    local_prot: 80
    subdomain: my_app
    inspect: on
  - name: web
    protocol: http
    local_port: 70000
    subdomain: shop
    auth: nocolon
  - protocol: tcp
    local_port: '22'
    remote_port: -1
    target: nowhere
  - {name: last, protocol: http, local_port: 80, local_port: 81, subdomain: Shop, target: '${NOPE}'}
  - 17
  - {name: both, target: '80', local_port: 80}
";
        let expected = "\
1:1: unknown key `server_adr`; did you mean `server_addr`? known keys: server_addr, auth_token, region, dialect, log_level, tunnels
2:10: `dialect`: expected auto, native, 3 or 2 (got `4`)
3:12: `log_level`: expected trace, debug, info, warn, warning or error (got `loud`)
4:13: `auth_token`: expected text; put it in quotes (got `17`)
6:5: tunnel `web`: missing: `local_port` or `target`
7:15: tunnel `web`: `protocol`: expected http or tcp (got `htpp`)
8:5: tunnel `web`: unknown key `local_prot`; did you mean `local_port`? known keys: name, protocol, local_port, target, \
subdomain, hostname, remote_port, local_insecure, inspect, rules, SHORT_RULES
9:16: tunnel `web`: `subdomain`: expected 1 to 63 letters, digits and hyphens, no hyphen first or last (got `my_app`)
10:14: tunnel `web`: `inspect`: expected true or false (got `on`)
11:11: tunnel `web`: `name`: the tunnel in line 6 already has `web`
13:17: tunnel `web`: `local_port`: expected a number from 1 to 65535 (got `70000`)
15:11: tunnel `web`: `auth`: expected USER:PASSWORD, both not empty (got `***`)
16:5: tunnel 3: missing: `name`
17:17: tunnel 3: `local_port`: expected a number from 1 to 65535, without quotes (got `22`)
18:18: tunnel 3: `remote_port`: expected a number from 1 to 65535 (got `-1`)
19:13: tunnel 3: `target`: expected PORT, HOST:PORT, http(s)://HOST:PORT or unix:/path (got `nowhere`)
20:50: tunnel `last`: `local_port` is given twice, first in line 20; keep one
20:77: tunnel `last`: `subdomain`: the tunnel in line 14 already has `shop`
20:91: `target`: the environment variable NOPE is not set; set it or write ${NOPE:default}
21:5: tunnel 5: expected keys with values, such as `name: …`
22:5: tunnel `both`: missing: `protocol`
22:26: tunnel `both`: `target`: `local_port` is given too; keep one";
        let keys: Vec<&str> = SHORT_RULES.iter().map(|short| short.key).collect();
        assert_eq!(diagnostics(text), expected.replace("SHORT_RULES", &keys.join(", ")));
    }

    #[test]
    fn files_that_are_wrong_as_a_whole() {
        for (text, expected) in [
            ("- a\n", "1:1: expected keys with values, such as `server_addr: …`"),
            ("tunnels: web\n", "1:10: `tunnels`: expected a list, with `-` before each tunnel"),
            ("server_addr: ${HOST\n", "1:14: `server_addr`: `${` without `}`"),
            (
                "server_addr: ftp://a\n",
                "1:14: `server_addr`: expected http://, https://, ws:// or wss:// (got `ftp://a`)",
            ),
            ("server_addr: a\nserver_addr: b\n", "2:1: `server_addr` is given twice, first in line 1; keep one"),
        ] {
            assert_eq!(diagnostics(text), expected, "{text}");
        }
        for text in ["tunnels: [", "tunnels:\n\t- name: a\n", "a: b: c\n", "a: *nobody\n", "a: \"b\n"] {
            let diagnostics = parse(text).expect_err(text);
            let [only] = diagnostics.list() else { panic!("{diagnostics}") };
            assert!(only.line > 0 && only.message.starts_with("not valid YAML: "), "{text}: {only}");
            assert!(!only.message.contains("at line") && !only.message.contains('\n'), "{text}: {only}");
        }
        for empty in ["", " \n", "# nothing\n", "---\n"] {
            assert_eq!(parse(empty).expect("empty"), TunnelsFile::default(), "{empty:?}");
        }
    }

    #[test]
    fn the_example_is_valid() {
        let text = example();
        let file = TunnelsFile::parse(&text, |_| None).expect("valid");
        assert_eq!(file.server_addr.as_deref(), Some("localhost:6400"));
        assert_eq!(file.tunnels.len(), 2);
        for short in SHORT_RULES {
            assert!(text.contains(&format!("# {}: {} ", short.key, short.example)), "{}", short.key);
        }
        assert!(!text.contains("RULES"), "{text}");
    }

    #[test]
    fn every_short_rule_is_a_key() {
        for short in SHORT_RULES {
            let text = format!(
                "tunnels:\n- {{name: a, protocol: http, local_port: 80, {}: '{}'}}\n",
                short.key, short.example
            );
            let file = parse(&text).expect("valid");
            assert_eq!(file.tunnels[0].short_rules, [(short.key, short.example.to_owned())]);
            let rule = short.parse(short.example, &80.into()).expect("valid");
            assert_eq!(Vec::from_iter(file.tunnels[0].spec().expect("valid").rules()), [&rule]);

            let empty = parse(&text.replace(short.example, ""));
            assert_eq!(empty.is_err(), short.restricts_access, "{}", short.key);
        }
    }
}
