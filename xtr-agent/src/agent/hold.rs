//! Packets waiting for a mapping: bounded per destination by its queue and in all by one budget.

use std::collections::VecDeque;

use bytes::Bytes;

use super::event::DropReason;
use super::limits::HELD_IN_ALL;

/// Room left for held packets, over all destinations.
#[derive(Debug)]
pub(super) struct HoldBudget {
    left: usize,
}

impl HoldBudget {
    /// How many packets are held.
    pub(super) const fn used(&self) -> usize {
        HELD_IN_ALL.saturating_sub(self.left)
    }
}

impl Default for HoldBudget {
    fn default() -> Self {
        Self { left: HELD_IN_ALL }
    }
}

/// Why a packet was not held, and the packet that had to go for it.
pub(super) type Refused = (DropReason, Option<Bytes>);

/// The packets that wait for one destination, oldest first.
#[derive(Debug, Default)]
pub(super) struct Held {
    packets: VecDeque<Bytes>,
}

impl Held {
    /// Appends a copy of `packet`; a queue with `most` packets gives up its oldest one.
    ///
    /// # Errors
    /// [`DropReason::HoldFull`] when too many packets are held in all, or
    /// [`DropReason::HoldOverflow`] with the packet that had to go.
    pub(super) fn push(
        &mut self,
        packet: &[u8],
        most: usize,
        budget: &mut HoldBudget,
    ) -> Result<(), Refused> {
        if self.packets.len() >= most {
            let oldest = self.packets.pop_front();
            self.packets.push_back(Bytes::copy_from_slice(packet));
            return Err((DropReason::HoldOverflow, oldest));
        }
        let Some(left) = budget.left.checked_sub(1) else {
            return Err((DropReason::HoldFull, None));
        };
        budget.left = left;
        self.packets.push_back(Bytes::copy_from_slice(packet));
        Ok(())
    }

    /// Appends `packet` if there is room in all.
    pub(super) fn keep(&mut self, packet: Bytes, budget: &mut HoldBudget) {
        if let Some(left) = budget.left.checked_sub(1) {
            budget.left = left;
            self.packets.push_back(packet);
        }
    }

    /// Takes the oldest packet out.
    pub(super) fn pop(&mut self, budget: &mut HoldBudget) -> Option<Bytes> {
        let packet = self.packets.pop_front()?;
        budget.left += 1;
        Some(packet)
    }

    /// The packets, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.packets.iter()
    }

    /// Moves all of `other` behind the packets held here, past the bound if
    /// need be: these packets were admitted already.
    pub(super) fn append(&mut self, mut other: Self) {
        self.packets.append(&mut other.packets);
    }

    /// Takes everything out and returns its room to the budget.
    pub(super) fn take(&mut self, budget: &mut HoldBudget) -> VecDeque<Bytes> {
        budget.left += self.packets.len();
        std::mem::take(&mut self.packets)
    }

    /// Whether none waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_up_its_oldest_packet() {
        const MOST: usize = 8;
        let (mut held, mut budget) = (Held::default(), HoldBudget::default());
        for n in 0..MOST {
            held.push(&n.to_be_bytes(), MOST, &mut budget).unwrap();
        }
        let (reason, oldest) = held.push(b"new", MOST, &mut budget).unwrap_err();
        assert_eq!(reason, DropReason::HoldOverflow);
        assert_eq!(oldest.unwrap(), 0usize.to_be_bytes().as_slice());
        assert_eq!(held.packets.len(), MOST);
        assert_eq!(held.take(&mut budget).back().unwrap(), &b"new".as_slice());
        assert_eq!(budget.left, HELD_IN_ALL);
    }

    #[test]
    fn the_budget_covers_all_destinations() {
        let mut budget = HoldBudget { left: 1 };
        let (mut one, mut two) = (Held::default(), Held::default());
        one.push(b"a", 8, &mut budget).unwrap();
        assert_eq!(
            two.push(b"b", 8, &mut budget).unwrap_err().0,
            DropReason::HoldFull
        );
        one.take(&mut budget);
        two.push(b"b", 8, &mut budget).unwrap();
    }
}
