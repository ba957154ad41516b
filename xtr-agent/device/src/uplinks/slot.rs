//! Which rules and tables are an agent's own: several may have uplinks in one network namespace.
//!
//! Each has a slot, and claims it as interfaces are claimed: by an abstract unix socket, which is gone with
//! the process however it ends. What is there in a slot that nobody claims was left over, and is for the one
//! that has left it. Rules of one kind are next to each other, whosever they are.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Most agents with uplinks in one network namespace.
const SLOTS: u32 = 8;
/// The priority of the first rules of all; what is [`CHOSEN`] of the first slot.
const FIRST_PRIORITY: u32 = 4_272;
/// The first table of the first slot.
const FIRST_TABLE: u32 = 4_336;
/// Tables of one slot. Only some are used: 4342 is that of an overlay that is everything.
const TABLES: u32 = 16;
/// The place of the table of the first uplink among these; others follow.
const FIRST_UPLINK: u32 = 8;
/// Most uplinks.
const MOST: u32 = 8;

/// A kind of rules, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u32);

pub(super) const CHOSEN: Kind = Kind(0);
pub(super) const NEAR_FROM: Kind = Kind(1);
pub(super) const NEAR_BEST: Kind = Kind(2);
pub(super) const NEAR: Kind = Kind(3);
pub(super) const FROM: Kind = Kind(4);
pub(super) const BEST: Kind = Kind(5);
pub(super) const OTHERS_NEAR: Kind = Kind(6);
pub(super) const OTHERS_FROM: Kind = Kind(7);
const KINDS: u32 = 8;

/// The rules and tables of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// The right to a slot in this network namespace.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) slot: Slot,
    _socket: UnixDatagram,
}

impl Slot {
    /// The slot with this number, if there is one.
    pub(super) fn of(number: u32) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// All there are.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(Self)
    }

    pub(super) const fn number(self) -> u32 {
        self.0
    }

    /// The priority of its rules of one kind.
    pub(super) const fn priority(self, kind: Kind) -> u32 {
        FIRST_PRIORITY + kind.0 * SLOTS + self.0
    }

    /// Whether its rules have this priority.
    pub(super) fn has_priority(self, priority: u32) -> bool {
        (0..KINDS).any(|kind| self.priority(Kind(kind)) == priority)
    }

    /// The table of those to whom an uplink was chosen.
    pub(super) const fn chosen_table(self) -> u32 {
        FIRST_TABLE + self.0 * TABLES
    }

    /// The table of the uplink at this place.
    pub(super) const fn uplink_table(self, place: u32) -> u32 {
        self.chosen_table() + FIRST_UPLINK + place
    }

    /// All its tables.
    pub(super) fn tables(self) -> impl Iterator<Item = u32> {
        let uplinks = (0..MOST).map(move |place| self.uplink_table(place));
        [self.chosen_table()].into_iter().chain(uplinks)
    }

    /// Claims it; `None`: somebody else has it.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub(super) fn claim(self) -> io::Result<Option<Claim>> {
        let address = SocketAddr::from_abstract_name(format!("lispwire-uplinks:{}", self.0))?;
        match UnixDatagram::bind_addr(&address) {
            Ok(socket) => Ok(Some(Claim {
                slot: self,
                _socket: socket,
            })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rules::OVERLAY_TABLE;

    #[test]
    fn no_number_is_of_two_slots_and_none_is_that_of_an_overlay() {
        let tables: Vec<u32> = Slot::all().flat_map(Slot::tables).collect();
        let others: BTreeSet<_> = tables.iter().copied().collect();
        assert_eq!(others.len(), tables.len());
        assert!(!others.contains(&OVERLAY_TABLE));
        for priority in FIRST_PRIORITY..FIRST_PRIORITY + KINDS * SLOTS {
            let whose = Slot::all().filter(|slot| slot.has_priority(priority));
            assert_eq!(whose.count(), 1);
        }
        // Those of an overlay that is everything come behind, and the main table has 32,766.
        let last = Slot(SLOTS - 1).priority(OTHERS_FROM);
        assert!(last < 4_342, "{last}");
    }
}
