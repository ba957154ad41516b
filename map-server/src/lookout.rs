//! When is looked where the peers of the control tunnel are, and who is elsewhere then?
//!
//! The one who looks has the clock and the tunnel; what he finds goes into the state machine
//! ([`Input::Seen`](crate::Input::Seen)).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

/// How often is looked where the peers are.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same, while somebody is behind a NAT, which may change its mind.
const INTERVAL_WATCHING: Duration = Duration::from_secs(2);
/// The same, as a multiple of the time that the last look took.
const INTERVAL_SHARE: u32 = 64;
/// Least time between two looks, however many agents register.
const PAUSE: Duration = Duration::from_secs(1);
/// The same, while somebody is looked for who may come any moment.
const PAUSE_IN_SEARCH: Duration = Duration::from_millis(100);
/// The same, as a multiple of the time that the last look took: among very many peers it takes long.
const PAUSE_SHARE: u32 = 16;
/// How long somebody is looked for that hard.
const SEARCH: Duration = Duration::from_secs(10);
/// Two handshakes are further apart than that, and the same one is told of with less of a difference.
const HANDSHAKE_APART: Duration = Duration::from_secs(1);
/// Length of the first message of a handshake.
const INITIATION: u64 = 148;

/// Where a peer is that has shaken hands.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Who it is.
    pub key: PublicKey,
    /// Where it is.
    pub endpoint: SocketAddr,
    /// When it has last shaken hands.
    pub shaken: Timestamp,
    /// Bytes that have come from it.
    pub received: u64,
}

impl Sight {
    /// Whether nothing has come since `before` but first messages of handshakes that did not come about. WireGuard answers
    /// where these come from, and somebody may have recorded them who is not the peer.
    fn may_be_repeated(&self, before: &Self) -> bool {
        let is_newer = self.shaken > before.shaken + HANDSHAKE_APART;
        let received = self.received.wrapping_sub(before.received);
        !is_newer && received > 0 && received.is_multiple_of(INITIATION)
    }
}

/// What is remembered from look to look.
#[derive(Clone, Debug)]
pub struct Lookout {
    /// What was reported, as of the latest look that found the same.
    reported: HashMap<PublicKey, Sight>,
    /// Who is watched and was not seen yet, since when.
    sought: BTreeMap<PublicKey, Timestamp>,
    watched: BTreeSet<PublicKey>,
    last: Timestamp,
    took: Duration,
}

impl Lookout {
    /// Builds one that has seen nobody yet, and looks for the first time in a while.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            reported: HashMap::new(),
            sought: BTreeMap::new(),
            watched: BTreeSet::new(),
            last: now,
            took: Duration::ZERO,
        }
    }

    /// Takes note that the holder of `key` is watched from now on, perhaps once more, or no longer.
    pub fn note(&mut self, now: Timestamp, key: PublicKey, watch: bool) {
        self.reported.remove(&key);
        if watch {
            self.sought.insert(key, now);
            self.watched.insert(key);
        } else {
            self.sought.remove(&key);
            self.watched.remove(&key);
        }
    }

    /// Whether somebody may come any moment.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        !self.sought.is_empty()
    }

    /// When the next look may be, at the earliest: then it is if there is a reason, or a search.
    #[must_use]
    pub fn earliest(&self) -> Timestamp {
        let pause = if self.is_searching() {
            PAUSE_IN_SEARCH
        } else {
            PAUSE
        };
        self.last + pause.max(self.took * PAUSE_SHARE)
    }

    /// When the next look shall be, at the latest.
    #[must_use]
    pub fn latest(&self) -> Timestamp {
        let interval = match self.watched.is_empty() {
            true => INTERVAL,
            false => INTERVAL_WATCHING.max(self.took * INTERVAL_SHARE),
        };
        self.earliest().max(self.last + interval.min(INTERVAL))
    }

    /// A look from `began` until `now` has found `peers`: returns those that are elsewhere than before.
    pub fn found(
        &mut self,
        (began, now): (Timestamp, Timestamp),
        peers: impl Iterator<Item = Sight>,
    ) -> Vec<(PublicKey, SocketAddr)> {
        (self.last, self.took) = (now, now - began);
        let mut news = Vec::new();
        for sight in peers {
            let Sight { key, endpoint, .. } = sight;
            self.sought.remove(&key);
            let before = self.reported.get(&key);
            let is_elsewhere = before.is_none_or(|before| before.endpoint != endpoint);
            if is_elsewhere && before.is_some_and(|before| sight.may_be_repeated(before)) {
                continue;
            }
            self.reported.insert(key, sight);
            if is_elsewhere {
                news.push((key, endpoint));
            }
        }
        self.search_on(now);
        news
    }

    /// A look that ended at `now` could not tell anything: the next one comes no sooner than after any other.
    pub fn failed(&mut self, now: Timestamp) {
        self.last = now;
        self.search_on(now);
    }

    /// Those who were looked for in vain for so long are looked for no harder than others.
    fn search_on(&mut self, now: Timestamp) {
        self.sought.retain(|_, since| now - *since < SEARCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: PublicKey = PublicKey([1; 32]);
    const HIDDEN: PublicKey = PublicKey([2; 32]);
    const START: Timestamp = Timestamp::ZERO;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn sight(key: PublicKey, endpoint: SocketAddr, shaken: Timestamp, received: u64) -> Sight {
        Sight {
            key,
            endpoint,
            shaken,
            received,
        }
    }

    #[test]
    fn only_what_has_changed_is_reported() {
        let mut lookout = Lookout::new(START);
        let (here, there) = (socket("192.0.2.1:1"), socket("192.0.2.1:2"));
        for (seen, news) in [
            (None, None),
            (Some(here), Some(here)),
            (Some(here), None),
            (None, None),
            (Some(there), Some(there)),
        ] {
            let peers = seen.map(|at| sight(AGENT, at, START, 0));
            let reported = lookout.found((START, START), peers.into_iter());
            assert_eq!(reported, Vec::from_iter(news.map(|at| (AGENT, at))));
        }
        lookout.note(START, AGENT, false);
        let anew = lookout.found((START, START), [sight(AGENT, there, START, 0)].into_iter());
        assert_eq!(anew, [(AGENT, there)], "it is another peer now");
    }

    #[test]
    fn an_initiation_alone_tells_nobody_where_its_sender_is() {
        let (here, there) = (socket("192.0.2.1:1"), socket("192.0.2.9:9"));
        let elsewhere = |after: Duration, bytes: u64| {
            let mut lookout = Lookout::new(START);
            let mut found = |sight| {
                !lookout
                    .found((START, START), [sight].into_iter())
                    .is_empty()
            };
            found(sight(AGENT, here, START, 500));
            let is_told = found(sight(AGENT, there, START + after, 500 + bytes));
            // Once it is back nothing has happened.
            assert_eq!(found(sight(AGENT, here, START, 900)), is_told);
            is_told
        };
        let young = Duration::from_millis(20);
        assert!(!elsewhere(young, 148), "the handshake is the old one");
        assert!(!elsewhere(young, 3 * 148));
        assert!(
            elsewhere(Duration::from_secs(5), 148),
            "it has shaken hands"
        );
        assert!(elsewhere(young, 32), "a keepalive of its session");
        assert!(elsewhere(young, 148 + 32));
        // Not every data plane counts keepalives.
        assert!(elsewhere(young, 0));
    }

    #[test]
    fn who_is_new_is_looked_for_often_but_not_for_ever() {
        let mut lookout = Lookout::new(START);
        assert_eq!(lookout.earliest(), START + PAUSE);
        lookout.note(START, HIDDEN, true);
        assert_eq!(lookout.earliest(), START + PAUSE_IN_SEARCH);
        let slow = Duration::from_millis(50);
        lookout.found((START, START + slow), [].into_iter());
        assert_eq!(lookout.earliest(), START + slow + slow * PAUSE_SHARE);
        let late = START + SEARCH;
        lookout.found((late, late), [].into_iter());
        assert!(!lookout.is_searching());
        assert_eq!(lookout.latest(), late + INTERVAL_WATCHING);
        lookout.note(late, HIDDEN, true);
        let seen = socket("192.0.2.1:1");
        lookout.found((late, late), [sight(HIDDEN, seen, late, 0)].into_iter());
        assert!(!lookout.is_searching());
        lookout.note(late, HIDDEN, false);
        assert_eq!(lookout.latest(), late + INTERVAL);
    }

    #[test]
    fn a_look_that_fails_is_followed_by_a_pause_and_ends_a_search_as_well() {
        let mut lookout = Lookout::new(START);
        lookout.note(START, HIDDEN, true);
        for past in [SEARCH / 2, SEARCH, SEARCH * 2] {
            let now = START + past;
            lookout.failed(now);
            assert!(lookout.latest() > now && lookout.earliest() > now);
            assert_eq!(lookout.is_searching(), past < SEARCH);
        }
    }
}
