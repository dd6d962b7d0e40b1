//! `retunnel hostname`: the custom host names of an account.

use anyhow::Result;
use retunnel_client::{
    Token,
    api::{ApiClient, Hostname},
};
use serde_json::{Value, json};

use crate::{
    accounts::SavedAccount,
    args::{Connection, Global, HostnameAction, HostnameArgs, OneHostname},
    commands::{logging, register::server_option},
    exit::{HostnameError, Usage},
    output::Output,
    settings::{FromFile, Identity, Settings},
    variables::Variables,
};

pub(crate) fn run(args: HostnameArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    logging::start(global, variables, "warn", false, false)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = |connection: &Connection| Settings::new(connection, variables, FromFile::default(), global, output);
    match args.action {
        HostnameAction::Add(OneHostname { name, connection }) => {
            let settings = settings(&connection)?;
            let (api, token) = runtime.block_on(account(&settings))?;
            let added = runtime.block_on(api.add_hostname(&token, &name)).map_err(HostnameError)?;
            print(&added, output);
            if !output.json {
                let option = server_option(&settings.identity.server);
                output.status(&format!("Create both records, then: retunnel hostname verify {}{option}", added.name));
            }
        }
        HostnameAction::Verify(OneHostname { name, connection }) => {
            let settings = settings(&connection)?;
            let (api, token) = runtime.block_on(account(&settings))?;
            let found = runtime.block_on(api.verify_hostname(&token, &name)).map_err(HostnameError)?;
            if output.json {
                output.json(&described(&found));
            }
            if !found.is_verified {
                let (name, value) = &found.txt;
                return Err(anyhow::anyhow!("{} (expected: TXT {name} with the value {value})", found.detail));
            }
            if !output.json {
                output.result(&format!("{} is verified", found.name));
                found.dns_hint.iter().for_each(|hint| output.status(hint));
                let option = server_option(&settings.identity.server);
                output.status(&format!("Next: retunnel http 8080 --hostname {}{option}", found.name));
            }
        }
        HostnameAction::List { connection } => {
            let settings = settings(&connection)?;
            let (api, token) = runtime.block_on(account(&settings))?;
            let all = runtime.block_on(api.hostnames(&token)).map_err(HostnameError)?;
            if output.json {
                output.json(&json!({ "hostnames": all.iter().map(described).collect::<Vec<_>>() }));
            } else if all.is_empty() {
                output.status("No host names; `retunnel hostname add NAME` claims one");
            } else {
                for one in &all {
                    output.result(&format!(
                        "{}  {}",
                        one.name,
                        if one.is_verified { "verified" } else { "not verified" }
                    ));
                }
            }
        }
        HostnameAction::Remove(OneHostname { name, connection }) => {
            let settings = settings(&connection)?;
            let (api, token) = runtime.block_on(account(&settings))?;
            runtime.block_on(api.remove_hostname(&token, &name)).map_err(HostnameError)?;
            if output.json {
                output.json(&json!({ "hostname": name, "removed": true }));
            } else {
                output.status(&format!(
                    "{name} was removed; its records TXT _retunnel-challenge.{name} and CNAME can go"
                ));
            }
        }
    }
    Ok(())
}

/// The API and the token, which is shown only to a server that it was saved for, or that has said what it is.
async fn account(settings: &Settings) -> Result<(ApiClient, Token)> {
    let Identity { server, saved, .. } = &settings.identity;
    let Some((token, _)) = &settings.identity.token else {
        let option = server_option(server);
        let text = format!("there is no account on {server} yet; `retunnel register{option}` creates one");
        return Err(Usage(text).into());
    };
    let api = settings.builder.api();
    let is_saved = saved.as_ref().and_then(SavedAccount::token).is_some_and(|saved| saved.into_token() == *token);
    if !is_saved && !api.is_retunnel().await.map_err(HostnameError)? {
        let text = format!("{server} does not say that it is a ReTunnel server; the token is not sent to it");
        return Err(Usage(format!("{text}. If it is right: retunnel authtoken --server {server}")).into());
    }
    Ok((api, token.clone()))
}

fn print(hostname: &Hostname, output: Output) {
    if output.json {
        return output.json(&described(hostname));
    }
    output.result(&format!("TXT    {}  {}", hostname.txt.0, hostname.txt.1));
    output.result(&format!("CNAME  {}  {}", hostname.cname.0, hostname.cname.1));
}

fn described(hostname: &Hostname) -> Value {
    let record = |(name, value): &(String, String)| json!({ "name": name, "value": value });
    json!({
        "hostname": hostname.name,
        "verified": hostname.is_verified,
        "detail": hostname.detail,
        "dns_hint": hostname.dns_hint,
        "dns": { "txt": record(&hostname.txt), "cname": record(&hostname.cname) },
    })
}
