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

use super::limits::{
    GUARDED, LOCATORS, LOCATORS_REMEMBERED, MOVE_WATCHED, TOLD_AGAIN, UPLINK_HELD,
    UPLINK_HELD_UNANSWERED,
};

/// One way to a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Where it is reached.
    pub(super) to: SocketAddr,
    /// Our own address that packets leave from; `None`: whichever the routes, or the far end, have
    /// chosen.
    pub(super) from: Option<IpAddr>,
}

/// What packets are made to do: those to this address leave from that one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) to: IpAddr,
    pub(super) from: IpAddr,
}

/// What packets to a far end were made to do, and are from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) before: Option<Held>,
    pub(super) after: Option<Held>,
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
    /// Where the data plane sent before.
    left: SocketAddr,
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
    /// Where it was heard from since, if that is none of its locators: a NAT may have given it another port.
    roamed: Option<SocketAddr>,
    /// The uplink that packets were made to leave by the last time.
    from: Option<IpAddr>,
    /// What they are made to do still, whatever the far end does; and until when.
    held: Option<(Held, Timestamp)>,
    /// Ways that led nowhere since something has come back.
    tried: Vec<Path>,
    /// The first way that was used while the far end answered no echo, and sent.
    sending: Option<Path>,
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

    /// Keeps those that `is_wanted`. Returns what packets were made to do for the others.
    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(&PublicKey) -> bool) -> Vec<Held> {
        let mut left = Vec::new();
        self.0.retain(|key, far| {
            let stays = is_wanted(key);
            let held = far.held.filter(|_| !stays);
            left.extend(held.map(|(held, _)| held));
            stays
        });
        left
    }

    /// What packets to `to` are made to do: several far ends may be behind one address.
    pub(super) fn held(&self, to: IpAddr) -> Option<Held> {
        let mut held = self.0.values().filter_map(|far| far.held);
        held.find_map(|(held, _)| (held.to == to).then_some(held))
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
    /// `is_watched` also with a single one. Returns what packets are made to do, if that is something else
    /// than before.
    pub(super) fn learn(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        told: Vec<Known>,
        used: SocketAddr,
        is_watched: bool,
    ) -> Option<Turn> {
        let is_new = !self.0.contains_key(&key);
        if is_new && (self.0.len() >= GUARDED || !(is_watched || told.len() > 1)) {
            return None;
        }
        let far = self.0.entry(key).or_default();
        if far.is_news(&told) {
            far.begins_anew();
            far.moved = None;
        }
        let left = far.at();
        if let Some(before) = far.used.replace(used).filter(|before| *before != used) {
            (far.placed, far.roamed) = (now, None);
            // What is under way from there may take it back.
            let is_there_still = told.iter().any(|it| it.endpoint == before);
            far.moved = left.filter(|_| is_there_still).map(|left| Moved {
                at: now,
                left,
                told: 1,
            });
        } else if is_new {
            far.placed = now;
        }
        far.remember(&told);
        far.locators = told;
        far.locators.truncate(LOCATORS);
        let (before, until) = far.held?;
        let after = far.held_now();
        far.held = after.map(|after| (after, until));
        let before = Some(before);
        (before != after).then_some(Turn { before, after })
    }

    /// Remembers locators of `key` that were named once, by an earlier run.
    pub(super) fn recall(&mut self, key: &PublicKey, named: &[Known]) {
        if let Some(far) = self.0.get_mut(key) {
            far.remember(named);
        }
    }

    /// Each of those that are known, with its locators, and those that were named once.
    pub(super) fn each(&self) -> impl Iterator<Item = (&PublicKey, &[Known], Vec<Known>)> {
        self.0.iter().map(|(key, far)| {
            let is_usable = |at: &SocketAddr| far.locators.iter().any(|it| it.endpoint == *at);
            let gone = far.remembered.iter().filter(|(at, _)| !is_usable(at));
            let gone = gone.map(|(endpoint, (priority, weight))| Known {
                endpoint: *endpoint,
                priority: *priority,
                weight: *weight,
            });
            (key, far.locators.as_slice(), gone.collect())
        })
    }

    /// The data plane is told at `now` where `key` is: returns that.
    pub(super) fn place(&mut self, now: Timestamp, key: &PublicKey) -> Option<SocketAddr> {
        let far = self.0.get_mut(key)?;
        far.placed = now;
        far.at()
    }

    /// How many ways to `key` were left since something has come back.
    pub(super) fn left_in_vain(&self, key: &PublicKey) -> usize {
        self.0.get(key).map_or(0, |far| far.tried.len())
    }

    /// No further way to `key` is tried for now: the next round begins when it is looked at again.
    pub(super) fn give_up(&mut self, key: &PublicKey) {
        if let Some(far) = self.0.get_mut(key) {
            far.begins_anew();
        }
    }

    /// `key` answers no echo at present, and sends.
    pub(super) fn sends(&mut self, key: &PublicKey) {
        if let Some(far) = self.0.get_mut(key) {
            far.sending = far.sending.or_else(|| far.path());
        }
    }

    /// The way along which `key` was reached when it sent first, since it has answered the last time, and
    /// whether that is the one in use.
    pub(super) fn take_sending(&mut self, key: &PublicKey) -> Option<(Path, bool)> {
        let far = self.0.get_mut(key)?;
        let path = far.sending.take()?;
        let is_there = far.locators.iter().any(|it| it.endpoint == path.to);
        is_there.then_some((path, far.path() == Some(path)))
    }

    /// The way to `key` that is used leads nowhere: the next one, from one of `uplinks`, the best
    /// first. `None` when all were tried; then the next round begins.
    pub(super) fn next(&mut self, key: &PublicKey, uplinks: &[IpAddr]) -> Option<Path> {
        let far = self.0.get_mut(key)?;
        let used = far.path()?;
        far.tried.push(used);
        // Where no uplink was chosen, it is most likely the best one.
        let by_which = |path: &Path| {
            let mut alike = uplinks.iter().copied();
            let best = alike.find(|it| it.is_ipv4() == path.to.is_ipv4());
            (path.to, path.from.or(best))
        };
        let tried: Vec<_> = far.tried.iter().map(by_which).collect();
        let mut ways = far.ways(uplinks).into_iter();
        let next = ways.find(|path| !tried.contains(&by_which(path)));
        if next.is_none() {
            far.tried.clear();
        }
        next
    }

    /// `key` is reached along `path` from `now` on: if that is another uplink only, where it was heard from.
    /// Returns the locator that was used, and what packets are made to do.
    /// That ends some time after it has answered, or when it has not for long: it may answer no pings.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        key: &PublicKey,
        path: Path,
    ) -> Option<(SocketAddr, Turn)> {
        let far = self.0.get_mut(key)?;
        let left = far.at()?;
        let used = far.used.replace(path.to)?;
        far.roamed.take_if(|_| used != path.to);
        let before = far.held.map(|(held, _)| held);
        far.from = path.from;
        let after = far.held_now();
        far.held = after.map(|held| (held, now + UPLINK_HELD_UNANSWERED));
        far.placed = now;
        far.moved = Some(Moved {
            at: now,
            left,
            told: 1,
        });
        Some((used, Turn { before, after }))
    }

    /// What packets need not be made to do any more.
    pub(super) fn no_longer_held(&mut self, now: Timestamp) -> Vec<Held> {
        let mut over = Vec::new();
        for far in self.0.values_mut() {
            let held = far.held.take_if(|(_, until)| *until <= now);
            over.extend(held.map(|(held, _)| held));
        }
        over
    }

    /// Something that was sent at `sent` has come back from `key`. Whether that is the first since it
    /// was moved.
    pub(super) fn answered(&mut self, now: Timestamp, key: &PublicKey, sent: Timestamp) -> bool {
        let Some(far) = self.0.get_mut(key) else {
            return false;
        };
        far.begins_anew();
        let settles = far.moved.is_some_and(|moved| moved.at <= sent);
        if settles {
            far.moved = None;
            if let Some((_, until)) = &mut far.held {
                *until = now + UPLINK_HELD;
            }
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
        if read_at < far.placed + READING {
            return None;
        }
        // Where nobody answers pings nothing else ends that.
        far.moved
            .take_if(|moved| read_at >= moved.at + MOVE_WATCHED);
        if far.is_taken_back(actual)
            && let Some(moved) = &mut far.moved
        {
            // What was under way along the old one has come first.
            moved.told += 1;
            return (moved.told <= TOLD_AGAIN).then_some(Seen::Strayed);
        }
        let before = far.used;
        if before == Some(actual) || far.locators.iter().any(|it| it.endpoint == actual) {
            (far.used, far.roamed) = (Some(actual), None);
        } else {
            far.roamed = Some(actual);
        }
        (far.used != before).then_some(Seen::Roamed)
    }

    /// The uplinks are `uplinks` now. Returns those to whom packets were made to leave by one that is gone,
    /// and what that was.
    pub(super) fn release(&mut self, uplinks: &[IpAddr]) -> Vec<(PublicKey, Held)> {
        let is_gone = |from: IpAddr| !uplinks.contains(&from);
        let mut released = Vec::new();
        for (key, far) in &mut self.0 {
            far.begins_anew();
            far.from.take_if(|from| is_gone(*from));
            let held = far.held.take_if(|(held, _)| is_gone(held.from));
            released.extend(held.map(|(held, _)| (*key, held)));
        }
        released
    }

    /// Those that are at IPv6 addresses. The kernel's WireGuard goes on sending to them from the address that
    /// they have reached last, as long as this host has that, whichever interface leads there.
    pub(super) fn at_ipv6(&self) -> Vec<PublicKey> {
        let is_ipv6 = |far: &FarEnd| far.at().is_some_and(|at| at.is_ipv6());
        let there = self.0.iter().filter(|(_, far)| is_ipv6(far));
        there.map(|(key, _)| *key).collect()
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
        if let Some(far) = self.0.get_mut(key)
            && let Some((_, until)) = &mut far.held
        {
            *until = now + UPLINK_HELD;
        }
    }
}

/// What the data plane makes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The far end was heard from another of its locators.
    Roamed,
    /// It was heard from the one that we have left, or by the uplink, before it heard us: it is told once more.
    Strayed,
}

impl FarEnd {
    /// What was tried says nothing any more.
    fn begins_anew(&mut self) {
        self.tried.clear();
        self.sending = None;
    }

    fn path(&self) -> Option<Path> {
        let to = self.used?;
        let from = self.from.filter(|from| from.is_ipv4() == to.is_ipv4());
        Some(Path { to, from })
    }

    /// Where the data plane sends, as far as anybody knows.
    fn at(&self) -> Option<SocketAddr> {
        self.roamed.or(self.used)
    }

    /// What packets to where it is are made to do, if they take the latest uplink.
    fn held_now(&self) -> Option<Held> {
        let (to, from) = (self.at()?, self.path()?.from?);
        let alike = to.is_ipv4() == from.is_ipv4();
        alike.then_some(Held { to: to.ip(), from })
    }

    /// Whether the latest move was undone if the data plane sends to `actual`: by what was under way from a
    /// place that was left, which is not where it has gone by itself since.
    fn is_taken_back(&self, actual: SocketAddr) -> bool {
        let Some(moved) = &self.moved else {
            return false;
        };
        if self.at() == Some(actual) {
            // Another uplink: the kernel keeps an IPv6 source that a packet by the old one has told it.
            return self.held.is_some() && actual.is_ipv6();
        }
        let mut tried = self.tried.iter().filter(|path| Some(path.to) != self.used);
        let was_in_vain = tried.any(|path| path.to == actual);
        moved.left == actual || was_in_vain
    }

    /// Remembers what was said of each of `named`; of others as far as there is room.
    fn remember(&mut self, named: &[Known]) {
        for it in named {
            if self.remembered.len() >= LOCATORS_REMEMBERED {
                let is_named = |at: &SocketAddr| named.iter().any(|it| it.endpoint == *at);
                self.remembered.retain(|at, _| is_named(at));
            }
            let value = (it.priority, it.weight);
            self.remembered.insert(it.endpoint, value);
        }
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
