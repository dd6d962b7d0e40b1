//! `retunnel register`: creates an account and saves its token.

use anyhow::Result;
use retunnel_client::{AccountStore, ApiError};
use retunnel_config::ConfigFile;

use crate::{
    args::{Connection, Global, RegisterArgs},
    commands::logging,
    exit::RegisterError,
    output::Output,
    settings::{FromFile, Settings},
    variables::Variables,
};

pub(crate) fn run(args: &RegisterArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    logging::start(global, variables, "warn", false, false)?;
    let connection = Connection { server: args.server.clone(), token: None, dialect: None };
    let settings = Settings::new(&connection, variables, FromFile::default(), global, output)?;
    let Settings { builder, identity, .. } = settings;
    let Some(account) = identity.saved else { return Ok(()) };
    let server = identity.server;
    // Nobody else registers in the meantime.
    let locked = account.lock();
    let saved = locked.token();
    let api = builder.api();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = |source| RegisterError { server: server.clone(), source };
    let known = match saved {
        Some(token) => match runtime.block_on(api.me(&token)) {
            Ok(account) => Some((token, account.email)),
            Err(ApiError::Status { status: 401, .. }) => None,
            Err(error) => return Err(failed(error).into()),
        },
        None => None,
    };
    let is_new = known.is_none();
    let (token, email) = match known {
        Some((token, email)) => {
            if identity.is_unbound {
                // A token that was saved later would be used instead.
                ConfigFile::save_token_for(&account.path, &server, &token)?;
            }
            (token, email)
        }
        None => {
            let registered = api.register(args.email.as_deref(), args.account.invite.as_deref());
            let token = runtime.block_on(registered).map_err(failed)?;
            ConfigFile::save_token_for(&account.path, &server, &token)?;
            let email = match runtime.block_on(api.me(&token)) {
                Ok(account) => account.email,
                // A server that does not report it.
                Err(ApiError::Status { .. } | ApiError::Answer(_)) => String::new(),
                Err(error) => return Err(failed(error).into()),
            };
            (token, email)
        }
    };
    drop(locked);
    runtime.shutdown_background();
    if output.json {
        let server = server.to_string();
        output.json(&serde_json::json!({
            "server": server, "account": email, "token": token.masked(), "saved": account.path, "new": is_new,
        }));
        return Ok(());
    }
    let path = account.path.display();
    if is_new {
        output.status(&format!("Registered with {server} as {email}; token {} saved to {path}", token.masked()));
    } else {
        output
            .status(&format!("Registered with {server} as {email} already; its token {} is in {path}", token.masked()));
        if args.account.invite.is_some() {
            output.status("The invitation was not used");
        }
    }
    output.status(&format!("Next: retunnel http 8080{}", server_option(&server)));
    Ok(())
}

/// The option that names a server, unless it is the default.
pub(crate) fn server_option(server: &retunnel_client::ServerEndpoint) -> String {
    if server.to_string() == retunnel_client::ServerEndpoint::default().to_string() {
        String::new()
    } else {
        format!(" --server {server}")
    }
}
