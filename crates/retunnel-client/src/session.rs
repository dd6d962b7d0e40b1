//! The supervisor: connects, authenticates, keeps a session, and reconnects when it is lost. A session's wire depends on
//! its dialect; what it knows about its tunnels is the same for all ([`Tunnels`]).

mod native;
#[cfg(feature = "dialects")]
mod published;
#[cfg(not(feature = "dialects"))]
#[path = "session/without_published.rs"]
mod published;
#[cfg(feature = "api")]
mod register;
mod timing;
mod tunnels;

use std::{collections::HashMap, sync::Arc};

use retunnel_link::LinkError;
use retunnel_proto::{
    RequestId,
    message::{Auth, RefusalCode, Token},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use self::tunnels::Tunnels;
use crate::{
    account::AccountStore,
    credentials::Credentials,
    dialect::Dialect,
    error::{ApiError, ConnectError, TunnelError},
    event::{Event, SessionInfo},
    reconnect::Backoff,
    service::rules::RuleSupport,
    state::{Command, Shared},
    transport::Dialer,
    version::VERSION,
};

/// Values of a supervisor.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) credentials: Credentials,
    pub(crate) registration: Registration,
    pub(crate) keep_trying: bool,
    /// The dialects to try, best first.
    pub(crate) dialects: Vec<Dialect>,
}

/// How a client without a token gets an account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registration {
    /// Where the account is kept.
    pub(crate) accounts: Option<Arc<dyn AccountStore>>,
    /// The code of an invitation.
    pub(crate) invite: Option<String>,
}

/// Keeps a session until the client is closed or the server refuses it for good.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    dialer: Dialer,
    config: Config,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let closing = shared.closing.clone();
    let mut identity = Identity {
        token: config.credentials.token().cloned(),
        refused: None,
        registration: config.credentials.may_register().then_some(config.registration),
    };
    let mut may_replace = identity.registration.is_some();
    let mut backoff = Backoff::default();
    let mut was_established = false;
    let cause = loop {
        shared.emit(Event::Connecting { attempt: backoff.attempts() + 1 });
        let attempt = establish(&shared, &dialer, &mut identity, &config.dialects);
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = closing.cancelled() => break ConnectError::Closed,
        };
        let cause = match outcome {
            Ok(established) => {
                was_established = true;
                let reported = established.info.dialect == Dialect::Native;
                let began = Instant::now();
                let lost = established.run(&shared, &mut commands).await;
                backoff.session_ended(began.elapsed(), reported);
                if closing.is_cancelled() {
                    break ConnectError::Closed;
                }
                shared.lock().session = None;
                ConnectError::Lost { endpoint: dialer.endpoint.clone(), source: lost }
            }
            Err(cause) => cause,
        };
        let unknown_token =
            matches!(&cause, ConnectError::Refused { refusal, .. } if refusal.code == RefusalCode::Unauthorized);
        if unknown_token && may_replace {
            may_replace = false;
            identity.refused = identity.token.take();
            continue;
        }
        let refused_for_good =
            matches!(cause, ConnectError::Refused { .. } | ConnectError::Register { .. }) && cause.is_final();
        // There is no account and the server creates none now: the caller decides when to try again.
        let no_account = matches!(&cause, ConnectError::Register { source: ApiError::Status { .. }, .. });
        if refused_for_good || (!was_established && (no_account || cause.is_final() || !config.keep_trying)) {
            break cause;
        }
        let retry_in = backoff.next(cause.may_be_restart(), cause.retry_after());
        shared.emit(Event::Disconnected { cause, retry_in });
        tokio::select! {
            () = sleep(retry_in) => {}
            () = closing.cancelled() => break ConnectError::Closed,
        }
    };
    end(&shared, cause);
}

fn end(shared: &Shared, cause: ConnectError) {
    {
        let mut state = shared.lock();
        state.session = None;
        state.ended = Some(cause.clone());
        // Callers that wait for a tunnel to open or to close are notified.
        for entry in std::mem::take(&mut state.tunnels).into_values() {
            if let Some(waiter) = entry.waiter {
                let _ = waiter.send(Err(TunnelError::SessionEnded(cause.clone())));
            }
        }
    }
    shared.emit(Event::Ended { cause });
    shared.done.cancel();
    shared.changed.notify_waiters();
}

/// A session of some dialect.
enum Session {
    Native(native::Session),
    Published(published::Session),
}

/// An established session and facts about it.
struct Established {
    session: Session,
    info: SessionInfo,
    /// Tunnels that were requested already.
    asked: HashMap<RequestId, u64>,
}

impl Established {
    /// Serves until the session ends, and returns the cause.
    async fn run(self, shared: &Arc<Shared>, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        let support = match (&self.session, self.info.dialect) {
            (Session::Native(session), _) => session.rule_support(),
            (Session::Published(_), Dialect::V2) => RuleSupport::Dialect2,
            (Session::Published(_), _) => RuleSupport::Dialect3,
        };
        let tunnels = Tunnels::new(Arc::clone(shared), self.info, support, self.asked);
        match self.session {
            Session::Native(session) => session.run(tunnels, commands).await,
            Session::Published(session) => session.run(tunnels, commands).await,
        }
    }
}

/// The account of a client.
struct Identity {
    token: Option<Token>,
    /// A token that the server does not accept any more.
    refused: Option<Token>,
    /// Set when an account may be created.
    registration: Option<Registration>,
}

async fn establish(
    shared: &Shared,
    dialer: &Dialer,
    identity: &mut Identity,
    dialects: &[Dialect],
) -> Result<Established, ConnectError> {
    // Without the feature there is no way to register; the server refuses the session.
    #[cfg(feature = "api")]
    if let (None, Some(registration)) = (&identity.token, &identity.registration) {
        identity.token = Some(register::account(shared, dialer, registration, identity.refused.as_ref()).await?);
    }
    let auth = Auth {
        token: identity.token.clone(),
        client_id: String::new(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        version: format!("retunnel/{}", VERSION),
    };
    let mut failure: Option<ConnectError> = None;
    for dialect in dialects {
        let mut asked = HashMap::new();
        let attempt = match dialect {
            Dialect::Native => {
                // This saves a round trip until the addresses are known.
                let requests = tunnels::wanted_now(shared);
                asked.extend(requests.iter().map(|(key, request)| (request.request_id.clone(), *key)));
                let requests = requests.into_iter().map(|(_, request)| request).collect();
                native::establish(dialer, auth.clone(), requests)
                    .await
                    .map(|(session, info)| (Session::Native(session), info))
            }
            Dialect::V3 | Dialect::V2 => published::establish(dialer, auth.clone(), *dialect)
                .await
                .map(|(session, info)| (Session::Published(session), info)),
        };
        match attempt {
            Ok((session, info)) => return Ok(Established { session, info, asked }),
            // It does not speak this dialect. The first answer identifies the server best.
            Err(cause @ ConnectError::NotAServer { .. }) => drop(failure.get_or_insert(cause)),
            Err(cause) => return Err(cause),
        }
    }
    Err(failure.unwrap_or(ConnectError::Closed))
}
