//! Which Map-Notifies were seen: a sliding window of nonces, because pushes of different mappings may
//! overtake each other, and the latest word on each prefix, because those of one mapping may not.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lisp_proto::Nonce;

/// Nonces below the highest that are still told apart.
const WINDOW: u64 = 128;

/// What a nonce means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not seen before.
    New,
    /// Seen, within the window.
    Before,
    /// Too old to tell.
    TooOld,
}

/// What one map server told us by Map-Notifies. Nonces of different map
/// servers have nothing to do with each other.
#[derive(Debug, Default)]
pub(super) struct Notifies {
    window: ReplayWindow,
    /// The latest Map-Notify about each prefix, withdrawn ones included, for as
    /// long as the window lets an older one through.
    latest: BTreeMap<IpNet, Nonce>,
    by_nonce: BTreeSet<(Nonce, IpNet)>,
}

impl Notifies {
    /// Tells whether `nonce` is new, and remembers it.
    pub(super) fn accept(&mut self, nonce: Nonce) -> Seen {
        let seen = self.window.accept(nonce);
        let oldest = Nonce(self.window.oldest());
        while let Some((nonce, prefix)) = self.by_nonce.first().copied()
            && nonce < oldest
        {
            self.by_nonce.remove(&(nonce, prefix));
            self.latest.remove(&prefix);
        }
        seen
    }

    /// Makes `nonce` new once more: what it said could not be done.
    pub(super) fn forget(&mut self, nonce: Nonce) {
        self.window.forget(nonce);
    }

    /// Whether no later Map-Notify than that with `nonce` was about `prefix`;
    /// if so, it is now the latest.
    pub(super) fn is_latest(&mut self, prefix: IpNet, nonce: Nonce) -> bool {
        match self.latest.get(&prefix) {
            Some(latest) if *latest > nonce => return false,
            Some(latest) => self.by_nonce.remove(&(*latest, prefix)),
            None => false,
        };
        self.latest.insert(prefix, nonce);
        self.by_nonce.insert((nonce, prefix));
        true
    }

    /// The highest nonce that was accepted.
    #[must_use]
    pub(super) fn highest(&self) -> Option<Nonce> {
        self.window.highest.map(Nonce)
    }
}

/// A window over the nonces of one map server's Map-Notifies (RFC 9437 5, with
/// the one counter per xTR that section allows).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ReplayWindow {
    highest: Option<u64>,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl ReplayWindow {
    /// Tells whether `nonce` is new, and remembers it.
    fn accept(&mut self, nonce: Nonce) -> Seen {
        let nonce = nonce.0;
        let highest = *self.highest.get_or_insert(nonce);
        if nonce > highest {
            let shift = u32::try_from(nonce - highest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.highest = Some(nonce);
            return Seen::New;
        }
        let Some(bit) = Self::bit(highest, nonce) else {
            return Seen::TooOld;
        };
        if self.seen & bit != 0 {
            return Seen::Before;
        }
        self.seen |= bit;
        Seen::New
    }

    /// Makes `nonce` new once more, within the window.
    fn forget(&mut self, nonce: Nonce) {
        let bit = self.highest.and_then(|highest| Self::bit(highest, nonce.0));
        self.seen &= !bit.unwrap_or(0);
    }

    /// The lowest nonce that may still be new.
    fn oldest(&self) -> u64 {
        let highest = self.highest.unwrap_or(0);
        highest.saturating_sub(WINDOW - 1)
    }

    fn bit(highest: u64, nonce: u64) -> Option<u128> {
        let age = highest.checked_sub(nonce).filter(|age| *age < WINDOW)?;
        Some(1u128 << age)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overtaken_nonces_are_new_once() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.accept(Nonce(5)), Seen::New);
        assert_eq!(window.accept(Nonce(4)), Seen::New);
        assert_eq!(window.accept(Nonce(4)), Seen::Before);
        assert_eq!(window.accept(Nonce(5)), Seen::Before);
        assert_eq!(window.accept(Nonce(500)), Seen::New);
        assert_eq!(window.accept(Nonce(5)), Seen::TooOld);
        assert_eq!(window.accept(Nonce(u64::MAX)), Seen::New);
    }

    #[test]
    fn a_forgotten_nonce_is_new_and_all_others_stay_seen() {
        let mut window = ReplayWindow::default();
        for nonce in [1, 500] {
            assert_eq!(window.accept(Nonce(nonce)), Seen::New);
            window.forget(Nonce(nonce));
        }
        assert_eq!(window.accept(Nonce(1)), Seen::TooOld);
        assert_eq!(window.accept(Nonce(500)), Seen::New);
        assert_eq!(window.accept(Nonce(500)), Seen::Before);
    }

    #[test]
    fn the_latest_word_on_a_prefix_is_kept_as_long_as_an_older_one_may_come() {
        let prefix: IpNet = "10.0.0.2/32".parse().unwrap();
        let mut notifies = Notifies::default();
        notifies.accept(Nonce(7));
        assert!(notifies.is_latest(prefix, Nonce(7)));
        assert!(notifies.is_latest(prefix, Nonce(7)), "a repetition");
        assert!(!notifies.is_latest(prefix, Nonce(6)));
        notifies.accept(Nonce(7 + WINDOW - 1));
        assert!(!notifies.is_latest(prefix, Nonce(6)));
        assert_eq!(notifies.accept(Nonce(7 + WINDOW)), Seen::New);
        assert_eq!(notifies.accept(Nonce(6)), Seen::TooOld);
        assert!(notifies.latest.is_empty() && notifies.by_nonce.is_empty());
        assert_eq!(notifies.highest(), Some(Nonce(7 + WINDOW)));
    }

    proptest! {
        #[test]
        fn no_nonce_is_new_twice(nonces in proptest::collection::vec(0u64..300, 0..400)) {
            let mut window = ReplayWindow::default();
            let mut model = BTreeSet::new();
            for nonce in nonces {
                let answer = window.accept(Nonce(nonce));
                let highest = model.last().copied().unwrap_or(0);
                let expected = if model.contains(&nonce) && highest - nonce < WINDOW {
                    Seen::Before
                } else if !model.is_empty() && highest >= nonce + WINDOW {
                    Seen::TooOld
                } else {
                    Seen::New
                };
                prop_assert_eq!(answer, expected);
                model.insert(nonce);
            }
        }
    }
}
