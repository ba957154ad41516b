//! Counters of a few peers out of many, at a bounded cost.
//!
//! Both data planes can only tell about all peers at once: the kernel's `WG_CMD_GET_DEVICE` has no
//! filter, and neither has gotatun's device API. So a reading is used again for some time, which
//! grows with what it has cost: among few peers that is next to nothing, and among 20,000 looking
//! for one handshake every 5 ms takes no more than its share of a processor.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lisp_proto::PublicKey;
use tokio::time::Instant;

use crate::clock;
use crate::types::PeerStats;

/// How much hangs on how old counters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Not much.
    None,
    /// Whether packets wait on.
    PacketsWait,
}

/// The counters of all peers as last read.
#[derive(Debug, Default)]
pub(crate) struct PacedStats {
    reading: tokio::sync::Mutex<Option<Reading>>,
    /// Peers removed since the reading began: what it says of them is about a session that is gone.
    removed: Mutex<HashSet<PublicKey>>,
}

#[derive(Debug)]
struct Reading {
    peers: HashMap<PublicKey, PeerStats>,
    taken: Instant,
    cost: Duration,
}

impl PacedStats {
    /// Returns the counters of those of `keys` that the last reading has, or else a new one, which
    /// `read` takes.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) async fn of<E>(
        &self,
        keys: &[PublicKey],
        urgency: Urgency,
        read: impl Future<Output = Result<Vec<PeerStats>, E>>,
    ) -> Result<Vec<PeerStats>, E> {
        let mut reading = self.reading.lock().await;
        let start = clock::now();
        let is_good = |last: &Reading| last.is_good_at(start, urgency);
        let last = match reading.take().filter(is_good) {
            Some(last) => last,
            None => {
                self.removed().clear();
                let peers = read.await?;
                let taken = clock::now();
                Reading {
                    peers: peers.into_iter().map(|peer| (peer.key, peer)).collect(),
                    taken,
                    cost: taken.saturating_duration_since(start),
                }
            }
        };
        let age = start.saturating_duration_since(last.taken);
        let removed = self.removed();
        let wanted = keys.iter().filter(|key| !removed.contains(*key));
        let found = wanted.filter_map(|key| last.peers.get(key)).cloned();
        let stats = found.map(|peer| PeerStats {
            since_handshake: peer.since_handshake.map(|since| since + age),
            ..peer
        });
        let stats = stats.collect();
        drop(removed);
        *reading = Some(last);
        Ok(stats)
    }

    /// Forgets what was read of a peer that is removed.
    pub(crate) fn forget(&self, key: &PublicKey) {
        self.removed().insert(*key);
    }

    fn removed(&self) -> MutexGuard<'_, HashSet<PublicKey>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn is_good_at(&self, now: Instant, urgency: Urgency) -> bool {
        let rest = match urgency {
            Urgency::None => REST,
            Urgency::PacketsWait => REST_OF_THE_HASTY,
        };
        now.saturating_duration_since(self.taken) < self.cost * rest
    }
}

/// How many times as long as it took a reading is used: reading takes a sixth of the time at most.
const REST: u32 = 5;
/// The same, where something is decided by it that packets wait for: a third of the time.
const REST_OF_THE_HASTY: u32 = 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const ALPHA: PublicKey = PublicKey([1; 32]);
    const BETA: PublicKey = PublicKey([2; 32]);

    /// Reads of a data plane that needs 10 ms for each.
    struct Slow(AtomicU32);

    impl Slow {
        async fn read(&self) -> Result<Vec<PeerStats>, ()> {
            let read_at = clock::now();
            tokio::time::advance(Duration::from_millis(10)).await;
            let count = u64::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1;
            let row = |key| PeerStats {
                key,
                endpoint: None,
                since_handshake: Some(Duration::ZERO),
                rx_bytes: count,
                tx_bytes: 0,
                read_at,
            };
            Ok(vec![row(ALPHA), row(BETA)])
        }
    }

    #[test]
    fn looking_often_reads_no_more_than_a_share_of_the_time() {
        run(async {
            let (slow, stats) = (Slow(AtomicU32::new(0)), PacedStats::default());
            for _ in 0..100 {
                let found = stats
                    .of(&[ALPHA], Urgency::None, slow.read())
                    .await
                    .unwrap();
                assert_eq!(found.len(), 1);
                tokio::time::advance(Duration::from_millis(5)).await;
            }
            let reads = slow.0.load(Ordering::Relaxed);
            assert!((8..=10).contains(&reads), "{reads} readings in 600 ms");
        });
    }

    #[test]
    fn what_packets_wait_for_is_read_more_often_and_says_when() {
        run(async {
            let (slow, stats) = (Slow(AtomicU32::new(0)), PacedStats::default());
            for _ in 0..100 {
                let asked = clock::now();
                let found = stats.of(&[ALPHA], Urgency::PacketsWait, slow.read());
                let age = asked.saturating_duration_since(found.await.unwrap()[0].read_at);
                assert!(age <= Duration::from_millis(30), "{age:?}");
                tokio::time::advance(Duration::from_millis(5)).await;
            }
            let reads = slow.0.load(Ordering::Relaxed);
            assert!((16..=25).contains(&reads), "{reads} readings in 700 ms");
        });
    }

    /// What a calm look says of `key`.
    async fn look(stats: &PacedStats, slow: &Slow, key: PublicKey) -> Vec<PeerStats> {
        let keys = [key];
        let found = stats.of(&keys, Urgency::None, slow.read());
        found.await.unwrap()
    }

    #[test]
    fn a_peer_that_was_removed_has_no_counters_until_the_next_reading() {
        run(async {
            let (slow, stats) = (Slow(AtomicU32::new(0)), PacedStats::default());
            assert_eq!(look(&stats, &slow, BETA).await.len(), 1);
            stats.forget(&BETA);
            assert_eq!(look(&stats, &slow, BETA).await, []);
            assert_eq!(look(&stats, &slow, ALPHA).await.len(), 1);
            tokio::time::advance(Duration::from_millis(50)).await;
            assert_eq!(look(&stats, &slow, BETA).await.len(), 1);
        });
    }

    #[test]
    fn the_time_since_a_handshake_goes_on() {
        run(async {
            let (slow, stats) = (Slow(AtomicU32::new(0)), PacedStats::default());
            look(&stats, &slow, ALPHA).await;
            tokio::time::advance(Duration::from_millis(7)).await;
            let later = look(&stats, &slow, ALPHA).await;
            assert_eq!(later[0].since_handshake, Some(Duration::from_millis(7)));
        });
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(test);
    }
}
