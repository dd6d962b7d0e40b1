//! What a session knows about its tunnels: which were requested, which are open, and what their owners are notified of.

use std::{collections::HashMap, sync::Arc, time::Duration};

use retunnel_proto::{
    RequestId, TunnelId,
    message::{NewTunnel, Refusal, RefusalCode, ReqTunnel, Requests},
    rules::Rule,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    error::TunnelError,
    event::{Event, SessionInfo},
    service::{
        Service,
        rules::{ClientRules, RuleSupport},
    },
    spec::{TunnelInfo, TunnelSpec, name_of},
    state::{Command, Entry, Retry, Shared},
};

/// Pause before a tunnel is requested again after a temporary refusal; doubled each time.
const RETRY: Duration = Duration::from_secs(3);
/// Longest pause.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Tunnels that are requested before the server has answered.
const MAX_EARLY: usize = 64;

fn later(retries: &mut JoinSet<u64>, key: u64, until: Instant) {
    retries.spawn(async move {
        sleep_until(until).await;
        key
    });
}

/// Requests for tunnels that can be sent before the session is established. A tunnel with rules for its visitors
/// waits: they may hold secrets, and a server of link version 1 would ignore them and open the tunnel to everyone.
pub(crate) fn wanted_now(shared: &Shared) -> Vec<(u64, ReqTunnel)> {
    let state = shared.lock();
    let is_early =
        |entry: &Entry| entry.retry.is_none() && entry.spec.rules().all(|rule| rule.kind == Rule::LOCAL_ORIGIN);
    let wanted = state.tunnels.iter().filter(|(_, entry)| is_early(entry)).take(MAX_EARLY);
    wanted
        .map(|(key, entry)| {
            entry.stats.new_session();
            (*key, entry.spec.request(entry.info.as_ref()))
        })
        .collect()
}

/// An open tunnel.
struct Open {
    key: u64,
    rules: Arc<ClientRules>,
}

/// The tunnels of one session.
pub(crate) struct Tunnels {
    pub(crate) shared: Arc<Shared>,
    info: SessionInfo,
    support: RuleSupport,
    /// Requests without an answer.
    asked: HashMap<RequestId, u64>,
    open: HashMap<TunnelId, Open>,
    /// Tunnels to request again after a pause.
    retries: JoinSet<u64>,
}

impl Tunnels {
    /// `asked`: requests that were sent while the session was established.
    pub(crate) fn new(
        shared: Arc<Shared>,
        info: SessionInfo,
        support: RuleSupport,
        asked: HashMap<RequestId, u64>,
    ) -> Self {
        Self { shared, info, support, asked, open: HashMap::new(), retries: JoinSet::new() }
    }

    /// The tunnels to request at the beginning. The state already includes older commands. After a temporary refusal a
    /// tunnel waits for its time, so that it does not end a session that other tunnels use.
    pub(crate) fn wanted(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Vec<u64> {
        while commands.try_recv().is_ok() {}
        let mut now = Vec::new();
        for (key, entry) in &self.shared.lock().tunnels {
            match entry.retry {
                Some(Retry { at, .. }) if at > Instant::now() => later(&mut self.retries, *key, at),
                _ => now.push(*key),
            }
        }
        now
    }

    /// The session is established.
    pub(crate) fn connected(&self) {
        self.shared.lock().session = Some(self.info.clone());
        self.shared.emit(Event::Connected { session: self.info.clone() });
        self.shared.changed.notify_waiters();
    }

    /// The request for a tunnel, again or for the first time; `None` when its owner closed it, it was requested already, or
    /// it has a rule that no side can apply.
    pub(crate) fn request(&mut self, key: u64) -> Option<ReqTunnel> {
        let request = {
            let state = self.shared.lock();
            let entry = state.tunnels.get(&key)?;
            entry.stats.new_session();
            entry.spec.request(entry.info.as_ref())
        };
        if self.open.values().map(|open| &open.key).chain(self.asked.values()).any(|known| *known == key) {
            return None;
        }
        if let Err(refusal) = self.support.client_rules(&request.rules, request.protocol) {
            self.refuse(key, refusal);
            return None;
        }
        self.asked.insert(request.request_id.clone(), key);
        Some(request)
    }

    /// The tunnel as its owner requested it, and as it was before a reconnect.
    pub(crate) fn entry(&self, key: u64) -> Option<(TunnelSpec, Option<TunnelInfo>)> {
        self.shared.lock().tunnels.get(&key).map(|entry| (entry.spec.clone(), entry.info.clone()))
    }

    /// A tunnel whose pause after a temporary refusal is over. Pending while there is none; cancel-safe.
    pub(crate) async fn due(&mut self) -> u64 {
        match self.retries.join_next().await {
            Some(Ok(key)) => key,
            _ => std::future::pending().await,
        }
    }

    /// The owner closed a tunnel. Returns its ids, for the server.
    pub(crate) fn close(&mut self, key: u64) -> Vec<TunnelId> {
        self.open.extract_if(|_, open| open.key == key).map(|(id, _)| id).collect()
    }

    pub(crate) fn opened(&mut self, tunnel: NewTunnel) {
        let Some(key) = self.asked.remove(&tunnel.request_id) else { return };
        let open =
            self.open.entry(tunnel.tunnel_id.clone()).insert_entry(Open { key, rules: Arc::default() }).into_mut();
        let mut state = self.shared.lock();
        // Kept also when its owner has closed it: the `Close` that follows ends it.
        let Some(entry) = state.tunnels.get_mut(&key) else {
            drop(state);
            let _ = self.shared.commands.send(Command::Close(key));
            return;
        };
        let rules: Vec<Rule> = entry.spec.rules().cloned().collect();
        match self.support.client_rules(&rules, entry.spec.protocol) {
            Ok(rules) => open.rules = Arc::new(rules),
            // It was requested before the server's version was known.
            Err(refusal) => {
                drop(state);
                self.refuse(key, refusal);
                let _ = self.shared.commands.send(Command::Close(key));
                return;
            }
        }
        let info = TunnelInfo {
            name: name_of(&entry.spec, &tunnel.subdomain, tunnel.remote_port),
            url: tunnel.url,
            protocol: tunnel.protocol,
            subdomain: tunnel.subdomain,
            remote_port: tunnel.remote_port,
            target: entry.spec.target.clone(),
        };
        entry.retry = None;
        let was_open = entry.info.replace(info.clone()).is_some();
        let waiter = entry.waiter.take();
        drop(state);
        // The event comes first, so that a caller that waits for the tunnel finds it when the wait is over.
        self.shared.emit(if was_open {
            Event::TunnelRestored(info.clone())
        } else {
            Event::TunnelOpened(info.clone())
        });
        if let Some(waiter) = waiter {
            let _ = waiter.send(Ok(info));
        }
    }

    /// The server refused a tunnel; `false` when it was not requested.
    pub(crate) fn refused(&mut self, request_id: &RequestId, refusal: Refusal) -> bool {
        let Some(key) = self.asked.remove(request_id) else { return false };
        self.refuse(key, refusal);
        true
    }

    fn refuse(&mut self, key: u64, refusal: Refusal) {
        let mut state = self.shared.lock();
        let Some(entry) = state.tunnels.get_mut(&key) else { return };
        if let Some(waiter) = entry.waiter.take() {
            state.tunnels.remove(&key);
            drop(state);
            let _ = waiter.send(Err(TunnelError::Refused(refusal)));
            return;
        }
        let name = entry.info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
        let pause = entry.retry.map_or(RETRY, |retry| (retry.pause * 2).min(MAX_RETRY));
        let until = Instant::now() + pause;
        entry.retry = Some(Retry { at: until, pause });
        drop(state);
        self.shared.emit(Event::TunnelFailed { name, refusal: refusal.clone() });
        if refusal.code.is_final() {
            self.ended(key, refusal);
        } else {
            later(&mut self.retries, key, until);
        }
    }

    /// The server closed a tunnel for good.
    pub(crate) fn closed(&mut self, tunnel_id: &TunnelId, refusal: Refusal) {
        if let Some(open) = self.open.remove(tunnel_id) {
            self.ended(open.key, refusal);
        }
    }

    /// Another client of the account took over a tunnel, whose name is the last word of the text: the published dialects have
    /// no better place for it. `false` when it is none of these tunnels.
    pub(crate) fn superseded(&mut self, text: String) -> bool {
        let word = text.rsplit(' ').next().unwrap_or_default();
        let found = {
            let state = self.shared.lock();
            let is_named = |open: &Open| {
                let info = state.tunnels.get(&open.key).and_then(|entry| entry.info.as_ref());
                info.is_some_and(|info| {
                    info.subdomain == word || info.remote_port.is_some_and(|port| port.to_string() == word)
                })
            };
            self.open.iter().find(|(_, open)| !word.is_empty() && is_named(open)).map(|(id, _)| id.clone())
        };
        let Some(tunnel_id) = found else { return false };
        self.closed(&tunnel_id, Refusal::new(RefusalCode::Superseded, text));
        true
    }

    fn ended(&self, key: u64, refusal: Refusal) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.tunnels.remove(&key) {
            drop(state);
            entry.closed.send_replace(Some(refusal.clone()));
            let name = entry.info.map(|info| info.name).unwrap_or_default();
            self.shared.emit(Event::TunnelClosed { name, refusal });
        }
    }

    /// Visitors' requests, as the server saw them.
    pub(crate) fn report(&self, report: Requests) {
        let Some(service) = self.find(&report.tunnel_id) else { return };
        service.stats.report(&report);
        for request in report.recent {
            self.shared.emit(Event::Request { tunnel: service.name.clone(), request });
        }
    }

    /// The open tunnels.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &TunnelId> + Clone {
        self.open.keys()
    }

    /// The names of open HTTP tunnels.
    pub(crate) fn subdomains(&self) -> Vec<String> {
        let state = self.shared.lock();
        let open = self.open.values().filter_map(|open| state.tunnels.get(&open.key)?.info.as_ref());
        open.map(|info| info.subdomain.clone()).filter(|subdomain| !subdomain.is_empty()).collect()
    }

    /// The local service of an open tunnel.
    pub(crate) fn find(&self, tunnel_id: &TunnelId) -> Option<Service> {
        let state = self.shared.lock();
        let open = self.open.get(tunnel_id)?;
        let entry = state.tunnels.get(&open.key)?;
        Some(Service {
            name: entry.info.as_ref().map(|info| info.name.clone()).unwrap_or_default(),
            target: entry.spec.target.clone(),
            protocol: entry.spec.protocol,
            rules: Arc::clone(&open.rules),
            stats: Arc::clone(&entry.stats),
            observer: self.shared.observer.clone().filter(|_| entry.spec.is_inspected()),
            shared: Arc::clone(&self.shared),
        })
    }
}

#[cfg(test)]
mod tests {
    use retunnel_proto::{message::TunnelProtocol, rules::LocalOrigin};
    use tokio::sync::{oneshot, watch};

    use super::*;
    use crate::dialect::Dialect;

    const KEY: u64 = 1;

    fn session(shared: &Arc<Shared>, support: RuleSupport, asked: HashMap<RequestId, u64>) -> Tunnels {
        let info = SessionInfo {
            account: String::new(),
            client_id: String::new(),
            server: String::new(),
            server_version: String::new(),
            dialect: Dialect::V3,
        };
        Tunnels::new(Arc::clone(shared), info, support, asked)
    }

    fn entry(spec: TunnelSpec) -> Entry {
        Entry { spec, info: None, stats: Arc::default(), waiter: None, closed: watch::Sender::new(None), retry: None }
    }

    fn opened(request_id: RequestId) -> NewTunnel {
        NewTunnel {
            request_id,
            tunnel_id: TunnelId::from_text("t"),
            protocol: TunnelProtocol::Http,
            url: "http://a.test".into(),
            subdomain: "a".into(),
            remote_port: None,
        }
    }

    /// A server of link version 1 would open it to everyone.
    #[tokio::test]
    async fn a_protected_tunnel_is_refused_where_rules_are_ignored() {
        let (commands, _receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, None));
        let (waiter, answer) = oneshot::channel();
        let spec = TunnelSpec::http(80).auth("me:secret").expect("valid");
        shared.lock().tunnels.insert(KEY, Entry { waiter: Some(waiter), ..entry(spec) });
        assert!(wanted_now(&shared).is_empty(), "it is not asked for before the version is known");
        let mut tunnels = session(&shared, RuleSupport::LinkVersion1, HashMap::new());
        assert!(tunnels.request(KEY).is_none());
        let Ok(Err(TunnelError::Refused(refusal))) = answer.await else { panic!("not refused") };
        assert_eq!(refusal.code, RefusalCode::DialectUnsupported);
        assert!(refusal.message.contains("`basic-auth`"), "{refusal}");
        assert!(shared.lock().tunnels.is_empty());
    }

    #[tokio::test]
    async fn a_tunnel_that_was_asked_for_too_early_is_closed_where_rules_are_ignored() {
        let (commands, mut receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, None));
        let (waiter, answer) = oneshot::channel();
        let spec = TunnelSpec::http(80).host_header("rewrite").expect("valid");
        shared.lock().tunnels.insert(KEY, Entry { waiter: Some(waiter), ..entry(spec) });
        let [(KEY, early)] = &wanted_now(&shared)[..] else { panic!("not asked for") };
        let asked = HashMap::from([(early.request_id.clone(), KEY)]);
        let mut tunnels = session(&shared, RuleSupport::LinkVersion1, asked);
        tunnels.opened(opened(early.request_id.clone()));
        assert!(matches!(answer.await, Ok(Err(TunnelError::Refused(_)))));
        assert!(matches!(receiver.try_recv(), Ok(Command::Close(KEY))));
        assert!(tunnels.find(&TunnelId::from_text("t")).is_none());
        assert_eq!(tunnels.close(KEY), [TunnelId::from_text("t")]);
    }

    #[tokio::test]
    async fn the_client_applies_rules_in_dialect_3() {
        let (commands, _receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, None));
        let spec = TunnelSpec::http(80).auth("me:secret").and_then(|spec| spec.host_header("a.test"));
        shared.lock().tunnels.insert(KEY, entry(spec.expect("valid")));
        let mut tunnels = session(&shared, RuleSupport::Dialect3, HashMap::new());
        let request = tunnels.request(KEY).expect("wanted");
        tunnels.opened(opened(request.request_id));
        let served = tunnels.find(&TunnelId::from_text("t")).expect("open");
        assert_eq!(served.rules.basic_auth.len(), 1);
        assert_eq!(served.rules.local_origin.as_ref().map(LocalOrigin::host), Some(&b"a.test"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_refused_for_now_is_asked_for_after_growing_pauses_in_every_session() {
        let (commands, mut receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(commands, None));
        shared.lock().tunnels.insert(KEY, entry(TunnelSpec::tcp(22)));
        let mut tunnels = session(&shared, RuleSupport::Dialect3, HashMap::new());
        assert_eq!(tunnels.wanted(&mut receiver), [KEY], "at once for the first time");
        for pause in [3, 6, 12, 24, 48, 60, 60] {
            let request = tunnels.request(KEY).expect("wanted");
            let refusal = Refusal::new(RefusalCode::PortsExhausted, "none is free");
            assert!(tunnels.refused(&request.request_id, refusal));
            // A refusal ends the session in some dialects; the next one waits as long.
            tunnels = session(&shared, RuleSupport::Dialect3, HashMap::new());
            assert!(tunnels.wanted(&mut receiver).is_empty(), "not before its time");
            let began = Instant::now();
            assert_eq!(tunnels.due().await, KEY);
            assert_eq!(began.elapsed().as_secs(), pause);
        }
        let request = tunnels.request(KEY).expect("wanted");
        tunnels.opened(NewTunnel {
            request_id: request.request_id,
            tunnel_id: TunnelId::from_text("t"),
            protocol: TunnelProtocol::Tcp,
            url: "tcp://a.test:1".into(),
            subdomain: String::new(),
            remote_port: Some(1),
        });
        assert!(shared.lock().tunnels[&KEY].retry.is_none(), "an open tunnel starts again with the first pause");
    }
}
