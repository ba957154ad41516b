//! Is anybody being served? Flows of packets, and how long each was without answer.

use std::collections::VecDeque;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::scenario::Flow;

/// A packet that is not confirmed after this time has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The same where NATs are in the way that only a relay, or only one of the two, gets through.
pub(super) const PATIENCE_WITH_NATS: Duration = Duration::from_secs(3);

/// A flow, and what became of it.
#[derive(Debug)]
pub(super) struct FlowState {
    pub(super) flow: Flow,
    /// A packet that is not confirmed after this time has failed.
    patience: Duration,
    /// Position of the next packet.
    pub(super) next: u32,
    /// Position of the next answer.
    pub(super) next_echo: u32,
    /// Packets neither confirmed nor failed.
    open: VecDeque<(u32, Timestamp)>,
    /// When the first packet was sent, if both ends knew nothing of each other then.
    cold_since: Option<Timestamp>,
    /// The last packet that failed, and when it was sent.
    pub(super) last_failed: Option<(u32, Timestamp)>,
    /// When a packet was last confirmed.
    pub(super) last_confirmed: Option<Timestamp>,
    /// When the first packet was sent since the last fault, if the hosts had not heard of each
    /// other since, and still had something to forget.
    pub(super) woken: Option<Timestamp>,
    /// When the first packet was sent after a NAT had forgotten the pair, and when the hosts had
    /// last heard of each other then.
    pub(super) reopened: Option<(Timestamp, Timestamp)>,
}

/// A packet that nobody confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// When it was sent.
    pub(super) sent: Timestamp,
    /// Whether it is more than bad luck.
    pub(super) counts: bool,
}

impl FlowState {
    pub(super) const fn new(flow: Flow, patience: Duration) -> Self {
        Self {
            flow,
            patience,
            next: 0,
            next_echo: 0,
            open: VecDeque::new(),
            cold_since: None,
            last_failed: None,
            last_confirmed: None,
            woken: None,
            reopened: None,
        }
    }

    /// Position of a new packet, sent now; `cold` says that neither end knows the other.
    pub(super) fn send(&mut self, now: Timestamp, cold: bool) -> u32 {
        let sequence = self.next;
        self.next += 1;
        self.open.push_back((sequence, now));
        if cold && self.cold_since.is_none() {
            self.cold_since = Some(now);
        }
        sequence
    }

    /// Packet `sequence` arrived, or its answer did. Returns when a cold pair began to talk, if
    /// this is the first that it heard.
    pub(super) fn confirm(&mut self, now: Timestamp, sequence: u32) -> Option<Timestamp> {
        let index = self
            .open
            .binary_search_by_key(&sequence, |(sequence, _)| *sequence)
            .ok()?;
        self.open.remove(index);
        self.last_confirmed = Some(now);
        self.cold_since.take()
    }

    /// Takes one packet out that failed. WireGuard itself may lose a packet that is under way
    /// while a session is replaced; the first packet of a flow, and two in a row, count.
    pub(super) fn fail(&mut self, now: Timestamp) -> Option<Failure> {
        let (sequence, sent) = *self.open.front()?;
        if now - sent < self.patience {
            return None;
        }
        self.open.pop_front();
        let again = self
            .last_failed
            .is_some_and(|(last, _)| last + 1 == sequence);
        self.last_failed = Some((sequence, sent));
        let counts = sequence == 0 || again;
        Some(Failure { sent, counts })
    }

    /// Forgets the packets under way: one of the hosts went down.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.cold_since = None;
    }

    /// Whether packets are still to come.
    pub(super) const fn goes_on(&self) -> bool {
        self.next < self.flow.packets
    }

    /// Time between two packets.
    pub(super) const fn interval(&self) -> Duration {
        Duration::from_micros(self.flow.interval_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scenario::Target;

    #[test]
    fn packets_fail_in_order_unless_confirmed() {
        let flow = Flow {
            from: 0,
            to: Target::Agent(1, 0),
            ipv6: false,
            echo: false,
            start_ms: 0,
            packets: 3,
            interval_us: 1,
        };
        let mut state = FlowState::new(flow, PATIENCE);
        for n in 0..3 {
            assert!(state.goes_on());
            assert_eq!(state.send(Timestamp(n), true), u32::try_from(n).unwrap());
        }
        assert!(!state.goes_on());
        assert_eq!(
            state.confirm(Timestamp(9), 1),
            Some(Timestamp(0)),
            "cold since the first"
        );
        assert_eq!(state.confirm(Timestamp(9), 1), None);
        assert_eq!(state.fail(Timestamp(9)), None);
        let late = Timestamp(2) + PATIENCE;
        let failure = |sent, counts| {
            Some(Failure {
                sent: Timestamp(sent),
                counts,
            })
        };
        assert_eq!(
            state.fail(late),
            failure(0, true),
            "the first packet of a flow"
        );
        assert_eq!(state.fail(late), failure(2, false), "one alone");
        assert_eq!(state.fail(late), None);
        state.send(Timestamp(3), true);
        assert_eq!(
            state.fail(late + PATIENCE),
            failure(3, true),
            "two in a row"
        );
    }
}
