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
    pub(crate) keep_trying: bool,
    pub(crate) dialect: Option<Dialect>,
}

/// Keeps a session until the client is closed or the server refuses it for good.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    dialer: Dialer,
    config: Config,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let closing = shared.closing.clone();
    let registers = config.credentials.may_register();
    let mut token = config.credentials.token().cloned();
    let mut may_replace = registers;
    let mut backoff = Backoff::default();
    let mut was_established = false;
    let mut dialects = config.dialect.map_or_else(|| Dialect::ALL.to_vec(), |only| vec![only]);
    let cause = loop {
        shared.emit(Event::Connecting { attempt: backoff.attempts() + 1 });
        let attempt = establish(&shared, &dialer, &mut token, registers, &dialects);
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = closing.cancelled() => break ConnectError::Closed,
        };
        let cause = match outcome {
            Ok(established) => {
                was_established = true;
                prefer(&mut dialects, established.info.dialect);
                let began = Instant::now();
                let lost = established.run(&shared, &mut commands).await;
                backoff.session_ended(began.elapsed());
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
            token = None;
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

/// The native dialect is always tried first, in case the server was updated; then the one that worked.
fn prefer(dialects: &mut [Dialect], worked: Dialect) {
    dialects.sort_by_key(|dialect| (*dialect != Dialect::Native, *dialect != worked));
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

async fn establish(
    shared: &Shared,
    dialer: &Dialer,
    token: &mut Option<Token>,
    #[cfg_attr(not(feature = "api"), expect(unused_variables, reason = "the build cannot register"))] register: bool,
    dialects: &[Dialect],
) -> Result<Established, ConnectError> {
    // Without the feature there is no way to register; the server refuses the session.
    #[cfg(feature = "api")]
    if token.is_none() && register {
        *token = Some(register::account(shared, dialer).await?);
    }
    let auth = Auth {
        token: token.clone(),
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
            // Servers of 2.x share the endpoint. Some close the connection, or stay silent, when they do not understand.
            Err(cause @ (ConnectError::Lost { .. } | ConnectError::Timeout { .. })) if *dialect == Dialect::V3 => {
                failure = Some(cause);
            }
            Err(cause) => return Err(cause),
        }
    }
    Err(failure.unwrap_or(ConnectError::Closed))
}
