//! Echoes through the tunnels, for `status`: how long is the way to a peer, and do large packets
//! arrive where small ones do?
//!
//! Outer packets of the kernel's WireGuard may be fragmented, so a path that drops large packets, or
//! their fragments, tells nobody. Only what does not come back shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use tracing::warn;
use wg_device::{DeviceError, NetNs, SMALL_ECHO, round_trips};

/// How long peers may take to answer.
const WAIT: Duration = Duration::from_millis(1_000);
/// How long a peer gets no other large echo. Much longer than a report keeps those in use who have
/// received that much: echoes of two ends must not keep their tunnel.
const LARGE_AGAIN: Duration = Duration::from_secs(600);

/// Whom to send echoes for one report, and where.
pub(super) struct Echoes {
    pub(super) netns: Option<String>,
    pub(super) interface: String,
    pub(super) mtu: u16,
    /// Whom to ask, at which address.
    pub(super) targets: BTreeMap<PublicKey, IpAddr>,
    /// Those of them that get a large one as well.
    pub(super) large: BTreeMap<PublicKey, IpAddr>,
    pub(super) holes: BlackHoles,
}

impl Echoes {
    /// The round trips of those that answer. Who answers a small request twice and a large one never
    /// is noted.
    ///
    /// # Errors
    /// The interface is gone, or CAP_NET_RAW is missing.
    pub(super) async fn measure(&self) -> Result<BTreeMap<PublicKey, Duration>, DeviceError> {
        let (small, large) = tokio::try_join!(
            self.ask(&self.targets, SMALL_ECHO),
            self.ask(&self.large, self.mtu)
        )?;
        let mut silent = self.large.clone();
        silent.retain(|key, _| small.contains_key(key) && !large.contains_key(key));
        if !silent.is_empty() {
            // One may be lost by chance.
            let (small, large) =
                tokio::try_join!(self.ask(&silent, SMALL_ECHO), self.ask(&silent, self.mtu))?;
            silent.retain(|key, _| small.contains_key(key) && !large.contains_key(key));
        }
        self.holes.note(&self.large, &silent, self.mtu);
        Ok(small)
    }

    async fn ask(
        &self,
        targets: &BTreeMap<PublicKey, IpAddr>,
        bytes: u16,
    ) -> Result<BTreeMap<PublicKey, Duration>, DeviceError> {
        let netns = self.netns.as_deref().map(NetNs::open).transpose()?;
        let addresses: Vec<IpAddr> = targets.values().copied().collect();
        let answered =
            round_trips(netns.as_ref(), &self.interface, &addresses, bytes, WAIT).await?;
        let answered = targets
            .iter()
            .filter_map(|(key, address)| Some((*key, *answered.get(address)?)));
        Ok(answered.collect())
    }
}

/// Peers that large packets do not reach. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct BlackHoles(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// When a peer got its last large echo.
    asked: BTreeMap<PublicKey, Timestamp>,
    holes: BTreeSet<PublicKey>,
}

impl BlackHoles {
    /// Those of `targets` whose turn it is to get a large echo, and forgets all peers but `peers`.
    pub(super) fn due(
        &self,
        now: Timestamp,
        targets: &BTreeMap<PublicKey, IpAddr>,
        is_peer: impl Fn(&PublicKey) -> bool,
    ) -> BTreeMap<PublicKey, IpAddr> {
        let mut found = self.found();
        found.asked.retain(|key, _| is_peer(key));
        found.holes.retain(is_peer);
        let mut due = targets.clone();
        due.retain(|key, _| {
            let last = found.asked.get(key);
            last.is_none_or(|last| now - *last >= LARGE_AGAIN)
        });
        found.asked.extend(due.keys().map(|key| (*key, now)));
        due
    }

    fn note(
        &self,
        asked: &BTreeMap<PublicKey, IpAddr>,
        silent: &BTreeMap<PublicKey, IpAddr>,
        mtu: u16,
    ) {
        let mut found = self.found();
        for key in asked.keys() {
            if !silent.contains_key(key) {
                found.holes.remove(key);
            } else if found.holes.insert(*key) {
                warn!(event = "path_mtu", key = %key.short(), "{}", complaint(key, mtu));
            }
        }
    }

    /// What is wrong at present, a line for each peer.
    pub(super) fn complaints(&self, mtu: u16) -> Vec<String> {
        let found = self.found();
        found.holes.iter().map(|key| complaint(key, mtu)).collect()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn complaint(key: &PublicKey, mtu: u16) -> String {
    format!(
        "packets of {mtu} bytes do not reach peer {} and come back, though small ones do: a link of the \
         path drops large packets without a word; set a smaller `mtu` here and at the far end",
        key.short()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_a_large_echo_now_and_then_and_is_forgotten_when_it_goes() {
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let key = PublicKey([1; 32]);
        let targets = BTreeMap::from([(key, "10.0.0.1".parse().unwrap())]);
        let holes = BlackHoles::default();
        let due = |seconds| holes.due(at(seconds), &targets, |_| true).len();
        assert_eq!((due(0), due(599), due(600), due(601)), (1, 0, 1, 0));
        holes.note(&targets, &targets, 1_420);
        assert!(holes.complaints(1_420)[0].contains("set a smaller `mtu`"));
        holes.note(&targets, &BTreeMap::new(), 1_420);
        assert!(holes.complaints(1_420).is_empty());
        holes.note(&targets, &targets, 1_420);
        holes.due(at(602), &BTreeMap::new(), |_| false);
        assert!(holes.complaints(1_420).is_empty());
        assert_eq!(due(603), 1);
    }
}
