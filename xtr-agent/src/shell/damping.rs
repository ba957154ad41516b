//! Uplinks that come and go: how long has one to stay before it is used again?
//!
//! What comes back after it was gone once is used at once. One that goes again soon, as with a loose
//! plug, would take tunnels with it each time: it is used when it has stayed for a while, longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lisp_proto::Timestamp;

/// One that has stayed for so long since it was used again is as good as any.
const STEADY: Duration = Duration::from_secs(60);
/// How long one has to stay that has gone again before that; doubles each time.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Longest such time.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What is known of an uplink.
#[derive(Clone, Copy, Debug)]
struct Seen {
    is_there: bool,
    /// It is not held back once it was used: nothing is wrong with it then.
    is_used: bool,
    /// When it has come.
    since: Timestamp,
    /// How long it has to stay from then on.
    wait: Duration,
}

/// All uplinks that were there once.
#[derive(Debug, Default)]
pub(super) struct Damping {
    seen: BTreeMap<IpAddr, Seen>,
    held: BTreeSet<IpAddr>,
}

impl Damping {
    /// Those `there` are there now. Returns those of them that are not to be used yet; never all of a family.
    pub(super) fn held_back(
        &mut self,
        now: Timestamp,
        there: &BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        for address in there {
            let seen = self.seen.entry(*address).or_insert(Seen {
                is_there: true,
                is_used: false,
                since: now,
                wait: Duration::ZERO,
            });
            if !std::mem::replace(&mut seen.is_there, true) {
                seen.since = now;
            }
        }
        for (address, seen) in &mut self.seen {
            if there.contains(address) || !std::mem::replace(&mut seen.is_there, false) {
                continue;
            }
            seen.is_used = false;
            seen.wait = match now < seen.until() + STEADY {
                true => (seen.wait * 2).clamp(FIRST_WAIT, WAIT_MAX),
                false => Duration::ZERO,
            };
        }
        let seen = |it: &IpAddr| self.seen.get(it);
        let waits = |it: &IpAddr| seen(it).is_some_and(|it| !it.is_used && now < it.until());
        let mut held: BTreeSet<_> = there.iter().copied().filter(waits).collect();
        for is_ipv4 in [true, false] {
            let alike = || there.iter().filter(|it| it.is_ipv4() == is_ipv4);
            if alike().all(|it| held.contains(it)) {
                // The one that would be used first.
                if let Some(first) = alike().min_by_key(|it| seen(it).map(Seen::until)) {
                    held.remove(first);
                }
            }
        }
        for address in there.difference(&held) {
            if let Some(seen) = self.seen.get_mut(address) {
                seen.is_used = true;
            }
        }
        self.held.clone_from(&held);
        held
    }

    /// Whether one that is held back has stayed for long enough. Then nothing is due until all are looked at.
    pub(super) fn is_over(&mut self, now: Timestamp) -> bool {
        let is_over = self.due().is_some_and(|due| due <= now);
        if is_over {
            self.held.clear();
        }
        is_over
    }

    /// When the next one is to be used that is held back.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let held = self.held.iter().filter_map(|it| self.seen.get(it));
        held.map(Seen::until).min()
    }
}

impl Seen {
    fn until(&self) -> Timestamp {
        self.since + self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY_ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const LOOSE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    /// How long one is held back that comes after it was gone for a second, as long as it then stays.
    fn held_for(damping: &mut Damping, now: &mut Timestamp) -> Duration {
        *now = *now + Duration::from_secs(1);
        damping.held_back(*now, &[STEADY_ONE].into());
        *now = *now + Duration::from_secs(1);
        let both = [STEADY_ONE, LOOSE].into();
        let came = *now;
        while !damping.held_back(*now, &both).is_empty() {
            *now = damping.due().unwrap();
            assert!(damping.is_over(*now));
        }
        assert_eq!(damping.due(), None);
        *now - came
    }

    #[test]
    fn one_that_comes_and_goes_is_used_ever_later_until_it_stays() {
        let (mut damping, mut now) = (Damping::default(), Timestamp::ZERO);
        let both = [STEADY_ONE, LOOSE].into();
        assert!(damping.held_back(now, &both).is_empty());
        now = now + STEADY;
        let waits: Vec<_> = (0..8).map(|_| held_for(&mut damping, &mut now)).collect();
        let seconds: Vec<_> = waits.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [0, 2, 4, 8, 16, 32, 60, 60]);
        now = now + STEADY;
        assert_eq!(held_for(&mut damping, &mut now), Duration::ZERO);
    }

    #[test]
    fn one_that_is_used_because_there_was_no_other_is_used_when_there_is_one_again() {
        let (mut damping, mut now) = (Damping::default(), Timestamp::ZERO);
        let both = [STEADY_ONE, LOOSE].into();
        damping.held_back(now, &both);
        now = now + STEADY;
        for _ in 0..4 {
            held_for(&mut damping, &mut now);
        }
        damping.held_back(now, &[STEADY_ONE].into());
        assert_eq!(damping.held_back(now, &both), [LOOSE].into());
        assert!(
            damping.held_back(now, &[LOOSE].into()).is_empty(),
            "the only one"
        );
        assert!(
            damping.held_back(now, &both).is_empty(),
            "nothing is wrong with it"
        );
    }

    #[test]
    fn of_two_loose_ones_that_come_together_one_is_used() {
        let (mut damping, mut now) = (Damping::default(), Timestamp::ZERO);
        let both: BTreeSet<_> = [STEADY_ONE, LOOSE].into();
        for _ in 0..3 {
            damping.held_back(now, &both);
            now = now + Duration::from_secs(1);
            damping.held_back(now, &BTreeSet::new());
        }
        assert_eq!(damping.held_back(now, &both).len(), 1);
        let due = damping.due().unwrap();
        assert!(damping.is_over(due));
        assert!(damping.held_back(due, &both).is_empty());
    }

    #[test]
    fn the_only_one_of_a_family_is_used_however_loose_it_is() {
        let (mut damping, mut now) = (Damping::default(), Timestamp::ZERO);
        let ipv6: IpAddr = "2001:db8::1".parse().unwrap();
        for _ in 0..10 {
            assert!(damping.held_back(now, &[LOOSE, ipv6].into()).is_empty());
            now = now + Duration::from_secs(1);
            damping.held_back(now, &[ipv6].into());
        }
    }
}
