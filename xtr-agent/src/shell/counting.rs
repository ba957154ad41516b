//! Counters are read beside the loop: among thousands of peers that takes longer than a TUN keeps
//! packets.

use std::collections::BTreeSet;

use lisp_proto::PublicKey;
use tokio::task::{AbortHandle, Id, JoinSet};
use wg_device::{DeviceError, PeerStats};

use super::clock::Clock;
use crate::agent;

/// What a reading has found.
pub(super) type Found = Result<Vec<PeerStats>, DeviceError>;

/// The readings of one instance: one at a time. What is wanted meanwhile is for the next one.
#[derive(Debug, Default)]
pub(super) struct Counting {
    wanted: BTreeSet<PublicKey>,
    /// Whether packets wait for some of that.
    hasty: bool,
    under_way: Option<AbortHandle>,
    /// Peers that were removed since the reading under way began: what it finds of them is about
    /// sessions that are gone, and they may be back.
    removed: BTreeSet<PublicKey>,
}

impl Counting {
    /// Notes that the counters of `keys` are wanted, and whether packets wait for them.
    pub(super) fn want(&mut self, keys: Vec<PublicKey>, hasty: bool) {
        self.wanted.extend(keys);
        self.hasty |= hasty;
    }

    /// Notes that a peer is being removed.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        if self.under_way.is_some() {
            self.removed.insert(*key);
        }
    }

    /// Begins a reading of what is wanted, if something is and none is under way: `read` gets the
    /// keys, and whether packets wait.
    pub(super) fn begin<F>(
        &mut self,
        readings: &mut JoinSet<Found>,
        read: impl FnOnce(Vec<PublicKey>, bool) -> F,
    ) where
        F: Future<Output = Found> + Send + 'static,
    {
        if self.under_way.is_some() || self.wanted.is_empty() {
            return;
        }
        let keys = std::mem::take(&mut self.wanted).into_iter().collect();
        let hasty = std::mem::take(&mut self.hasty);
        self.under_way = Some(readings.spawn(read(keys, hasty)));
    }

    /// Whether `id` is the reading under way.
    pub(super) fn is_under_way(&self, id: Id) -> bool {
        let under_way = self.under_way.as_ref();
        under_way.is_some_and(|reading| reading.id() == id)
    }

    /// The reading under way has ended: what of `found` is still so.
    pub(super) fn ended(&mut self, found: Found) -> Found {
        self.under_way = None;
        let removed = std::mem::take(&mut self.removed);
        let mut found = found?;
        found.retain(|peer| !removed.contains(&peer.key));
        Ok(found)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(reading) = &self.under_way {
            reading.abort();
        }
    }
}

/// What an agent is told of counters that were read.
pub(super) fn told(found: &[PeerStats], clock: Clock) -> Vec<agent::PeerStats> {
    let told = found.iter().map(|peer| agent::PeerStats {
        key: peer.key,
        endpoint: peer.endpoint,
        handshake_seen: peer.since_handshake.is_some(),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        read_at: clock.of(peer.read_at),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use lisp_proto::Timestamp;
    use tokio::sync::mpsc;

    use super::*;

    const ALPHA: PublicKey = PublicKey([1; 32]);
    const BETA: PublicKey = PublicKey([2; 32]);

    /// A data plane whose readings end when the test says so, each with all peers.
    struct Slow {
        readings: JoinSet<Found>,
        counting: Counting,
        begun: Vec<(Vec<PublicKey>, bool)>,
        end: Vec<mpsc::Sender<()>>,
    }

    impl Slow {
        fn new() -> Self {
            Self {
                readings: JoinSet::new(),
                counting: Counting::default(),
                begun: Vec::new(),
                end: Vec::new(),
            }
        }

        fn want(&mut self, keys: &[PublicKey], hasty: bool) {
            self.counting.want(keys.to_vec(), hasty);
            self.begin();
        }

        fn begin(&mut self) {
            let (begun, ends) = (&mut self.begun, &mut self.end);
            self.counting.begin(&mut self.readings, |keys, hasty| {
                begun.push((keys.clone(), hasty));
                let (end, mut ended) = mpsc::channel(1);
                ends.push(end);
                async move {
                    ended.recv().await;
                    Ok(keys.into_iter().map(counters).collect())
                }
            });
        }

        /// Ends the reading under way; the peers that it tells of.
        async fn end(&mut self) -> Vec<PublicKey> {
            self.end.remove(0).send(()).await.unwrap();
            let (id, found) = self.readings.join_next_with_id().await.unwrap().unwrap();
            assert!(self.counting.is_under_way(id));
            let found = self.counting.ended(found).unwrap();
            found.into_iter().map(|peer| peer.key).collect()
        }
    }

    fn counters(key: PublicKey) -> PeerStats {
        PeerStats {
            key,
            endpoint: None,
            since_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            read_at: Clock::start().instant(Timestamp::ZERO),
        }
    }

    #[tokio::test]
    async fn there_is_one_reading_at_a_time_and_what_is_wanted_meanwhile_is_read_next() {
        let mut slow = Slow::new();
        slow.want(&[ALPHA], false);
        slow.want(&[BETA, ALPHA], false);
        slow.want(&[BETA], true);
        assert_eq!(slow.begun, [(vec![ALPHA], false)]);
        assert_eq!(slow.end().await, [ALPHA]);
        slow.begin();
        assert_eq!(slow.begun[1], (vec![ALPHA, BETA], true));
        assert_eq!(slow.end().await, [ALPHA, BETA]);
        slow.begin();
        assert_eq!(slow.begun.len(), 2, "nothing is wanted any more");
    }

    #[tokio::test]
    async fn nothing_is_told_of_a_peer_that_was_removed_meanwhile_though_it_is_back() {
        let mut slow = Slow::new();
        slow.counting.forget(&BETA);
        slow.want(&[ALPHA, BETA], false);
        slow.counting.forget(&ALPHA);
        slow.want(&[ALPHA], false);
        assert_eq!(slow.end().await, [BETA], "it went before the reading");
        slow.begin();
        assert_eq!(slow.end().await, [ALPHA], "it is the new one");
    }

    #[tokio::test]
    async fn a_reading_ends_with_its_instance() {
        let mut slow = Slow::new();
        slow.want(&[ALPHA], false);
        slow.counting = Counting::default();
        let ended = slow.readings.join_next().await.unwrap();
        assert!(ended.unwrap_err().is_cancelled());
    }
}
