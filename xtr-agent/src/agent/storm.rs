//! Which destination is asked for next, when more are wanted than may be asked for?
//!
//! A scan of the overlay must neither flood the map servers nor keep others from being heard. So
//! Map-Requests about new destinations are rationed, and those that wait stand in lanes, by the
//! flow that wants them: a scan that comes from one socket fills one lane, and whoever is in
//! another one waits for two turns. Answers that lead somewhere earn more questions: a busy
//! gateway asks as fast as it is answered.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use lisp_proto::Timestamp;

use super::bucket::Bucket;
use super::limits::{
    ASKED_AGAIN_AT_ONCE, ASKED_AGAIN_PER_SECOND, ASKED_AT_ONCE, ASKED_PER_SECOND, EARNED,
    EARNED_FOR, LANES, WAITING,
};

/// What may be asked, and what waits to be asked.
#[derive(Debug)]
pub(super) struct Ration {
    bucket: Bucket,
    /// Retransmissions have a ration of their own: neither starves the other.
    again: Bucket,
    /// Questions that answers have earned.
    earned: u32,
    /// When there was last an answer that did.
    answered: Timestamp,
    lanes: Vec<VecDeque<IpAddr>>,
    /// The lane whose turn it is.
    turn: usize,
    waiting: usize,
}

impl Default for Ration {
    fn default() -> Self {
        Self {
            bucket: Bucket::new(ASKED_PER_SECOND, ASKED_AT_ONCE),
            again: Bucket::new(ASKED_AGAIN_PER_SECOND, ASKED_AGAIN_AT_ONCE),
            earned: 0,
            answered: Timestamp::ZERO,
            lanes: vec![VecDeque::new(); LANES],
            turn: 0,
            waiting: 0,
        }
    }
}

impl Ration {
    /// Whether a question may be asked now; if so, it counts.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        self.spend(now) || self.bucket.take(now)
    }

    /// The same for a question that was asked before.
    pub(super) fn take_again(&mut self, now: Timestamp) -> bool {
        self.spend(now) || self.again.take(now)
    }

    fn spend(&mut self, now: Timestamp) -> bool {
        if now - self.answered > EARNED_FOR {
            self.earned = 0;
        }
        let left = self.earned.checked_sub(1);
        self.earned = left.unwrap_or(0);
        left.is_some()
    }

    /// A question was not asked after all.
    pub(super) fn give_back(&mut self) {
        self.bucket.give_back();
    }

    /// When the next question may be asked.
    pub(super) fn next(&self, now: Timestamp) -> Timestamp {
        now + self.bucket.interval()
    }

    /// An answer has led somewhere.
    pub(super) fn earn(&mut self, now: Timestamp) {
        self.earned = (self.earned + 2).min(EARNED);
        self.answered = now;
    }

    /// Whether nobody waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The lane of a packet, if it may wait there, and who has to go for it: packets of one socket
    /// share a lane, and none takes room from a shorter one.
    pub(super) fn lane(
        &mut self,
        packet: &[u8],
        source: IpAddr,
    ) -> Option<(usize, Option<IpAddr>)> {
        let mut hasher = DefaultHasher::new();
        (source, flow(packet)).hash(&mut hasher);
        let lanes = u64::try_from(LANES).unwrap_or(1);
        let lane = usize::try_from(hasher.finish() % lanes).unwrap_or(0);
        if self.waiting < WAITING {
            return Some((lane, None));
        }
        let own = self.lanes.get(lane).map_or(0, VecDeque::len);
        let longest = self.lanes.iter_mut().max_by_key(|waiting| waiting.len());
        let longest = longest.filter(|waiting| waiting.len() > own + 1)?;
        let last = longest.pop_back()?;
        self.waiting -= 1;
        Some((lane, Some(last)))
    }

    /// Lets `dst` wait in `lane`.
    pub(super) fn wait(&mut self, lane: usize, dst: IpAddr) {
        if let Some(waiting) = self.lanes.get_mut(lane) {
            waiting.push_back(dst);
            self.waiting += 1;
        }
    }

    /// Takes out whose turn it is.
    pub(super) fn pop(&mut self) -> Option<IpAddr> {
        for _ in 0..LANES {
            self.turn = (self.turn + 1) % LANES;
            let waiting = self.lanes.get_mut(self.turn);
            if let Some(dst) = waiting.and_then(VecDeque::pop_front) {
                self.waiting -= 1;
                return Some(dst);
            }
        }
        None
    }
}

/// What packets of one socket have in common: protocol and source port, or the identifier of pings.
fn flow(packet: &[u8]) -> (u8, [u8; 2]) {
    let (protocol, header) = match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let words = packet.first().map_or(0, |first| first & 0x0f);
            (packet.get(9).copied(), usize::from(words) * 4)
        }
        _ => (packet.get(6).copied(), 40),
    };
    let protocol = protocol.unwrap_or(0);
    let at = match protocol {
        ICMP | ICMPV6 => header + 4,
        _ => header,
    };
    let port = packet.get(at..at + 2).and_then(|port| port.try_into().ok());
    (protocol, port.unwrap_or_default())
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
