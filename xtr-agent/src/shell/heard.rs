//! When was something last heard of each peer? Counters tell how much, not when.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use serde::Serialize;

/// How long after a sign of life a peer counts as connected: as long as WireGuard uses a session.
pub(super) const EVIDENCE: Duration = Duration::from_secs(180);

/// How long after it was used a peer gets echoes.
const ECHOED: Duration = Duration::from_secs(60);
/// Most bytes that echoes of both ends between two reports, and WireGuard for itself, bring: an
/// echo is 96 bytes, a handshake 148, a keepalive 32.
const ECHO_BYTES: u64 = 512;

/// The same, for the loop and for those who read counters beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedHeard(Arc<Mutex<Heard>>);

impl SharedHeard {
    /// For the time of one peer only: the loop waits.
    pub(super) fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The received bytes of every peer at the last look, and at the last report.
#[derive(Debug, Default)]
pub(super) struct Heard {
    looks: BTreeMap<PublicKey, Last>,
    reports: BTreeMap<PublicKey, Used>,
    /// The peer that got the last echo of a report that had not room for all.
    echoed_last: Option<PublicKey>,
}

/// Whether a peer gets an echo for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Echo {
    /// It gets one.
    Sent,
    /// There is no session to send it through.
    NotConnected,
    /// All its prefixes are those of networks: nobody knows an address that answers.
    NoHostPrefix,
    /// Nobody but echoes has used it for a minute.
    NotUsed,
    /// Other peers have their turn.
    NotItsTurn,
}

#[derive(Debug)]
struct Used {
    rx_bytes: u64,
    /// The last report that found it in use.
    at: Timestamp,
}

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
        let last = self.looks.entry(key).or_insert(first);
        if last.rx_bytes != rx_bytes {
            *last = Last {
                rx_bytes,
                grown: Some(now),
            };
        }
    }

    /// Forgets a peer that is gone.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        self.looks.remove(key);
        self.reports.remove(key);
    }

    /// Whether to send a peer an echo for this report. Echoes move its counters: those who ask often
    /// must not keep a peer that nobody uses.
    fn deserves_echo(&mut self, now: Timestamp, key: PublicKey, rx_bytes: u64) -> bool {
        let first = Used { rx_bytes, at: now };
        let used = self.reports.entry(key).or_insert(first);
        // Counters of a peer that was put back start anew.
        if rx_bytes.saturating_sub(used.rx_bytes) > ECHO_BYTES {
            used.at = now;
        }
        used.rx_bytes = rx_bytes;
        now - used.at < ECHOED
    }

    /// Which of `peers` get an echo for this report, at most so many: those that got none before come
    /// first. Each is given with an address that answers, if it has one, and its counter.
    pub(super) fn echoes(
        &mut self,
        now: Timestamp,
        peers: &BTreeMap<PublicKey, (Option<IpAddr>, u64)>,
        most: usize,
    ) -> BTreeMap<PublicKey, Echo> {
        let mut echoes = BTreeMap::new();
        let last = self.echoed_last.take();
        let (before, after): (Vec<_>, Vec<_>) =
            peers.iter().partition(|(key, _)| Some(**key) <= last);
        let (mut sent, mut latest) = (0, None);
        for (key, (address, rx_bytes)) in after.into_iter().chain(before) {
            let echo = if address.is_none() {
                Echo::NoHostPrefix
            } else if sent == most {
                self.echoed_last = latest;
                Echo::NotItsTurn
            } else if self.deserves_echo(now, *key, *rx_bytes) {
                (sent, latest) = (sent + 1, Some(*key));
                Echo::Sent
            } else {
                Echo::NotUsed
            };
            echoes.insert(*key, echo);
        }
        echoes
    }

    /// Time since bytes of the peer were last seen to arrive; none before that.
    pub(super) fn since(&self, now: Timestamp, key: &PublicKey) -> Option<Duration> {
        let grown = self.looks.get(key)?.grown?;
        Some(now - grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_do_not_keep_a_peer_that_nobody_uses() {
        let key = PublicKey([1; 32]);
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut heard = Heard::default();
        let mut rx_bytes = 5_000;
        let mut echoes = |from: u64, used: u64| {
            let reports = (from..from + 300).step_by(5);
            let deserved = reports.filter(|seconds| {
                rx_bytes += used;
                let echo = heard.deserves_echo(at(*seconds), key, rx_bytes);
                rx_bytes += if echo { 96 } else { 0 };
                echo
            });
            deserved.count()
        };
        assert_eq!(echoes(0, 0), 12, "for a minute after the first report");
        assert_eq!(echoes(300, 0), 0);
        assert_eq!(echoes(600, 1_000), 60, "it is used");
        assert_eq!(echoes(900, 0), 11);
    }

    #[test]
    fn peers_take_turns_in_getting_echoes() {
        let key = |number: u8| PublicKey([number; 32]);
        let mut peers = BTreeMap::new();
        for number in 0..5 {
            peers.insert(key(number), ("10.0.0.1".parse().ok(), 0));
        }
        peers.insert(key(5), (None, 0));
        let mut heard = Heard::default();
        let mut report = || {
            let echoes = heard.echoes(Timestamp::ZERO, &peers, 2);
            assert_eq!(echoes.len(), 6);
            assert_eq!(echoes[&key(5)], Echo::NoHostPrefix);
            let waiting = echoes.values().filter(|echo| **echo == Echo::NotItsTurn);
            assert_eq!(waiting.count(), 3);
            let sent = echoes.iter().filter(|(_, echo)| **echo == Echo::Sent);
            sent.map(|(key, _)| key.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(report(), [0, 1]);
        assert_eq!(report(), [2, 3]);
        assert_eq!(report(), [0, 4]);
        assert_eq!(report(), [1, 2]);
        let all = heard.echoes(Timestamp::ZERO, &peers, 64);
        assert!(!all.values().any(|echo| *echo == Echo::NotItsTurn));
    }

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
