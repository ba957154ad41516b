//! What the agent knows, kept for its next start: known peers work then before any map server answers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{InstanceId, PublicKey, Timestamp};
use serde::{Deserialize, Serialize};

use super::apart::Way;
use super::event::Cause;
use super::install::What;
use super::limits::{MAP_CACHE_ENTRIES, RESTORED_REFRESH, refresh_after};
use super::locators::Known;
use super::map_cache::{Chosen, Entry, State};
use super::nat::Sighting;
use super::trace::whole;
use super::{Actions, Agent, Change, Timer};

/// What an agent knows that outlives it. Peers and routes follow from the mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whose address plan the prefixes are from.
    pub iid: InstanceId,
    /// Key of the data interface: the far ends know no other one.
    pub public_key: Option<PublicKey>,
    /// Every mapping that has a peer.
    pub mappings: Vec<SavedMapping>,
    /// Where a NAT lets us appear.
    #[serde(default)]
    pub seen_at: Option<Sighting>,
    /// The peers that can be reached in several ways.
    #[serde(default)]
    pub locators: Vec<SavedLocators>,
}

/// The locators of one peer in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLocators {
    /// Key of the peer.
    pub key: PublicKey,
    /// Those that it has, the best first.
    pub usable: Vec<SavedLocator>,
    /// Those that it had: that one of them is back is nothing new.
    pub gone: Vec<SavedLocator>,
}

/// One locator of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLocator {
    /// Where it is.
    pub endpoint: SocketAddr,
    /// Its priority: the lowest number comes first.
    pub priority: u8,
    /// Its weight among those of one priority.
    pub weight: u8,
}

/// One mapping in a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMapping {
    /// The prefix.
    pub prefix: IpNet,
    /// What its owner registered: the prefix, or one around it.
    pub region: IpNet,
    /// Key of the peer that serves it.
    pub key: PublicKey,
    /// Where the mapping says that the peer lives. It may have roamed since.
    pub endpoint: SocketAddr,
    /// How long it was still good for, in seconds.
    pub ttl_left_s: u64,
    /// Nobody used it: its peer was there, its routes were not.
    #[serde(default)]
    pub dozing: bool,
    /// The peer is a relay, which only carries the packets.
    #[serde(default)]
    pub relayed: bool,
    /// The peer is behind a NAT.
    #[serde(default)]
    pub hidden: bool,
}

impl Agent {
    /// What the agent knows at `now`, for [`Self::restore`] in its next life.
    ///
    /// Costs as much as there are mappings. A shell writes it every now and then and before it
    /// exits, together with the wall-clock time. One that will be back, with interfaces that
    /// outlive it, does not feed [`Input::Shutdown`](super::Input::Shutdown): that withdraws and
    /// removes everything.
    #[must_use]
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let mappings = self.cache.iter().filter_map(|(prefix, entry)| {
            let Chosen { key, endpoint } = entry.chosen?;
            let way = self.apart.way(&prefix);
            Some(SavedMapping {
                prefix,
                region: entry.region,
                key,
                endpoint,
                ttl_left_s: whole(entry.expires - now, Duration::from_secs(1)),
                dozing: entry.state == State::Dozing,
                relayed: way.relay == Some(key),
                hidden: way.hidden == Some(key),
            })
        });
        Snapshot {
            iid: self.config.iid,
            public_key: Some(self.config.public_key),
            mappings: mappings.collect(),
            seen_at: self.sighting(),
            locators: self.saved_locators(),
        }
    }

    fn saved_locators(&self) -> Vec<SavedLocators> {
        let each = self.locators.each();
        let saved = each.map(|(key, usable, gone)| SavedLocators {
            key: *key,
            usable: usable.iter().copied().map(SavedLocator::from).collect(),
            gone: gone.into_iter().map(SavedLocator::from).collect(),
        });
        saved.collect()
    }

    /// Takes a snapshot that was made `age` ago back in. To be called on a new agent, before
    /// [`Input::Start`](super::Input::Start); `actions` are carried out like those of
    /// [`Self::handle`].
    ///
    /// `adopted` are the peers that the data plane still has, with their sessions. The changes
    /// name every peer as it shall be and every route, all at once and none twice in different
    /// ways: for an adopted peer without an endpoint, so that the one it has roamed to stays, and
    /// always with all its AllowedIPs. A data plane that makes no more of a change than differs
    /// from what it has leaves adopted peers untouched. Peers and routes it has that no change
    /// names are to be removed by the shell once these are done.
    ///
    /// What is too old, or does not fit the configuration any more, is left out. The mappings are
    /// asked for again, a few at a time, once a map server has acknowledged a registration.
    pub fn restore(
        &mut self,
        now: Timestamp,
        snapshot: &Snapshot,
        age: Duration,
        adopted: &[PublicKey],
        actions: &mut Actions,
    ) {
        let same_key = snapshot.public_key == Some(self.config.public_key);
        if snapshot.iid != self.config.iid || !same_key {
            return;
        }
        if let Some(sighting) = &snapshot.seen_at {
            self.believe_to_be_at(now, sighting);
        }
        let adopted: BTreeSet<PublicKey> = adopted.iter().copied().collect();
        let mut taken = Vec::new();
        for saved in &snapshot.mappings {
            let left = Duration::from_secs(saved.ttl_left_s).saturating_sub(age);
            // The far end of an idle one may have forgotten us: without its session it is of no use.
            let is_of_use = !saved.dozing || adopted.contains(&saved.key);
            if !left.is_zero() && is_of_use && self.fits(saved) {
                self.restore_mapping(now, saved, left);
                taken.push((saved.prefix, saved.key));
            }
        }
        for key in &adopted {
            self.peers.note_handshake(key);
        }
        for saved in &snapshot.locators {
            self.restore_locators(now, saved);
        }
        // Peers in use are asked for first when a map server is there.
        taken.sort_by_key(|(_, key)| !adopted.contains(key));
        for (prefix, key) in taken {
            let Some(spec) = self.peers.restored(&key, !adopted.contains(&key)) else {
                continue;
            };
            let id = self.change(What::Peer(prefix), Change::SetPeer(spec), actions);
            if let Some(entry) = self.cache.get_mut(&prefix) {
                entry.change = Some(id);
            }
            if self.cache.get(&prefix).is_some_and(is_dozing) {
                continue;
            }
            self.restored.push(prefix);
        }
    }

    /// Whether a saved mapping is one that we would take in today.
    fn fits(&self, saved: &SavedMapping) -> bool {
        let SavedMapping { prefix, region, .. } = saved;
        let well_formed = prefix.trunc() == *prefix && region.contains(prefix);
        well_formed
            && !self.routes_for(prefix).is_empty()
            && !self.is_own(&self.eid(*prefix))
            && self.may_be_peer(&saved.key)
            && self.is_reachable(&saved.endpoint)
            && self.cache.len() < MAP_CACHE_ENTRIES
            && (self.peers.len() < self.config.max_peers || self.peers.contains(&saved.key))
            && self.cache.get(prefix).is_none()
    }

    fn restore_mapping(&mut self, now: Timestamp, saved: &SavedMapping, left: Duration) {
        let SavedMapping {
            prefix,
            region,
            key,
            endpoint,
            ttl_left_s: _,
            dozing,
            relayed,
            hidden,
        } = *saved;
        let chosen = Chosen { key, endpoint };
        let state = if dozing {
            State::Dozing
        } else {
            State::Installing
        };
        let mut entry = Entry::new(prefix, state, Some(chosen), now, now + left);
        entry.cause = Cause::Restored;
        self.cache.insert(prefix, entry);
        self.cache.set_region(prefix, region);
        let way = Way {
            relay: relayed.then_some(key),
            hidden: hidden.then_some(key),
        };
        self.apart.recall(prefix, way);
        self.peers.install(key, endpoint, prefix);
        self.watch_liveness(now, key);
        if dozing {
            self.liveness.begin_unused(key);
        }
        self.deadlines.set(Timer::Entry(prefix), now + left);
        let refresh = now + refresh_after(left);
        self.deadlines.set(Timer::Refresh(prefix), refresh);
    }

    /// Why the locator in use is the one in use is known again: it stays until something new is said.
    fn restore_locators(&mut self, now: Timestamp, saved: &SavedLocators) {
        let Some(used) = self.peers.endpoint(&saved.key) else {
            return;
        };
        let known = |saved: &[SavedLocator]| -> Vec<Known> {
            let reachable = saved.iter().filter(|it| self.is_reachable(&it.endpoint));
            reachable.copied().map(Known::from).collect()
        };
        let (usable, gone) = (known(&saved.usable), known(&saved.gone));
        let is_watched = self.has_uplinks(used);
        self.locators
            .learn(now, saved.key, usable, used, is_watched);
        self.locators.recall(&saved.key, &gone);
        self.begin_watching(now);
    }

    /// A map server is there: asks for what was restored, a few at a time.
    pub(super) fn refresh_restored(&mut self, now: Timestamp) {
        let mut at = now;
        for prefix in std::mem::take(&mut self.restored) {
            let entry = self.cache.get(&prefix);
            if entry.is_some_and(|entry| entry.cause == Cause::Restored) {
                self.deadlines.set(Timer::Refresh(prefix), at);
                at = at + RESTORED_REFRESH;
            }
        }
    }
}

impl From<Known> for SavedLocator {
    fn from(known: Known) -> Self {
        let Known {
            endpoint,
            priority,
            weight,
        } = known;
        Self {
            endpoint,
            priority,
            weight,
        }
    }
}

impl From<SavedLocator> for Known {
    fn from(saved: SavedLocator) -> Self {
        let SavedLocator {
            endpoint,
            priority,
            weight,
        } = saved;
        Self {
            endpoint,
            priority,
            weight,
        }
    }
}

/// Nobody uses it: it is asked for when a packet goes there.
fn is_dozing(entry: &Entry) -> bool {
    entry.state == State::Dozing
}
