//! Checks a server configuration file, with the position of every error.

use retunnel_config::document::{Diagnostics, Node};
use retunnel_server::config::{Limits, ServerFile};
use serde_json::{Map, Value};

/// Checks a server configuration file and finds all errors.
///
/// # Errors
/// All diagnostics.
pub(crate) fn check(text: &str) -> Result<(), Diagnostics> {
    let is_valid = |file: &ServerFile| file.clone().into_config("data".into()).is_ok();
    if ServerFile::parse(text).is_ok_and(|file| is_valid(&file)) {
        return Ok(());
    }
    let document = Node::parse(text)?;
    let mut diagnostics = Diagnostics::default();
    let known = keys(&ServerFile::default());
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let fields = document.fields(&known, "", &mut diagnostics);
    let mut valid = Map::new();
    for &key in &known {
        let Some(node) = fields.find(key) else { continue };
        if key == "limits" {
            let known = keys(&Limits::default());
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let limits = node.fields(&known, "limits: ", &mut diagnostics);
            for &key in &known {
                let Some(node) = limits.find(key) else { continue };
                if let Err(error) = one::<Limits>(key, node) {
                    limits.wrong(key, &error.to_string(), &mut diagnostics);
                }
            }
        } else if let Err(error) = one::<ServerFile>(key, node) {
            fields.wrong(key, &error.to_string(), &mut diagnostics);
        } else {
            valid.insert(key.into(), node.to_json());
        }
    }
    // Report and remove one invalid value at a time until the rest is valid.
    while let Ok(file) = serde_json::from_value::<ServerFile>(valid.clone().into()) {
        let Err(error) = file.into_config("data".into()) else { break };
        if valid.remove(error.key).is_none() {
            break;
        }
        fields.wrong(error.key, &format!("{} (got `{}`)", error.reason, error.value), &mut diagnostics);
    }
    diagnostics.into_result(())
}

fn keys(of: &impl serde::Serialize) -> Vec<String> {
    match serde_json::to_value(of) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

fn one<T: serde::de::DeserializeOwned>(key: &str, node: &Node) -> serde_json::Result<T> {
    serde_json::from_value(Value::Object(Map::from_iter([(key.to_owned(), node.to_json())])))
}
