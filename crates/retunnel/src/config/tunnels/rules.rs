//! The key `rules` of a tunnel: rules of any type, passed on to the server as they are. The server refuses types that it
//! does not know, and configurations that are not valid.

use retunnel_client::Rule;

use crate::document::{Diagnostics, Fields, Node, Value};

const RULE_KEYS: [&str; 2] = ["type", "config"];

/// Reads the list. Every rule needs a type; its configuration may be missing.
pub(super) fn read(fields: &Fields<'_>, diagnostics: &mut Diagnostics) -> Vec<Rule> {
    let Some(node) = fields.find("rules") else { return Vec::new() };
    let Value::List(nodes) = &node.value else {
        fields.wrong("rules", "expected a list, with `-` before each rule", diagnostics);
        return Vec::new();
    };
    let rule =
        |(number, node): (usize, &Node)| rule(node, &format!("{}rule {}: ", fields.what, number + 1), diagnostics);
    nodes.iter().enumerate().filter_map(rule).collect()
}

fn rule(node: &Node, what: &str, diagnostics: &mut Diagnostics) -> Option<Rule> {
    let fields = node.fields(&RULE_KEYS, what, diagnostics);
    let config = fields.find("config").map_or(serde_json::Value::Null, |node| {
        repeated_keys(node, what, diagnostics);
        node.to_json()
    });
    match fields.text("type", diagnostics) {
        Some(kind) if !kind.is_empty() => Some(Rule::new(kind, config)),
        Some(_) => {
            fields.wrong("type", "a rule needs a type", diagnostics);
            None
        }
        None => {
            if fields.find("type").is_none() {
                diagnostics.add(node.position, format!("{what}missing: `type`"));
            }
            None
        }
    }
}

/// JSON has each key once, so a repeated one would be lost without notice.
fn repeated_keys(node: &Node, what: &str, diagnostics: &mut Diagnostics) {
    match &node.value {
        Value::List(nodes) => nodes.iter().for_each(|node| repeated_keys(node, what, diagnostics)),
        Value::Map(entries) => {
            for (at, (key, node)) in entries.iter().enumerate() {
                if let Some((first, _)) = entries[..at].iter().find(|(earlier, _)| earlier.name == key.name) {
                    let line = first.position.line;
                    let message = format!("{what}`{}` is given twice, first in line {line}; keep one", key.name);
                    diagnostics.add(key.position, message);
                }
                repeated_keys(node, what, diagnostics);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use retunnel_client::Rule;
    use serde_json::json;

    use crate::TunnelsFile;

    fn parse(rules: &str) -> Result<TunnelsFile, String> {
        let text = format!("tunnels:\n- name: web\n  protocol: http\n  local_port: 80\n  rules:{rules}\n");
        TunnelsFile::parse(&text, |name| (name == "NET").then(|| "10.0.0.0/8".into()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_passed_on_as_they_are() {
        let rules = "\n  - type: teleport\n    config: {to: ['${NET}', 2], fast: true}\n  - {type: plain}";
        let entry = &parse(rules).expect("valid").tunnels[0];
        let expected = [
            Rule::new("teleport", json!({"to": ["10.0.0.0/8", 2], "fast": true})),
            Rule::new("plain", serde_json::Value::Null),
        ];
        assert_eq!(entry.rules, expected);
        assert_eq!(Vec::from_iter(entry.spec().expect("valid").rules().cloned()), expected);
        assert_eq!(parse("").expect("valid").tunnels[0].rules, []);
    }

    #[test]
    fn each_rule_needs_a_type() {
        for (rules, expected) in [
            (" teleport", "5:10: tunnel `web`: `rules`: expected a list, with `-` before each rule"),
            ("\n  - config: {}", "6:5: tunnel `web`: rule 1: missing: `type`"),
            ("\n  - {type: a}\n  - {type: ''}", "7:12: tunnel `web`: rule 2: `type`: a rule needs a type"),
            ("\n  - {type: 1}", "6:12: tunnel `web`: rule 1: `type`: expected text; put it in quotes (got `1`)"),
            ("\n  - teleport", "6:5: tunnel `web`: rule 1: expected keys with values, such as `type: …`"),
            (
                "\n  - {type: a, confg: 1}",
                "6:15: tunnel `web`: rule 1: unknown key `confg`; did you mean `config`? known keys: type, config",
            ),
            (
                "\n  - type: a\n    config:\n      allow: [{b: 1, b: 2}]",
                "8:22: tunnel `web`: rule 1: `b` is given twice, first in line 8; keep one",
            ),
        ] {
            assert_eq!(parse(rules).expect_err(rules), expected);
        }
    }
}
