//! How long one authentication takes among 1,000,000 accounts. `cargo bench -p retunnel-server --bench authentication`;
//! `-- NUMBER` takes another number of accounts. Under `cargo test --benches` it only checks that it still works.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::{sync::Arc, time::Duration};

use rand::{RngExt, seq::SliceRandom};
use retunnel_proto::message::Token;
use retunnel_server::{
    auth::{Auth, AuthError, hash_of, new_token},
    store::Store,
};
use tokio::{task::JoinSet, time::Instant};

const ACCOUNTS: usize = 1_000_000;
const ACCOUNTS_OF_A_CHECK: usize = 1_000;
/// Tokens to authenticate with; a tenth as many unknown ones are added.
const SAMPLES: usize = 50_000;
/// Authentications under way at a time. Beyond the number of cores they wait for each other.
const CONCURRENCY: [usize; 3] = [1, 8, 64];

fn main() {
    let wanted = std::env::args().find_map(|argument| argument.parse().ok());
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let accounts = wanted.unwrap_or(if is_bench { ACCOUNTS } else { ACCOUNTS_OF_A_CHECK });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(accounts));
}

async fn run(accounts: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("a store");
    let began = Instant::now();
    let tokens = fill(&store, accounts).await;
    let size = std::fs::metadata(dir.path().join("retunnel.db")).expect("a file").len();
    println!("{accounts} accounts made in {:.1} s, {} MiB", began.elapsed().as_secs_f64(), size / 1024 / 1024);

    let auth = Arc::new(Auth::new(store));
    let tokens = Arc::new(tokens);
    for concurrency in CONCURRENCY {
        report(concurrency, measure(&auth, &tokens, concurrency).await);
    }
}

/// Creates the accounts; returns some of their tokens and some unknown ones in random order. `true`: known.
async fn fill(store: &Store, accounts: usize) -> Vec<(Token, bool)> {
    let every = (accounts / SAMPLES).max(1);
    let mut kept = Vec::new();
    let mut rows = Vec::with_capacity(accounts);
    for number in 0..accounts {
        let token = new_token();
        rows.push((format!("anon-{number:08x}@example.test"), hash_of(token.expose())));
        if number % every == 0 {
            kept.push((token, true));
        }
    }
    rows.sort_unstable_by_key(|(_, hash)| *hash);
    store.create_accounts(&rows).await.expect("accounts");
    kept.extend((0..kept.len() / 10).map(|_| (new_token(), false)));
    kept.shuffle(&mut rand::rng());
    kept
}

async fn measure(auth: &Arc<Auth>, tokens: &Arc<Vec<(Token, bool)>>, concurrency: usize) -> (Vec<Duration>, Duration) {
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        let (auth, tokens) = (Arc::clone(auth), Arc::clone(tokens));
        workers.spawn(async move {
            let mut times = Vec::with_capacity(tokens.len() / concurrency);
            for _ in 0..tokens.len() / concurrency {
                let (token, known) = &tokens[rand::rng().random_range(0..tokens.len())];
                let began = Instant::now();
                let result = auth.authenticate(token).await;
                times.push(began.elapsed());
                assert!(
                    matches!((result, known), (Ok(_), true) | (Err(AuthError::Invalid), false)),
                    "a known token is accepted and an unknown one refused"
                );
            }
            times
        });
    }
    (workers.join_all().await.concat(), began.elapsed())
}

fn report(concurrency: usize, (mut times, took): (Vec<Duration>, Duration)) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{concurrency} at a time: {} authentications, {:.0}/s; p50 {:?}, p99 {:?}, max {:?}",
        times.len(),
        times.len() as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
