//! Members that meet each other.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stream::{Order, To};
use super::{Crowd, ROUND, member};
use crate::clock::{monotonic_ns, nanos, sleep};
use crate::error::TestbedError;

/// Where members listen when they meet.
pub(super) const PORT: u16 = 9_003;

/// One packet from every member to each of some others, all at an even pace. Those that have not met before ask the map
/// server, and the others hear of them.
#[derive(Clone, Copy, Debug)]
pub struct CrowdMeetings {
    /// How many members there are, in a ring.
    pub members: u32,
    /// How far along the ring the first one is that each of them meets; less than half of it, or two meet twice.
    pub first: u32,
    /// How many each meets.
    pub count: u32,
    /// Time from one meeting of a member to its next one.
    pub interval: Duration,
    /// How long nothing arrives, after the last packet was sent, until what is missing is lost.
    pub timeout: Duration,
}

/// Whom `member` meets as its `number`th.
pub(super) fn met_by(member: u32, number: u32, first: u32, members: u32) -> Ipv4Addr {
    let along = u64::from(member) + u64::from(first) + u64::from(number);
    let far = along % u64::from(members.max(1));
    member::eid(u32::try_from(far).unwrap_or(0))
}

impl Crowd {
    /// Lets members meet; returns how many packets have arrived.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub fn meet(&self, meetings: CrowdMeetings) -> Result<u32, TestbedError> {
        drop(self.arrivals());
        self.send(Order {
            members: meetings.members,
            count: meetings.count,
            interval: meetings.interval,
            to: To::Others(meetings.first),
        });
        let total = meetings.members.saturating_mul(meetings.count);
        let (mut arrived, mut quiet_since) = (0_u32, monotonic_ns());
        while arrived < total {
            if self.has_ended() {
                return Err(TestbedError::Unexpected("the crowd has ended"));
            }
            let sending = self.shared.streaming.load(Ordering::Relaxed);
            let new = u32::try_from(self.arrivals().len()).unwrap_or(u32::MAX);
            if new > 0 || sending {
                arrived = arrived.saturating_add(new);
                quiet_since = monotonic_ns();
            } else if monotonic_ns().saturating_sub(quiet_since) > nanos(meetings.timeout) {
                break;
            }
            sleep(ROUND);
        }
        Ok(arrived)
    }
}

/// Where a packet to somebody who is met goes.
pub(super) fn address(eid: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(eid, PORT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_meet_twice() {
        let (members, count) = (20, 3);
        let mut met = BTreeSet::new();
        for first in [1, 4, 7] {
            for one in 0..members {
                for number in 0..count {
                    let two = met_by(one, number, first, members);
                    let one = member::eid(one);
                    assert_ne!(one, two);
                    assert!(met.insert((one.min(two), one.max(two))));
                }
            }
        }
    }
}
