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
    highest: u64,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl ReplayWindow {
    /// Tells whether `nonce` is new, and remembers it.
    pub(super) fn accept(&mut self, nonce: Nonce) -> Seen {
        let nonce = nonce.0;
        if self.seen == 0 || nonce > self.highest {
            let shift = nonce.saturating_sub(self.highest);
            self.seen = match u32::try_from(shift) {
                Ok(shift) if u64::from(shift) < WINDOW && self.seen != 0 => self.seen << shift,
                _ => 0,
            } | 1;
            self.highest = nonce;
            return Seen::New;
        }
        let age = self.highest - nonce;
        if age >= WINDOW {
            return Seen::TooOld;
        }
        let bit = 1u128 << age;
        if self.seen & bit != 0 {
            return Seen::Before;
        }
        self.seen |= bit;
        Seen::New
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
