//! The map-cache: what the agent knows about EID-prefixes, by longest match.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{Action as MapAction, Nonce, PublicKey, Timestamp};
use prefix_trie::PrefixMap;

use super::ChangeId;
use super::doubt::Doubt;
use super::event::Cause;
use super::hold::Held;
use super::limits::LATE_ANSWERS;

/// How far a mapping is on its way into the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The data plane is being told of the peer.
    Installing,
    /// The peer is there; its own handshake is awaited until the deadline, so
    /// that two crossing initiations do not cancel each other out.
    Awaiting(Timestamp),
    /// The first held packets were sent on, which starts the handshake; the
    /// others wait until it was seen.
    Opening,
    /// Held packets were sent on; the route past the agent is being set.
    Routing,
    /// The kernel forwards without the agent.
    Active,
    /// Nobody uses it: packets are caught again, and the peer is still there.
    Dozing,
    /// There is no mapping; packets are refused.
    Negative(MapAction),
}

/// The locator that the agent chose of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Key of the peer.
    pub key: PublicKey,
    /// Where it lives.
    pub endpoint: SocketAddr,
}

/// One EID-prefix in the map-cache.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it stands.
    pub(super) state: State,
    /// What its owner registered: the prefix itself, or one around it of which
    /// others have parts. Set by [`MapCache::set_region`] only.
    pub(super) region: IpNet,
    /// The peer that serves it; `None` only for negative entries.
    pub(super) chosen: Option<Chosen>,
    /// The latest change that gives the prefix to that peer.
    pub(super) change: Option<ChangeId>,
    /// When it came.
    pub(super) since: Timestamp,
    /// When it stops being true.
    pub(super) expires: Timestamp,
    /// Since when it is used beyond its time because nobody answers.
    pub(super) stale: Option<Timestamp>,
    /// Packets waiting for it.
    pub(super) held: Held,
    /// What made it.
    pub(super) cause: Cause,
    /// How long the answer took, if we asked and it came to the first request.
    pub(super) answer_took: Duration,
    /// The far end was told of us by a push while we asked for it, so that
    /// both ends are about to start a handshake.
    pub(super) mutual: bool,
    /// How long it is believed, if it is negative.
    pub(super) doubt: Option<Doubt>,
    /// When others last asked for a refresh.
    pub(super) solicited: Option<Timestamp>,
    /// Bytes the peer had moved when the entry was last looked at.
    pub(super) bytes_seen: u64,
}

impl Entry {
    /// An entry for all of `prefix`, from now on.
    pub(super) fn new(
        prefix: IpNet,
        state: State,
        chosen: Option<Chosen>,
        now: Timestamp,
        expires: Timestamp,
    ) -> Self {
        Self {
            state,
            region: prefix,
            chosen,
            change: None,
            since: now,
            expires,
            stale: None,
            held: Held::default(),
            cause: Cause::Reply,
            answer_took: Duration::ZERO,
            mutual: false,
            doubt: None,
            solicited: None,
            bytes_seen: 0,
        }
    }

    fn is_negative(&self) -> bool {
        matches!(self.state, State::Negative(_))
    }
}

/// The map-cache of one instance.
#[derive(Debug, Default)]
pub(super) struct MapCache {
    v4: PrefixMap<Ipv4Net, Entry>,
    v6: PrefixMap<Ipv6Net, Entry>,
    /// How many of the entries are negative; an entry never becomes so later.
    negatives: usize,
    /// The entries that are parts of what their owner registered, by that.
    parts: BTreeMap<IpNet, BTreeSet<IpNet>>,
}

impl MapCache {
    /// The most specific entry that holds `dst`.
    pub(super) fn lookup(&mut self, dst: IpAddr) -> Option<(IpNet, &mut Entry)> {
        match dst {
            IpAddr::V4(dst) => self
                .v4
                .get_lpm_mut(&dst.into())
                .map(|(prefix, entry)| (IpNet::V4(prefix), entry)),
            IpAddr::V6(dst) => self
                .v6
                .get_lpm_mut(&dst.into())
                .map(|(prefix, entry)| (IpNet::V6(prefix), entry)),
        }
    }

    /// The entry of exactly `prefix`.
    #[must_use]
    pub(super) fn get(&self, prefix: &IpNet) -> Option<&Entry> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(prefix),
            IpNet::V6(prefix) => self.v6.get(prefix),
        }
    }

    /// The entry of exactly `prefix`.
    pub(super) fn get_mut(&mut self, prefix: &IpNet) -> Option<&mut Entry> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get_mut(prefix),
            IpNet::V6(prefix) => self.v6.get_mut(prefix),
        }
    }

    /// Puts `entry` at `prefix` and returns what was there.
    pub(super) fn insert(&mut self, prefix: IpNet, entry: Entry) -> Option<Entry> {
        self.negatives += usize::from(entry.is_negative());
        let before = match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix, entry),
            IpNet::V6(prefix) => self.v6.insert(prefix, entry),
        };
        self.gone(prefix, before)
    }

    /// Takes the entry of exactly `prefix` out.
    pub(super) fn remove(&mut self, prefix: &IpNet) -> Option<Entry> {
        let before = match prefix {
            IpNet::V4(prefix) => self.v4.remove(prefix),
            IpNet::V6(prefix) => self.v6.remove(prefix),
        };
        self.gone(*prefix, before)
    }

    /// Notes that the entry of `prefix` comes from the registration of `region`.
    pub(super) fn set_region(&mut self, prefix: IpNet, region: IpNet) {
        let Some(entry) = self.get_mut(&prefix) else {
            return;
        };
        let before = std::mem::replace(&mut entry.region, region);
        self.leave_region(prefix, before);
        if region != prefix {
            self.parts.entry(region).or_default().insert(prefix);
        }
    }

    /// The entries that are parts of the registration of `region`.
    pub(super) fn parts(&self, region: &IpNet) -> Vec<IpNet> {
        let parts = self.parts.get(region);
        parts.map_or_else(Vec::new, |parts| parts.iter().copied().collect())
    }

    fn leave_region(&mut self, prefix: IpNet, region: IpNet) {
        if let Some(parts) = self.parts.get_mut(&region) {
            parts.remove(&prefix);
            if parts.is_empty() {
                self.parts.remove(&region);
            }
        }
    }

    fn gone(&mut self, prefix: IpNet, before: Option<Entry>) -> Option<Entry> {
        if let Some(before) = &before {
            self.leave_region(prefix, before.region);
        }
        let negative = before.as_ref().is_some_and(Entry::is_negative);
        self.negatives = self.negatives.saturating_sub(usize::from(negative));
        before
    }

    /// How many negative entries there are.
    #[must_use]
    pub(super) fn negatives(&self) -> usize {
        self.negatives
    }

    /// Every entry, IPv4 first, in prefix order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &Entry)> {
        let v4 = self
            .v4
            .iter()
            .map(|(prefix, entry)| (IpNet::V4(prefix), entry));
        let v6 = self
            .v6
            .iter()
            .map(|(prefix, entry)| (IpNet::V6(prefix), entry));
        v4.chain(v6)
    }

    /// How many entries there are.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// A destination that a Map-Request is out for.
#[derive(Debug)]
pub(super) struct Pending {
    /// Nonce of the request, the same in every retransmission.
    pub(super) nonce: Nonce,
    /// The source EID the request is made for.
    pub(super) source: IpAddr,
    /// Requests sent so far.
    pub(super) tries: u32,
    /// When the first one was sent.
    pub(super) since: Timestamp,
    /// When packets have waited long enough.
    pub(super) until: Timestamp,
    /// Packets waiting for the answer.
    pub(super) held: Held,
    /// It waits in front of those who are wanted for the first time.
    pub(super) in_front: bool,
}

/// What a Map-Request was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Packets to this destination wait.
    Resolve(IpAddr),
    /// This mapping is in use and about to run out.
    Refresh(IpNet),
}

/// Map-Requests that are out.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    pending: BTreeMap<IpAddr, Pending>,
    /// Mappings being asked for again: the nonce and the requests sent so far.
    refreshing: BTreeMap<IpNet, (Nonce, u32)>,
    outstanding: BTreeMap<Nonce, Purpose>,
    /// Requests given up whose answers are still welcome, and until when.
    late: VecDeque<(Timestamp, Nonce)>,
}

impl Resolver {
    /// What is waiting for `dst`.
    pub(super) fn pending_mut(&mut self, dst: &IpAddr) -> Option<&mut Pending> {
        self.pending.get_mut(dst)
    }

    /// Destinations being resolved.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Notes that a request for `dst` goes out.
    pub(super) fn start(&mut self, dst: IpAddr, pending: Pending) {
        self.outstanding
            .insert(pending.nonce, Purpose::Resolve(dst));
        self.pending.insert(dst, pending);
    }

    /// Notes that `prefix` is asked for again with `nonce`, for the first time
    /// or once more; says how many requests were sent before, beginning to count at `first`,
    /// and with which nonce to ask.
    pub(super) fn refresh(&mut self, prefix: IpNet, nonce: Nonce, first: u32) -> (Nonce, u32) {
        let (nonce, tries) = self.refreshing.entry(prefix).or_insert((nonce, first));
        let before = *tries;
        *tries = tries.saturating_add(1);
        self.outstanding.insert(*nonce, Purpose::Refresh(prefix));
        (*nonce, before)
    }

    /// How many requests for `prefix` are out that nobody has answered yet.
    pub(super) fn refresh_tries(&self, prefix: &IpNet) -> u32 {
        self.refreshing.get(prefix).map_or(0, |(_, tries)| *tries)
    }

    /// Whether `prefix` was asked for again and nobody has answered yet.
    pub(super) fn is_refreshing(&self, prefix: &IpNet) -> bool {
        self.refreshing.contains_key(prefix)
    }

    /// Stops asking for `prefix` again.
    pub(super) fn refreshed(&mut self, prefix: &IpNet) {
        if let Some((nonce, _)) = self.refreshing.remove(prefix) {
            self.outstanding.remove(&nonce);
        }
    }

    /// What the request with `nonce` was for; a nonce is answered once.
    pub(super) fn answered(&mut self, nonce: Nonce) -> Option<Purpose> {
        let purpose = self.outstanding.remove(&nonce)?;
        if let Purpose::Refresh(prefix) = purpose {
            self.refreshing.remove(&prefix);
        }
        Some(purpose)
    }

    /// Ends the resolution of `dst` like [`Self::finish`], but lets an answer
    /// that comes before `until` in: the map server has told the far end of us.
    pub(super) fn give_up(&mut self, dst: &IpAddr, until: Timestamp) -> Option<Pending> {
        let pending = self.pending.remove(dst)?;
        self.late.push_back((until, pending.nonce));
        if self.late.len() > LATE_ANSWERS {
            self.forget_oldest();
        }
        Some(pending)
    }

    /// Forgets given up requests whose time is over.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while self.late.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, nonce)) = self.late.pop_front() {
            self.outstanding.remove(&nonce);
        }
    }

    /// Ends the resolution of `dst` and gives back what waited for it.
    pub(super) fn finish(&mut self, dst: &IpAddr) -> Option<Pending> {
        let pending = self.pending.remove(dst)?;
        self.outstanding.remove(&pending.nonce);
        Some(pending)
    }

    /// All destinations being resolved.
    #[must_use]
    pub(super) fn destinations(&self) -> Vec<IpAddr> {
        self.pending.keys().copied().collect()
    }

    /// All mappings that are being asked for again.
    #[must_use]
    pub(super) fn refreshing(&self) -> Vec<IpNet> {
        self.refreshing.keys().copied().collect()
    }

    /// Destinations being resolved that lie within `prefix`.
    #[must_use]
    pub(super) fn within(&self, prefix: &IpNet) -> Vec<IpAddr> {
        let range = prefix.network()..=prefix.broadcast();
        self.pending.range(range).map(|(dst, _)| *dst).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(prefix: &str, state: State) -> Entry {
        let prefix = prefix.parse().unwrap();
        Entry::new(prefix, state, None, Timestamp::ZERO, Timestamp::ZERO)
    }

    #[test]
    fn the_most_specific_entry_wins_in_both_families() {
        let mut cache = MapCache::default();
        for prefix in ["10.0.0.0/8", "10.1.0.0/16", "fd00::/16", "fd00:1::/32"] {
            cache.insert(prefix.parse().unwrap(), entry(prefix, State::Active));
        }
        let mut found = |dst: &str| {
            cache
                .lookup(dst.parse().unwrap())
                .map(|(prefix, _)| prefix.to_string())
        };
        assert_eq!(found("10.1.2.3").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(found("10.2.2.3").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(found("fd00:1::9").as_deref(), Some("fd00:1::/32"));
        assert_eq!(found("fd01::9"), None);
        assert_eq!(cache.len(), 4);
        cache.remove(&"10.1.0.0/16".parse().unwrap());
        assert_eq!(cache.iter().count(), 3);
    }

    #[test]
    fn parts_are_found_by_what_their_owner_registered() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (part, region) = (net("10.0.0.0/28"), net("10.0.0.0/24"));
        let mut cache = MapCache::default();
        cache.insert(part, entry("10.0.0.0/28", State::Active));
        assert_eq!(cache.parts(&region), []);
        cache.set_region(part, region);
        assert_eq!(cache.parts(&region), [part]);
        cache.set_region(part, part);
        assert!(cache.parts.is_empty());
        cache.set_region(part, region);
        cache.remove(&part);
        assert!(cache.parts.is_empty());
    }

    #[test]
    fn pending_destinations_are_found_by_prefix_and_nonce() {
        let mut resolver = Resolver::default();
        for (n, dst) in ["10.0.0.1", "10.0.1.1", "fd00::1"].into_iter().enumerate() {
            let pending = Pending {
                nonce: Nonce(n as u64),
                source: "10.9.9.9".parse().unwrap(),
                tries: 1,
                since: Timestamp::ZERO,
                until: Timestamp::ZERO,
                held: Held::default(),
                in_front: false,
            };
            resolver.start(dst.parse().unwrap(), pending);
        }
        let within = resolver.within(&"10.0.1.0/24".parse().unwrap());
        assert_eq!(within, vec!["10.0.1.1".parse::<IpAddr>().unwrap()]);
        let asked = Purpose::Resolve("fd00::1".parse().unwrap());
        assert_eq!(resolver.answered(Nonce(2)), Some(asked));
        assert_eq!(
            resolver.answered(Nonce(2)),
            None,
            "a nonce is answered once"
        );
        assert!(resolver.finish(&"10.0.0.1".parse().unwrap()).is_some());
        assert_eq!(resolver.answered(Nonce(0)), None);
        assert_eq!(resolver.len(), 2);
    }
}
