//! Was this wanted lately? Answered in bounded memory, for tens of thousands of things per second.

use lisp_proto::Timestamp;

use super::limits::{SIGHTING_BITS, SIGHTING_SPAN};

/// Two Bloom filters that take turns: what was noted within the last [`SIGHTING_SPAN`] is found,
/// what was noted more than twice as long ago is not. One of thousands is found by mistake.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    young: Vec<u64>,
    old: Vec<u64>,
    /// Since when things are noted in `young`.
    since: Timestamp,
}

impl Sightings {
    /// Notes what has this hash; says whether it was noted before.
    pub(super) fn again(&mut self, now: Timestamp, hash: u64) -> bool {
        let age = now - self.since;
        if age >= SIGHTING_SPAN || self.young.is_empty() {
            std::mem::swap(&mut self.young, &mut self.old);
            if age >= SIGHTING_SPAN * 2 {
                self.old.clear();
            }
            self.young.clear();
            self.young.resize(SIGHTING_BITS / 64, 0);
            self.since = now;
        }
        let mut in_both = [true; 2];
        for place in places(hash) {
            let (word, bit) = (place / 64, 1 << (place % 64));
            in_both[1] &= self.old.get(word).is_some_and(|word| word & bit != 0);
            if let Some(word) = self.young.get_mut(word) {
                in_both[0] &= *word & bit != 0;
                *word |= bit;
            }
        }
        in_both[0] || in_both[1]
    }

    /// Gives the memory back when nothing was noted for long.
    pub(super) fn rest(&mut self, now: Timestamp) {
        if !self.young.is_empty() && now - self.since >= SIGHTING_SPAN * 10 {
            *self = Self::default();
        }
    }
}

/// The bits of one hash: four, from its two halves.
fn places(hash: u64) -> impl Iterator<Item = usize> {
    let step = (hash >> 32) | 1;
    (0..4).map(move |n: u64| {
        let place = hash.wrapping_add(step.wrapping_mul(n)) % SIGHTING_BITS as u64;
        usize::try_from(place).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash, Hasher};

    use super::*;

    fn hash(n: u32) -> u64 {
        let mut hasher = DefaultHasher::new();
        n.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn what_was_seen_is_known_for_the_span_and_no_more_than_twice_as_long() {
        let mut sightings = Sightings::default();
        let start = Timestamp::ZERO + SIGHTING_SPAN * 10;
        assert!(!sightings.again(start, hash(1)));
        assert!(sightings.again(start + SIGHTING_SPAN, hash(1)));
        assert!(!sightings.again(start, hash(2)));
        let mut now = start;
        while now < start + SIGHTING_SPAN * 3 {
            now = now + SIGHTING_SPAN / 4;
            sightings.again(now, hash(3));
        }
        assert!(!sightings.again(now, hash(2)));
    }

    #[test]
    fn a_storm_is_hardly_ever_taken_for_something_seen_before_and_costs_no_more_memory() {
        let mut sightings = Sightings::default();
        let (start, step) = (Timestamp::ZERO + SIGHTING_SPAN, SIGHTING_SPAN / 50_000);
        let storm = 0..200_000;
        let mistaken = storm.filter(|n| sightings.again(start + step * *n, hash(*n)));
        assert!(mistaken.count() < 100);
        assert!(sightings.young.len() + sightings.old.len() <= SIGHTING_BITS / 32);
        sightings.rest(start + SIGHTING_SPAN * 100);
        assert_eq!(sightings.young.capacity() + sightings.old.capacity(), 0);
    }
}
