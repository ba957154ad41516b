//! Which locator of a mapping do we use?
//!
//! One with the lowest priority; among several of those, weights say which share of the xTRs uses
//! which (RFC 9301 5.4). Each xTR always draws the same, so that an answer that says nothing new
//! moves nobody, and whoever uses one of the best stays with it. So does whoever was made to leave the
//! best one (`locators`), until something new is said of that.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lisp_proto::{PublicKey, Record, Rloc};

use super::Agent;
use super::event::Cause;
use super::locators::Known;
use super::map_cache::Chosen;

/// The priority of a locator that must not be used (RFC 9301 5.4).
pub(super) const NOT_TO_BE_USED: u8 = u8::MAX;

/// A locator that we could use.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    priority: u8,
    weight: u8,
    /// Whether it is behind a NAT: the owner reaches nobody from there who is not (R is clear).
    is_inner: bool,
    at: Chosen,
}

impl Candidate {
    /// What the xTR `own` draws for it; who draws the least is the one. That falls to each
    /// candidate as often as its weight says.
    fn drawn_by(&self, own: &PublicKey) -> f64 {
        let mut hasher = DefaultHasher::new();
        (own, self.at.key, self.at.endpoint).hash(&mut hasher);
        let bits = u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX);
        let uniform = (f64::from(bits) + 1.0) / (f64::from(u32::MAX) + 1.0);
        -uniform.ln() / f64::from(self.weight.max(1))
    }
}

impl Agent {
    /// The best locator of `record` that we can reach, of an address family that we have ourselves;
    /// the one that we use for `prefix` if it is among the best, or if nothing new is said of it.
    pub(super) fn choose(&self, record: &Record, prefix: &IpNet) -> Option<Chosen> {
        let own = &self.config.public_key;
        let candidates = self.candidates(record);
        let entry = self.cache.get(prefix);
        let used = entry.and_then(|entry| entry.chosen);
        let best = best(own, candidates.clone(), used)?;
        let told = ranked(own, &candidates, &best);
        let mut stays = self.locators.stays(&best.key, &told);
        if let Some(used) = used.filter(|used| used.key == best.key)
            && entry.is_some_and(|entry| entry.cause == Cause::Restored)
            && !self.locators.is_known(&best.key)
        {
            // Why an earlier run used it is not known any more.
            let mut told = told.iter().map(|it| it.endpoint);
            stays = told.find(|endpoint| *endpoint == used.endpoint);
        }
        let endpoint = stays.unwrap_or(best.endpoint);
        Some(Chosen { endpoint, ..best })
    }

    fn candidates(&self, record: &Record) -> Vec<Candidate> {
        let candidates = record.locators.iter().filter_map(|locator| {
            let Rloc::WireGuard { endpoint, key } = locator.rloc else {
                return None;
            };
            let usable = locator.priority != NOT_TO_BE_USED && self.may_be_peer(&key);
            let candidate = Candidate {
                priority: locator.priority,
                weight: locator.weight,
                is_inner: !locator.reachable,
                at: Chosen { key, endpoint },
            };
            (usable && self.is_reachable(&endpoint)).then_some(candidate)
        });
        let mut candidates: Vec<_> = candidates.collect();
        // Which port we have there does not matter.
        if let Some(ours) = self.nat.address() {
            meet_inside(ours, &mut candidates);
        }
        candidates
    }

    /// The locators in `record` at which the peer `chosen` can be reached, the best first.
    pub(super) fn locators_of(&self, record: &Record, chosen: &Chosen) -> Vec<Known> {
        ranked(&self.config.public_key, &self.candidates(record), chosen)
    }

    /// Whether somebody else may have `key`: the map servers are peers of the data interface at times, to see where we are,
    /// and a mapping with such a key would have it point elsewhere.
    pub(super) fn may_be_peer(&self, key: &PublicKey) -> bool {
        let mut servers = self.config.map_servers.iter();
        let is_server = servers.any(|server| server.outer.is_some_and(|(outer, _)| outer == *key));
        *key != self.config.public_key && !is_server
    }

    /// Whether we have an address of the family of `endpoint`.
    pub(super) fn is_reachable(&self, endpoint: &SocketAddr) -> bool {
        let mut own = self.config.addresses();
        own.any(|rloc| rloc.is_ipv4() == endpoint.is_ipv4())
    }
}

/// Whoever is seen at the address `ours` is behind the same NAT as we are. Many a NAT does not send back in what comes
/// from inside, so the addresses that the same key has inside take the place of that one; others that it has elsewhere
/// stay what they are.
fn meet_inside(ours: IpAddr, candidates: &mut Vec<Candidate>) {
    let outside = candidates.iter().copied();
    let outside: Vec<_> = outside.filter(|it| it.at.endpoint.ip() == ours).collect();
    for seen in outside {
        let is_inside =
            |it: &Candidate| it.is_inner && it.at.key == seen.at.key && it.at.endpoint.ip() != ours;
        if !candidates.iter().any(is_inside) {
            continue;
        }
        candidates.retain(|it| it.at != seen.at);
        for inside in candidates.iter_mut().filter(|it| is_inside(it)) {
            inside.priority = inside.priority.min(seen.priority);
        }
    }
}

/// The one of `candidates` that the xTR `own` uses, if it uses `used` now.
fn best(own: &PublicKey, mut candidates: Vec<Candidate>, used: Option<Chosen>) -> Option<Chosen> {
    let lowest = candidates.iter().map(|it| it.priority).min()?;
    candidates.retain(|it| it.priority == lowest);
    // Without any weight the choice is ours.
    if candidates.iter().any(|it| it.weight > 0) {
        candidates.retain(|it| it.weight > 0);
    }
    if let Some(used) = used {
        if candidates.iter().any(|it| it.at == used) {
            return Some(used);
        }
        // It lives elsewhere now, and its session goes on.
        if candidates.iter().any(|it| it.at.key == used.key) {
            candidates.retain(|it| it.at.key == used.key);
        }
    }
    let draw = |it: &Candidate| it.drawn_by(own);
    let first = candidates
        .into_iter()
        .min_by(|one, other| draw(one).total_cmp(&draw(other)));
    first.map(|it| it.at)
}

/// Those of `candidates` at which the peer `chosen` can be reached from here, the best first: its
/// addresses behind a NAT are of no use beside the one that the NAT has given it.
fn ranked(own: &PublicKey, candidates: &[Candidate], chosen: &Chosen) -> Vec<Known> {
    let of_key = candidates.iter().filter(|it| it.at.key == chosen.key);
    let of_key: Vec<_> = of_key.copied().collect();
    let used = of_key.iter().find(|it| it.at == *chosen);
    let is_alike = |it: &Candidate| used.is_none_or(|used| used.is_inner == it.is_inner);
    let mut alike: Vec<_> = of_key.iter().copied().filter(is_alike).collect();
    alike.sort_by(|one, other| {
        let draw = |it: &Candidate| it.drawn_by(own);
        let place = |it: &Candidate| (it.priority, it.weight == 0);
        let by_place = place(one).cmp(&place(other));
        by_place.then(draw(one).total_cmp(&draw(other)))
    });
    let known = alike.into_iter().map(|it| Known {
        endpoint: it.at.endpoint,
        priority: it.priority,
        weight: it.weight,
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: PublicKey = PublicKey([5; 32]);

    fn at(number: u8) -> Chosen {
        Chosen {
            key: PublicKey([number; 32]),
            endpoint: SocketAddr::new([192, 0, 2, number].into(), 51820),
        }
    }

    fn candidate(number: u8, priority: u8, weight: u8) -> Candidate {
        Candidate {
            priority,
            weight,
            is_inner: false,
            at: at(number),
        }
    }

    #[test]
    fn the_lowest_priority_wins_whatever_the_weights_say() {
        let candidates = vec![candidate(1, 2, 100), candidate(2, 1, 1)];
        assert_eq!(best(&OWN, candidates.clone(), None), Some(at(2)));
        assert_eq!(best(&OWN, candidates, Some(at(1))), Some(at(2)));
        assert_eq!(best(&OWN, Vec::new(), Some(at(1))), None);
    }

    #[test]
    fn whoever_uses_one_of_the_best_stays_with_it() {
        let candidates = [1, 2, 3].map(|number| candidate(number, 1, 100)).to_vec();
        for number in [1, 2, 3] {
            let used = Some(at(number));
            assert_eq!(best(&OWN, candidates.clone(), used), used);
        }
        let elsewhere = Chosen {
            key: at(2).key,
            ..at(9)
        };
        assert_eq!(best(&OWN, candidates, Some(elsewhere)), Some(at(2)));
    }

    #[test]
    fn the_choice_does_not_hang_on_the_order() {
        let mut candidates = [1, 2, 3, 4].map(|number| candidate(number, 1, 50)).to_vec();
        let first = best(&OWN, candidates.clone(), None);
        for _ in 0..3 {
            candidates.rotate_left(1);
            assert_eq!(best(&OWN, candidates.clone(), None), first);
        }
    }

    #[test]
    fn those_behind_the_same_nat_meet_inside_it() {
        let seen = |number, port| Candidate {
            at: Chosen {
                endpoint: SocketAddr::new([198, 51, 100, 1].into(), port),
                ..at(number)
            },
            ..candidate(number, 1, 100)
        };
        let inside = |number| Candidate {
            is_inner: true,
            ..candidate(number, 2, 100)
        };
        let record = vec![seen(1, 7), inside(1)];
        let chosen = |ours: [u8; 4], mut candidates: Vec<Candidate>| {
            meet_inside(ours.into(), &mut candidates);
            best(&OWN, candidates, None).unwrap()
        };
        assert_eq!(chosen([198, 51, 100, 1], record.clone()), at(1));
        let elsewhere = chosen([198, 51, 100, 2], record.clone());
        assert_eq!(elsewhere, seen(1, 7).at);
        let alone = vec![seen(1, 7)];
        assert_eq!(chosen([198, 51, 100, 1], alone), seen(1, 7).at);
        let one_of_two = [record, vec![inside(2)]].concat();
        assert_eq!(chosen([198, 51, 100, 1], one_of_two), at(1));
        let backup = candidate(1, 2, 100);
        let not_inside = vec![seen(1, 7), backup];
        assert_eq!(chosen([198, 51, 100, 1], not_inside), seen(1, 7).at);
    }

    #[test]
    fn the_addresses_behind_a_nat_are_no_other_ways_to_whoever_is_behind_it() {
        let same_key = |number, priority, is_inner| Candidate {
            at: Chosen {
                key: at(1).key,
                ..at(number)
            },
            is_inner,
            ..candidate(number, priority, 100)
        };
        let ways = |candidates: &[Candidate], used| {
            let ranked = ranked(&OWN, candidates, &used);
            ranked.iter().map(|it| it.endpoint).collect::<Vec<_>>()
        };
        let two = [
            same_key(2, 2, false),
            same_key(1, 1, false),
            candidate(3, 1, 1),
        ];
        assert_eq!(ways(&two, at(1)), [at(1).endpoint, at(2).endpoint]);
        let behind = [same_key(1, 1, false), same_key(2, 2, true)];
        assert_eq!(ways(&behind, at(1)), [at(1).endpoint]);
        // A private address alone is no sign of a NAT.
        let mut private = two;
        private[0].at.endpoint.set_ip([10, 0, 0, 1].into());
        assert_eq!(ways(&private, at(1)).len(), 2);
    }

    #[test]
    fn weights_are_shares_of_those_who_choose() {
        let share = |weights: [u8; 2]| {
            let candidates: Vec<_> = (1..)
                .zip(weights)
                .map(|(n, w)| candidate(n, 1, w))
                .collect();
            let keys = (0..2_000u16).map(|n| {
                let mut key = [7; 32];
                key[..2].copy_from_slice(&n.to_be_bytes());
                PublicKey(key)
            });
            let first = keys.filter(|own| best(own, candidates.clone(), None) == Some(at(1)));
            first.count()
        };
        assert!((900..1_100).contains(&share([100, 100])));
        assert!((900..1_100).contains(&share([0, 0])));
        assert!((1_400..1_600).contains(&share([75, 25])));
        assert_eq!(share([0, 1]), 0);
    }
}
