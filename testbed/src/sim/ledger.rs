//! What has become of every packet? Each is sent on once, or refused, or lost for a reason.

use std::collections::BTreeMap;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::packet::Probe;

/// An agent keeps a packet no longer than this: the hold time of 3 s, the time of all tries of a
/// Map-Request, and a slow data plane.
const KEPT_MAX: Duration = Duration::from_secs(30);

const CAUGHT: u8 = 1;
const SENT: u8 = 2;
const REFUSED: u8 = 4;
const DELIVERED: u8 = 8;
const AGAIN: u8 = 16;

/// What a packet did that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misdeed {
    /// It was sent twice, or delivered twice.
    Twice,
    /// It was sent and its sender was told that it was not.
    SentAndRefused,
    /// It overtook an earlier one of its flow on the way to the interface.
    Overtook,
    /// It arrived without having been sent.
    FromNowhere,
}

/// All packets of a run.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// One set of flags per packet: numbers are given out one after the other.
    packets: Vec<u8>,
    /// By agent: the packets it has been given and has done nothing about yet.
    kept: BTreeMap<u32, BTreeMap<u64, Timestamp>>,
    /// By agent: how many packets it has counted as refused without telling their senders.
    untold: BTreeMap<u32, usize>,
    /// By flow and direction: the next position that may be sent.
    order: BTreeMap<(u32, bool), u32>,
}

impl Ledger {
    /// Returns the number of a new packet.
    pub(super) fn issue(&mut self) -> u64 {
        self.packets.push(0);
        self.packets.len() as u64 - 1
    }

    /// A packet was given to an agent.
    pub(super) fn caught(&mut self, now: Timestamp, agent: u32, probe: &Probe) {
        self.flag(probe.id, CAUGHT);
        self.kept.entry(agent).or_default().insert(probe.id, now);
    }

    /// A packet went into the data interface of an agent.
    pub(super) fn sent(&mut self, agent: u32, probe: &Probe) -> Result<(), Misdeed> {
        self.release(agent, probe.id);
        let before = self.flag(probe.id, SENT);
        if before & SENT != 0 {
            return Err(Misdeed::Twice);
        }
        if before & REFUSED != 0 {
            return Err(Misdeed::SentAndRefused);
        }
        let next = self.order.entry((probe.flow, probe.echo)).or_default();
        if probe.sequence < *next {
            return Err(Misdeed::Overtook);
        }
        *next = probe.sequence + 1;
        Ok(())
    }

    /// A peer was taken out of the data interface, and with it a packet that had not left: it may
    /// be sent again.
    pub(super) fn taken_out(&mut self, probe: &Probe) {
        self.unflag(probe.id, SENT);
        let next = self.order.entry((probe.flow, probe.echo)).or_default();
        *next = probe.sequence.min(*next);
    }

    /// A packet had left a moment before its peer was taken out. Its agent cannot know, and may send
    /// it again: that one arrives twice, or once although it was refused in the end.
    pub(super) fn just_sent(&mut self, probe: &Probe) {
        self.taken_out(probe);
        self.flag(probe.id, AGAIN);
    }

    /// The sender of a packet was told that it was not sent. One that still waits in the data interface, for a
    /// session, has not left: it must not do so any more.
    pub(super) fn refused(
        &mut self,
        agent: u32,
        probe: &Probe,
        is_waiting: bool,
    ) -> Result<(), Misdeed> {
        self.release(agent, probe.id);
        if is_waiting {
            self.unflag(probe.id, SENT);
        }
        if self.flag(probe.id, REFUSED) & SENT != 0 {
            return Err(Misdeed::SentAndRefused);
        }
        Ok(())
    }

    /// An agent has counted a packet that it did not send, and was not allowed to tell its sender.
    pub(super) fn refused_silently(&mut self, agent: u32) {
        *self.untold.entry(agent).or_default() += 1;
    }

    /// A packet arrived at the far end.
    pub(super) fn delivered(&mut self, probe: &Probe) -> Result<(), Misdeed> {
        let before = self.flag(probe.id, DELIVERED);
        if before & AGAIN != 0 {
            if before & DELIVERED != 0 {
                self.unflag(probe.id, AGAIN);
            }
            return Ok(());
        }
        if before & DELIVERED != 0 {
            return Err(Misdeed::Twice);
        }
        if before & (SENT | REFUSED) == REFUSED {
            return Err(Misdeed::SentAndRefused);
        }
        if before & SENT == 0 {
            return Err(Misdeed::FromNowhere);
        }
        Ok(())
    }

    /// The host of an agent went down, with everything the agent had kept.
    pub(super) fn forget(&mut self, agent: u32) {
        self.kept.remove(&agent);
        self.untold.remove(&agent);
    }

    /// An agent and a packet that it neither sent nor refused in time.
    pub(super) fn overdue(&self, now: Timestamp) -> Option<(u32, u64)> {
        self.kept.iter().find_map(|(agent, kept)| {
            let untold = self.untold.get(agent).copied().unwrap_or(0);
            let mut late = kept.iter().filter(|(_, since)| now - **since > KEPT_MAX);
            late.nth(untold).map(|(id, _)| (*agent, *id))
        })
    }

    /// How many packets there were.
    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    /// How many packets arrived.
    pub(super) fn arrived(&self) -> usize {
        self.packets
            .iter()
            .filter(|flags| **flags & DELIVERED != 0)
            .count()
    }

    fn release(&mut self, agent: u32, id: u64) {
        if let Some(kept) = self.kept.get_mut(&agent) {
            kept.remove(&id);
            if kept.is_empty() {
                self.kept.remove(&agent);
            }
        }
    }

    fn unflag(&mut self, id: u64, flag: u8) {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        if let Some(flags) = self.packets.get_mut(index) {
            *flags &= !flag;
        }
    }

    /// Sets a flag; returns the flags before.
    fn flag(&mut self, id: u64, flag: u8) -> u8 {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        self.packets.get_mut(index).map_or(0, |flags| {
            let before = *flags;
            *flags |= flag;
            before
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(ledger: &mut Ledger, sequence: u32) -> Probe {
        Probe {
            id: ledger.issue(),
            flow: 1,
            sequence,
            echo: false,
            about: sequence,
        }
    }

    #[test]
    fn a_packet_is_sent_once_and_then_not_refused() {
        let mut ledger = Ledger::default();
        let [one, two] = [0, 1].map(|sequence| probe(&mut ledger, sequence));
        assert_eq!(ledger.delivered(&one), Err(Misdeed::FromNowhere));
        assert_eq!(ledger.sent(0, &one), Ok(()));
        assert_eq!(ledger.sent(0, &one), Err(Misdeed::Twice));
        assert_eq!(ledger.refused(0, &one, false), Err(Misdeed::SentAndRefused));
        assert_eq!(ledger.refused(0, &two, false), Ok(()));
        assert_eq!(ledger.sent(0, &two), Err(Misdeed::SentAndRefused));
    }

    #[test]
    fn what_waits_in_the_interface_may_be_refused_if_it_does_not_leave_then() {
        let mut ledger = Ledger::default();
        let [one, two] = [0, 1].map(|sequence| probe(&mut ledger, sequence));
        for packet in [&one, &two] {
            assert_eq!(ledger.sent(0, packet), Ok(()));
            assert_eq!(ledger.refused(0, packet, true), Ok(()));
        }
        assert_eq!(ledger.delivered(&one), Err(Misdeed::SentAndRefused));
        assert_eq!(ledger.sent(0, &two), Err(Misdeed::SentAndRefused));
    }

    #[test]
    fn the_order_of_a_flow_is_kept() {
        let mut ledger = Ledger::default();
        let [one, two, three] = [0, 1, 2].map(|sequence| probe(&mut ledger, sequence));
        assert_eq!(ledger.sent(0, &one), Ok(()));
        assert_eq!(ledger.sent(0, &three), Ok(()));
        assert_eq!(ledger.sent(0, &two), Err(Misdeed::Overtook));
    }

    #[test]
    fn what_was_taken_out_with_its_peer_may_be_sent_again() {
        let mut ledger = Ledger::default();
        let [one, two] = [0, 1].map(|sequence| probe(&mut ledger, sequence));
        for _ in 0..2 {
            assert_eq!(ledger.sent(0, &one), Ok(()));
            assert_eq!(ledger.sent(0, &two), Ok(()));
            ledger.taken_out(&one);
            ledger.taken_out(&two);
        }
    }

    #[test]
    fn a_packet_that_is_kept_too_long_is_found() {
        let mut ledger = Ledger::default();
        let [one, two] = [0, 1].map(|sequence| probe(&mut ledger, sequence));
        ledger.caught(Timestamp::ZERO, 7, &one);
        ledger.caught(Timestamp::ZERO, 7, &two);
        let late = Timestamp::ZERO + KEPT_MAX + Duration::from_secs(1);
        assert_eq!(ledger.overdue(late), Some((7, one.id)));
        ledger.sent(7, &one).unwrap();
        assert_eq!(ledger.overdue(late), Some((7, two.id)));
        ledger.refused_silently(7);
        assert_eq!(ledger.overdue(late), None);
        ledger.forget(7);
        assert_eq!(ledger.overdue(late), None);
    }
}
