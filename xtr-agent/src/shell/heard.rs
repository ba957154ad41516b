//! When was something last heard of each peer? Counters tell how much, not when.

use std::collections::BTreeMap;
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

/// How long after a sign of life a peer counts as connected: as long as WireGuard uses a session.
pub(super) const EVIDENCE: Duration = Duration::from_secs(180);

/// The received bytes of every peer at the last look.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<PublicKey, Last>);

#[derive(Debug)]
struct Last {
    rx_bytes: u64,
    /// When they were last seen to grow.
    grown: Option<Timestamp>,
}

impl Heard {
    /// Notes the counter of a peer.
    pub(super) fn note(&mut self, now: Timestamp, key: PublicKey, rx_bytes: u64) {
        let first = Last {
            rx_bytes,
            grown: None,
        };
        let last = self.0.entry(key).or_insert(first);
        if last.rx_bytes != rx_bytes {
            *last = Last {
                rx_bytes,
                grown: Some(now),
            };
        }
    }

    /// Forgets a peer that is gone.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        self.0.remove(key);
    }

    /// Time since bytes of the peer were last seen to arrive; none before that.
    pub(super) fn since(&self, now: Timestamp, key: &PublicKey) -> Option<Duration> {
        let grown = self.0.get(key)?.grown?;
        Some(now - grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counter_that_grows_is_a_sign_of_life() {
        let key = PublicKey([1; 32]);
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut heard = Heard::default();
        heard.note(at(1), key, 500);
        assert_eq!(
            heard.since(at(2), &key),
            None,
            "nobody knows when they came"
        );
        heard.note(at(5), key, 500);
        assert_eq!(heard.since(at(6), &key), None);
        heard.note(at(9), key, 600);
        heard.note(at(13), key, 600);
        assert_eq!(heard.since(at(15), &key), Some(Duration::from_secs(6)));
        heard.forget(&key);
        assert_eq!(heard.since(at(15), &key), None);
    }
}
