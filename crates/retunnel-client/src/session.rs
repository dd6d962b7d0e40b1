//! The supervisor: connects, authenticates, keeps the session up, and begins again when it is lost. What a session does is
//! the matter of its dialect; what it knows about its tunnels is the same for all ([`Tunnels`]).

mod native;
mod tunnels;

use std::sync::Arc;

use retunnel_link::LinkError;
use retunnel_proto::message::{Auth, RefusalCode, Token};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep},
};

use self::tunnels::Tunnels;
use crate::{
    api::ApiClient,
    client::{ClientBuilder, Command, Shared},
    error::{ApiError, ConnectError, TunnelError},
    event::{Event, SessionInfo},
    reconnect::Backoff,
    transport::Dialer,
};

/// How long the server may take to answer `Auth`.
const AUTH_WITHIN: Duration = Duration::from_secs(10);
/// How long a farewell may take.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// Keeps a session up until the client is closed or the server refuses it for good.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    dialer: Dialer,
    config: ClientBuilder,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let closing = shared.closing.clone();
    let mut token = config.token.clone();
    let mut may_replace = config.replace_refused_token;
    let mut backoff = Backoff::default();
    let mut stood = false;
    let failure = loop {
        shared.emit(Event::Connecting { attempt: backoff.attempts() + 1 });
        let attempt = establish(&shared, &dialer, &mut token, config.register);
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = closing.cancelled() => break ConnectError::Closed,
        };
        let cause = match outcome {
            Ok(established) => {
                stood = true;
                let began = Instant::now();
                let lost = established.run(&shared, &mut commands).await;
                backoff.stood(began.elapsed());
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
        if unknown_token && may_replace && config.register {
            may_replace = false;
            token = None;
            continue;
        }
        let refused_for_good =
            matches!(cause, ConnectError::Refused { .. } | ConnectError::Register { .. }) && cause.is_final();
        // No account yet and none to be had now: whoever started us decides when to ask again.
        let no_account = matches!(&cause, ConnectError::Register { source: ApiError::Status { .. }, .. });
        if refused_for_good || (!stood && (no_account || cause.is_final() || !config.keep_trying)) {
            break cause;
        }
        let retry_in = backoff.next(cause.is_connection_refused(), cause.retry_after());
        shared.emit(Event::Disconnected { cause: cause.to_string(), retry_in, refused: cause.is_connection_refused() });
        tokio::select! {
            () = sleep(retry_in) => {}
            () = closing.cancelled() => break ConnectError::Closed,
        }
    };
    end(&shared, failure);
}

fn end(shared: &Shared, failure: ConnectError) {
    let cause = failure.to_string();
    {
        let mut state = shared.lock();
        state.session = None;
        state.ended = Some(cause.clone());
        state.failure = Some(failure);
        // Whoever waits for a tunnel, or for its end, learns of it.
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

/// A session that stands, and what it is called.
struct Established {
    session: native::Session,
    info: SessionInfo,
}

impl Established {
    /// Serves until the session ends, and says why it did.
    async fn run(self, shared: &Arc<Shared>, commands: &mut mpsc::UnboundedReceiver<Command>) -> LinkError {
        let tunnels = Tunnels::new(Arc::clone(shared), self.info);
        self.session.run(tunnels, commands).await
    }
}

async fn establish(
    shared: &Shared,
    dialer: &Dialer,
    token: &mut Option<Token>,
    register: bool,
) -> Result<Established, ConnectError> {
    if token.is_none() && register {
        let api = ApiClient::new(dialer.endpoint.clone(), dialer.insecure);
        let made = api.register(None, None).await.map_err(|source| match source {
            ApiError::Connect(cause) => *cause,
            source => ConnectError::Register { endpoint: dialer.endpoint.clone(), source },
        })?;
        shared.emit(Event::Registered { token: made.clone() });
        *token = Some(made);
    }
    let auth = Auth {
        token: token.clone(),
        client_id: String::new(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        version: format!("retunnel/{}", crate::VERSION),
    };
    let (session, info) = native::establish(dialer, auth).await?;
    Ok(Established { session, info })
}
