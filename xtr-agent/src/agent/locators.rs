//! Far ends that can be reached in several ways: which one is used, and which comes next?
//!
//! A far end may have several locators with one key, and we may have several uplinks. The way that
//! is used stays as long as it works, whatever the order says: one that has failed and is back is
//! no reason to move. What is told anew is: another priority or weight, or a locator that was never
//! named before.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

use super::limits::{GUARDED, LOCATORS, LOCATORS_REMEMBERED, TOLD_AGAIN, UPLINK_HELD};

/// One way to a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Where it is reached.
    pub(super) to: SocketAddr,
    /// Our own address that packets leave from; `None`: whichever the routes, or the far end, have
    /// chosen.
    pub(super) from: Option<IpAddr>,
}

/// A locator of a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) endpoint: SocketAddr,
    pub(super) priority: u8,
    pub(super) weight: u8,
}

/// The latest move, until something has come back along the new way.
#[derive(Clone, Copy, Debug)]
struct Moved {
    at: Timestamp,
    /// How often the data plane was told since.
    told: u32,
}

/// What is known of one far end.
#[derive(Debug, Default)]
struct FarEnd {
    /// Its locators that may be used now, the best first.
    locators: Vec<Known>,
    /// Priority and weight of all that were named, those that are gone included.
    remembered: BTreeMap<SocketAddr, (u8, u8)>,
    /// The one in use.
    used: Option<SocketAddr>,
    /// The uplink that packets were made to leave by the last time.
    from: Option<IpAddr>,
    /// Whether they still are, whatever the far end does; and until when.
    is_held: bool,
    held_until: Option<Timestamp>,
    /// Ways that led nowhere since something has come back.
    tried: Vec<Path>,
    moved: Option<Moved>,
    /// When the data plane was told where it is.
    placed: Timestamp,
}

/// All far ends that can be reached in several ways.
#[derive(Debug, Default)]
pub(super) struct Locators(BTreeMap<PublicKey, FarEnd>);

impl Locators {
    /// Whether any way to `key` is known besides the one in use, or was.
    pub(super) fn is_known(&self, key: &PublicKey) -> bool {
        self.0.contains_key(key)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys of all.
    pub(super) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.keys()
    }

    /// Keeps those that `is_wanted`. Returns the ways of the others that packets are made to take.
    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(&PublicKey) -> bool) -> Vec<Path> {
        let mut left = Vec::new();
        self.0.retain(|key, far| {
            let stays = is_wanted(key);
            left.extend(far.path().filter(|_| !stays && far.is_held));
            stays
        });
        left
    }

    /// The locators of `key`, the best first.
    pub(super) fn of(&self, key: &PublicKey) -> &[Known] {
        self.0.get(key).map_or(&[], |far| &far.locators)
    }

    /// The uplink that packets to `key` were made to leave by the last time.
    pub(super) fn uplink(&self, key: &PublicKey) -> Option<IpAddr> {
        self.0.get(key)?.from
    }

    /// The locator of `key` that is used on, now that `told` are named: nothing about them is new.
    pub(super) fn stays(&self, key: &PublicKey, told: &[Known]) -> Option<SocketAddr> {
        let far = self.0.get(key)?;
        let used = far.used?;
        let is_named = told.iter().any(|it| it.endpoint == used);
        (is_named && !far.is_news(told)).then_some(used)
    }

    /// Takes in the locators that `key` has at `now`, the best first, and which of them is used;
    /// `is_watched` also with a single one. Returns the ways before and after, if packets are made to
    /// take another one than before.
    pub(super) fn learn(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        told: Vec<Known>,
        used: SocketAddr,
        is_watched: bool,
    ) -> Option<(Path, Path)> {
        let is_new = !self.0.contains_key(&key);
        if is_new && (self.0.len() >= GUARDED || !(is_watched || told.len() > 1)) {
            return None;
        }
        let far = self.0.entry(key).or_default();
        let before = far.path();
        if far.is_news(&told) {
            far.tried.clear();
            far.moved = None;
        }
        if far.used != Some(used) {
            far.used = Some(used);
            far.placed = now;
        }
        for it in &told {
            if far.remembered.len() >= LOCATORS_REMEMBERED {
                let is_told = |at: &SocketAddr| told.iter().any(|it| it.endpoint == *at);
                far.remembered.retain(|at, _| is_told(at));
            }
            let value = (it.priority, it.weight);
            far.remembered.insert(it.endpoint, value);
        }
        far.locators = told;
        far.locators.truncate(LOCATORS);
        let ways = Some((before?, far.path()?));
        ways.filter(|(before, after)| far.is_held && before != after)
    }

    /// The data plane is told at `now` that `key` is at `used`.
    pub(super) fn place(&mut self, now: Timestamp, key: &PublicKey, used: SocketAddr) {
        if let Some(far) = self.0.get_mut(key) {
            far.used = Some(used);
            far.placed = now;
        }
    }

    /// The way to `key` that is used leads nowhere: the next one, from one of `uplinks`, the best
    /// first. `None` when all were tried; then the next round begins.
    pub(super) fn next(&mut self, key: &PublicKey, uplinks: &[IpAddr]) -> Option<Path> {
        let far = self.0.get_mut(key)?;
        let used = far.path()?;
        far.tried.push(used);
        let mut ways = far.ways(uplinks).into_iter();
        let next = ways.find(|path| !far.tried.contains(path));
        if next.is_none() {
            far.tried.clear();
        }
        next
    }

    /// `key` is reached along `path` from `now` on. Returns the way that it was; and the one that packets
    /// were made to take, if they were.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        key: &PublicKey,
        path: Path,
    ) -> Option<(Path, Option<Path>)> {
        let far = self.0.get_mut(key)?;
        let before = far.path()?;
        let held = far.is_held.then_some(before);
        far.used = Some(path.to);
        far.from = path.from;
        (far.is_held, far.held_until) = (path.from.is_some(), None);
        far.placed = now;
        far.moved = Some(Moved { at: now, told: 1 });
        Some((before, held))
    }

    /// The ways that packets need not be made to take any more.
    pub(super) fn no_longer_held(&mut self, now: Timestamp) -> Vec<Path> {
        let mut over = Vec::new();
        for far in self.0.values_mut() {
            if far.is_held && far.held_until.is_some_and(|until| until <= now) {
                far.is_held = false;
                over.extend(far.path());
            }
        }
        over
    }

    /// Something that was sent at `sent` has come back from `key`. Whether that is the first since it
    /// was moved.
    pub(super) fn answered(&mut self, now: Timestamp, key: &PublicKey, sent: Timestamp) -> bool {
        let Some(far) = self.0.get_mut(key) else {
            return false;
        };
        far.tried.clear();
        let settles = far.moved.is_some_and(|moved| moved.at <= sent);
        if settles {
            far.moved = None;
            far.held_until = Some(now + UPLINK_HELD);
        }
        settles
    }

    /// The data plane sends to `actual`, as counters of `read_at` say.
    pub(super) fn seen(
        &mut self,
        key: &PublicKey,
        actual: SocketAddr,
        read_at: Timestamp,
    ) -> Option<Seen> {
        let far = self.0.get_mut(key)?;
        let is_young = read_at >= far.placed + READING;
        if far.used == Some(actual) || !is_young {
            return None;
        }
        if let Some(moved) = &mut far.moved {
            // What was under way along the old one has come first.
            moved.told += 1;
            return (moved.told <= TOLD_AGAIN).then_some(Seen::Strayed);
        }
        let is_known = far.locators.iter().any(|it| it.endpoint == actual);
        if is_known {
            far.used = Some(actual);
        }
        is_known.then_some(Seen::Roamed)
    }

    /// The uplinks are `uplinks` now. Returns the ways that packets were made to take by one that is gone.
    pub(super) fn release(&mut self, uplinks: &[IpAddr]) -> Vec<(PublicKey, Path)> {
        let mut released = Vec::new();
        for (key, far) in &mut self.0 {
            far.tried.clear();
            let Some(path) = far.path() else {
                continue;
            };
            if path.from.is_some_and(|from| !uplinks.contains(&from)) {
                far.from = None;
                if std::mem::take(&mut far.is_held) {
                    released.push((*key, path));
                }
            }
        }
        released
    }

    /// The order of the uplinks is another one: the ways by the best of `uplinks`, to all.
    pub(super) fn by_the_best(&self, uplinks: &[IpAddr]) -> Vec<(PublicKey, Path)> {
        let ways = self.0.iter().filter_map(|(key, far)| {
            let to = far.used?;
            let mut alike = uplinks.iter().filter(|it| it.is_ipv4() == to.is_ipv4());
            let from = Some(*alike.next()?);
            // One alone needs not be chosen.
            alike.next().map(|_| (*key, Path { to, from }))
        });
        ways.collect()
    }

    /// Packets to `key` are made to leave by their uplink for a while only, whether it answers or not.
    pub(super) fn hold_for_now(&mut self, now: Timestamp, key: &PublicKey) {
        if let Some(far) = self.0.get_mut(key) {
            far.held_until = Some(now + UPLINK_HELD);
        }
    }
}

/// What the data plane makes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The far end was heard from another of its locators.
    Roamed,
    /// It was heard from the one that we have left, before it heard us: it is told once more.
    Strayed,
}

impl FarEnd {
    fn path(&self) -> Option<Path> {
        let (to, from) = (self.used?, self.from);
        Some(Path { to, from })
    }

    /// Whether `told` says what was not said before.
    fn is_news(&self, told: &[Known]) -> bool {
        let mut told = told.iter();
        told.any(|it| self.remembered.get(&it.endpoint) != Some(&(it.priority, it.weight)))
    }

    /// All ways, in the order in which they are tried: first the other locators, by the same uplink.
    /// Where nothing else is known, that is taken for the first one.
    fn ways(&self, uplinks: &[IpAddr]) -> Vec<Path> {
        let mut ways = Vec::new();
        for turn in 0..uplinks.len().max(1) {
            for Known { endpoint: to, .. } in &self.locators {
                let alike = uplinks.iter().filter(|it| it.is_ipv4() == to.is_ipv4());
                let alike: Vec<IpAddr> = alike.copied().collect();
                let from = self.from.filter(|from| alike.contains(from));
                let place = alike.iter().position(|it| Some(*it) == from).unwrap_or(0);
                let to = *to;
                if turn == 0 {
                    ways.push(Path { to, from });
                } else if turn < alike.len()
                    && let Some(other) = alike.get((place + turn) % alike.len())
                {
                    let from = Some(*other);
                    ways.push(Path { to, from });
                }
            }
        }
        ways
    }
}

/// Counters that were read so soon after the data plane was told something may be older than that.
const READING: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
