//! When is a look to be taken at which mapping?
//!
//! A refresh moves no timer: when that fires it is armed again for what is left. So each mapping costs one
//! number in a list, however often it is refreshed.

use std::collections::{BTreeMap, VecDeque};

use lisp_proto::{EidPrefix, Timestamp};

use super::super::prefix_table::SlotId;

/// Timers of mappings that are gone are left where they are up to this number.
const STALE: usize = 4_096;
const NS_PER_MS: u64 = 1_000_000;

/// Milliseconds since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Millis(u64);

impl Millis {
    /// Returns the first whole millisecond that is not before `at`.
    pub(super) const fn of(at: Timestamp) -> Self {
        Self(at.0.div_ceil(NS_PER_MS))
    }

    /// Returns the last whole millisecond that is not after `now`.
    pub(super) const fn passed(now: Timestamp) -> Self {
        Self(now.0 / NS_PER_MS)
    }

    /// Returns the number in six bytes, which last for 8,900 years.
    pub(super) const fn pack(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Returns what was packed.
    pub(super) const fn unpack([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

/// The timer of one mapping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    at: [u8; 6],
    is_armed: bool,
}

/// All timers, in lists by the millisecond.
#[derive(Clone, Debug)]
pub(super) struct Expiry {
    lists: BTreeMap<Millis, Vec<SlotId>>,
    /// The list that is being worked through.
    due: VecDeque<SlotId>,
    due_at: Millis,
    /// In all lists.
    entries: usize,
    armed: usize,
}

impl Expiry {
    pub(super) const fn new() -> Self {
        Self {
            lists: BTreeMap::new(),
            due: VecDeque::new(),
            due_at: Millis(0),
            entries: 0,
            armed: 0,
        }
    }

    /// Makes the timer of `id` fire no later than `at`.
    pub(super) fn arm(&mut self, timer: &mut Timer, id: SlotId, at: Millis) {
        if timer.is_armed && Millis::unpack(timer.at) <= at {
            return;
        }
        if !timer.is_armed {
            self.armed += 1;
        }
        *timer = Timer {
            at: at.pack(),
            is_armed: true,
        };
        self.lists.entry(at).or_default().push(id);
        self.entries += 1;
    }

    /// Keeps a timer from firing.
    pub(super) fn disarm(&mut self, timer: &mut Timer) {
        self.armed -= usize::from(timer.is_armed);
        timer.is_armed = false;
    }

    /// Takes one timer out that may be due: one that was disarmed or armed for another time may be
    /// among them. Of those due at the same time the order of their prefixes decides.
    pub(super) fn pop_due(
        &mut self,
        now: Millis,
        eid_at: impl Fn(SlotId) -> Option<EidPrefix>,
    ) -> Option<SlotId> {
        if self.due.is_empty() {
            let first = self.lists.first_entry()?;
            if *first.key() > now {
                return None;
            }
            let (at, mut ids) = first.remove_entry();
            ids.sort_by_key(|id| eid_at(*id));
            (self.due_at, self.due) = (at, ids.into());
        }
        let id = self.due.pop_front()?;
        self.entries -= 1;
        Some(id)
    }

    /// Disarms a timer that was taken out; returns whether it was to fire.
    pub(super) fn fired(&mut self, timer: &mut Timer) -> bool {
        let fires = timer.is_armed && timer.at == self.due_at.pack();
        if fires {
            self.disarm(timer);
        }
        fires
    }

    /// Forgets what will not fire, if that is most.
    pub(super) fn tidy<'a>(&mut self, timer_at: impl Fn(SlotId) -> Option<&'a Timer>) {
        if self.entries <= 2 * self.armed + STALE {
            return;
        }
        self.lists.retain(|at, ids| {
            let fires = |timer: &Timer| timer.is_armed && timer.at == at.pack();
            ids.retain(|id| timer_at(*id).is_some_and(fires));
            ids.shrink_to_fit();
            !ids.is_empty()
        });
        self.entries = self.due.len() + self.lists.values().map(Vec::len).sum::<usize>();
    }

    /// Returns when the next timer may be due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let due = (!self.due.is_empty()).then_some(self.due_at);
        let next = due.or_else(|| self.lists.keys().next().copied())?;
        Some(Timestamp(next.0.saturating_mul(NS_PER_MS)))
    }

    /// Returns how many timers there are, with those that will not fire.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.entries
    }
}
