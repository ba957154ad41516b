//! When does a map server look where its peers are, and what does it hear then? As the daemon's shell does it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

use super::wireguard::Sight;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same, while somebody is behind a NAT.
const INTERVAL_WATCHING: Duration = Duration::from_secs(2);
/// Least time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// The same, while somebody is looked for who may come any moment.
const PAUSE_IN_SEARCH: Duration = Duration::from_millis(100);
/// How long somebody is looked for that hard.
const SEARCH: Duration = Duration::from_secs(10);
/// Two handshakes are further apart than that.
const HANDSHAKE_APART: Duration = Duration::from_secs(1);
/// Length of the first message of a handshake.
const INITIATION: u64 = 148;

/// A map server's look at the peers of its control interface.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    reported: BTreeMap<PublicKey, Sight>,
    /// Who is watched and was not seen yet, since when.
    sought: BTreeMap<PublicKey, Timestamp>,
    watched: BTreeSet<PublicKey>,
    last: Timestamp,
    /// Whether there is a reason to look.
    called: bool,
}

impl Lookout {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            last: now,
            ..Self::default()
        }
    }

    /// The holder of `key` is watched from now on, or no longer.
    pub(super) fn note(&mut self, now: Timestamp, key: PublicKey, watch: bool) {
        self.reported.remove(&key);
        if watch {
            self.sought.insert(key, now);
            self.watched.insert(key);
        } else {
            self.sought.remove(&key);
            self.watched.remove(&key);
        }
    }

    /// There is a reason to look soon.
    pub(super) fn call(&mut self) {
        self.called = true;
    }

    /// When the next look is.
    pub(super) fn next(&self) -> Timestamp {
        if !self.sought.is_empty() {
            return self.last + PAUSE_IN_SEARCH;
        }
        if self.called {
            return self.last + PAUSE;
        }
        let interval = match self.watched.is_empty() {
            true => INTERVAL,
            false => INTERVAL_WATCHING,
        };
        self.last + interval
    }

    /// A look has found `peers`; returns those that are elsewhere than before.
    pub(super) fn found(
        &mut self,
        now: Timestamp,
        peers: impl Iterator<Item = Sight>,
    ) -> Vec<(PublicKey, SocketAddr)> {
        self.last = now;
        if self.sought.is_empty() {
            self.called = false;
        }
        let mut news = Vec::new();
        for sight in peers {
            let Sight { key, endpoint, .. } = sight;
            self.sought.remove(&key);
            let before = self.reported.get(&key);
            let is_elsewhere = before.is_none_or(|before| before.endpoint != endpoint);
            if is_elsewhere && before.is_some_and(|before| may_be_repeated(&sight, before)) {
                continue;
            }
            self.reported.insert(key, sight);
            if is_elsewhere {
                news.push((key, endpoint));
            }
        }
        self.sought.retain(|_, since| now - *since < SEARCH);
        news
    }
}

/// Whether nothing has come since `before` but first messages of handshakes that did not come about.
fn may_be_repeated(sight: &Sight, before: &Sight) -> bool {
    let is_newer = sight.shaken > before.shaken + HANDSHAKE_APART;
    let received = sight.received.wrapping_sub(before.received);
    !is_newer && received > 0 && received.is_multiple_of(INITIATION)
}
