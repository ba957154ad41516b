//! What time is it, and what is due next?
//!
//! State machines never read a clock: their shell tells them a [`Timestamp`] with every input.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time: nanoseconds since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The start of the process.
    pub const ZERO: Self = Self(0);
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of time, 584 years after the start.
    fn add(self, span: Duration) -> Self {
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(span_ns))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// Returns zero when `earlier` is in fact later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// An ordered set of timers, at most one per key.
#[derive(Clone, Debug)]
pub struct Deadlines<K> {
    by_key: BTreeMap<K, Timestamp>,
    by_time: BTreeSet<(Timestamp, K)>,
}

impl<K: Ord + Clone> Deadlines<K> {
    /// Builds an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// Arms the timer of `key`, in place of the one it had.
    pub fn set(&mut self, key: K, at: Timestamp) {
        if let Some(before) = self.by_key.insert(key.clone(), at) {
            self.by_time.remove(&(before, key.clone()));
        }
        self.by_time.insert((at, key));
    }

    /// Arms the timer of `key`, unless it has one that is due earlier.
    pub fn bring_forward(&mut self, key: K, at: Timestamp) {
        if self.by_key.get(&key).is_none_or(|armed| at < *armed) {
            self.set(key, at);
        }
    }

    /// Disarms the timer of `key`; nothing happens if it has none.
    pub fn cancel(&mut self, key: &K) {
        if let Some((key, at)) = self.by_key.remove_entry(key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// Returns the time of the earliest timer.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest timer out if it is due at `now`.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_key() {
        let mut timers = Deadlines::new();
        timers.set("late", Timestamp(9));
        timers.set("b", Timestamp(5));
        timers.set("a", Timestamp(5));
        assert_eq!(timers.next(), Some(Timestamp(5)));
        assert_eq!(timers.pop_due(Timestamp(4)), None);
        assert_eq!(timers.pop_due(Timestamp(5)), Some("a"));
        assert_eq!(timers.pop_due(Timestamp(5)), Some("b"));
        assert_eq!(timers.pop_due(Timestamp(5)), None);
        assert_eq!(timers.pop_due(Timestamp(10)), Some("late"));
        assert_eq!(timers.next(), None);
        timers.bring_forward("a", Timestamp(4));
        timers.bring_forward("a", Timestamp(6));
        assert_eq!(timers.next(), Some(Timestamp(4)));
        timers.bring_forward("a", Timestamp(3));
        assert_eq!(timers.pop_due(Timestamp(3)), Some("a"));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_key_has_one_timer_and_cancelling_removes_it() {
        let mut timers = Deadlines::default();
        timers.set(1, Timestamp(5));
        timers.set(1, Timestamp(7));
        assert_eq!(timers.next(), Some(Timestamp(7)));
        timers.cancel(&1);
        timers.cancel(&2);
        assert_eq!(timers.pop_due(Timestamp(u64::MAX)), None);
    }

    #[test]
    fn time_arithmetic_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(Timestamp::ZERO + second, Timestamp(1_000_000_000));
        assert_eq!(Timestamp(u64::MAX) + second, Timestamp(u64::MAX));
        assert_eq!(Timestamp::ZERO + Duration::MAX, Timestamp(u64::MAX));
        assert_eq!((Timestamp::ZERO + second) - Timestamp::ZERO, second);
        assert_eq!(Timestamp::ZERO - Timestamp(1), Duration::ZERO);
    }
}
