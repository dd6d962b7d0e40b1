//! Lanes that clients were asked to open: each nonce is valid for one connection of one session, for a few seconds.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use data_encoding::HEXLOWER;
use rand::RngExt;
use retunnel_link::{Lane, Link};
use retunnel_proto::message::Token;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How long a client may take to connect.
const VALID_FOR: Duration = Duration::from_secs(10);
/// Nonces of all sessions at a time. Beyond it no lane is asked for, and the stream stays on its link.
const MAX_NONCES: usize = 16_384;

/// A lane that was asked for.
#[derive(Debug)]
struct Asked {
    link: Link,
    number: u32,
    until: Instant,
}

/// The nonces of a server, by their SHA-256.
#[derive(Debug, Default)]
pub(super) struct LaneDesk {
    asked: Mutex<HashMap<[u8; 32], Asked>>,
}

impl LaneDesk {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Asked>> {
        self.asked.lock().expect("no code panics while it holds the nonces")
    }

    /// A nonce for lane `number` of a link: 256 random bits. `None`: too many are out.
    pub(super) fn ask(&self, link: &Link, number: u32) -> Option<Token> {
        let nonce = Token::new(HEXLOWER.encode(&rand::rng().random::<[u8; 32]>()));
        let mut asked = self.lock();
        if asked.len() >= MAX_NONCES {
            return None;
        }
        asked.insert(digest(&nonce), Asked { link: link.clone(), number, until: Instant::now() + VALID_FOR });
        Some(nonce)
    }

    /// The place of a connection with this nonce. A nonce is valid once.
    pub(super) fn take(&self, nonce: &Token) -> Option<Place> {
        let asked = self.lock().remove(&digest(nonce))?;
        (asked.until > Instant::now()).then_some(Place { link: asked.link, number: asked.number })
    }

    /// Forgets expired nonces.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, asked| asked.until > now && !asked.link.is_closed());
    }
}

/// The session and number of a lane.
#[derive(Debug)]
pub(super) struct Place {
    link: Link,
    number: u32,
}

impl Place {
    /// The lane is open.
    pub(super) fn fill(self, lane: Lane) {
        self.link.add_lane(self.number, lane);
    }
}

fn digest(nonce: &Token) -> [u8; 32] {
    Sha256::digest(nonce.expose()).into()
}
