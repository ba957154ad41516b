//! Which Map-Notify nonces were seen: a sliding window, because pushes of different mappings may overtake each other.

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

/// A window over the nonces of one map server's Map-Notifies (RFC 9437 5, with
/// the one counter per xTR that section allows).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplayWindow {
    highest: Option<u64>,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl ReplayWindow {
    /// Tells whether `nonce` is new, and remembers it.
    pub(super) fn accept(&mut self, nonce: Nonce) -> Seen {
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

    /// Makes `nonce` new once more, within the window: what it said could not be done.
    pub(super) fn forget(&mut self, nonce: Nonce) {
        let bit = self.highest.and_then(|highest| Self::bit(highest, nonce.0));
        self.seen &= !bit.unwrap_or(0);
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
