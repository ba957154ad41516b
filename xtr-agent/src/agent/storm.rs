//! Which destination is asked for next, when more are wanted than may be asked for?
//!
//! A scan of the overlay must neither flood the map servers nor keep others from being heard. So
//! Map-Requests about new destinations are rationed. Those that wait stand in lanes: each source
//! address has some of them, and in those its flows. Sources take turns, and so do the flows of
//! each: a scan by one host behind a gateway delays no other host by more than a turn, and a scan
//! that comes from one socket fills one lane.
//!
//! A scan with a new socket for every packet fills all lanes of its source, and nothing in one of
//! its packets tells it from anybody's first one. But who wants to get through tries again, as TCP,
//! ping and resolvers do, and a scan goes on to the next address. So what the same flow wants once
//! more within a second or two ([`Sightings`]) goes before all that is wanted for the first time,
//! whether the first packet found room to wait or not. (A scan whose every socket tries again is as
//! many clients as it has sockets, and is served like them.) A packet that finds no room goes
//! without an ICMP error, which would end a TCP connection that is about to try again, and costs
//! next to nothing.
//!
//! Answers that lead somewhere earn more questions: a busy gateway asks as fast as it is answered.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use lisp_proto::Timestamp;

use super::bucket::Bucket;
use super::limits::{
    ASKED_AGAIN_AT_ONCE, ASKED_AGAIN_PER_SECOND, ASKED_AT_ONCE, ASKED_PER_SECOND, EARNED,
    EARNED_FOR, IN_FRONT, LANES, SOURCES, WAITING,
};
use super::sightings::Sightings;

/// Where a destination waits to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before all lanes.
    Front,
    /// At the end of this lane of this source.
    Lane(usize, usize),
}

/// Those who wait on behalf of source addresses that have the same hash.
#[derive(Clone, Debug)]
struct Lanes {
    flows: Vec<VecDeque<IpAddr>>,
    /// The lane whose turn it was.
    turn: usize,
    /// How many wait in all lanes.
    waiting: usize,
}

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
    front: VecDeque<IpAddr>,
    sources: Vec<Lanes>,
    /// The source whose turn it was.
    turn: usize,
    /// How many wait, all together.
    waiting: usize,
    sightings: Sightings,
}

impl Default for Ration {
    fn default() -> Self {
        let lanes = Lanes {
            flows: vec![VecDeque::new(); LANES],
            turn: 0,
            waiting: 0,
        };
        Self {
            bucket: Bucket::new(ASKED_PER_SECOND, ASKED_AT_ONCE),
            again: Bucket::new(ASKED_AGAIN_PER_SECOND, ASKED_AGAIN_AT_ONCE),
            earned: 0,
            answered: Timestamp::ZERO,
            front: VecDeque::new(),
            sources: vec![lanes; SOURCES],
            turn: 0,
            waiting: 0,
            sightings: Sightings::default(),
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

    /// No more is wanted than may be asked for.
    pub(super) fn calm(&mut self, now: Timestamp) {
        self.sightings.rest(now);
    }

    /// Where the destination of a packet may wait, and who has to go for it: none takes room from a
    /// source or a lane that has no more than its own.
    pub(super) fn place(
        &mut self,
        now: Timestamp,
        packet: &[u8],
        source: IpAddr,
        dst: IpAddr,
    ) -> Option<(Place, Option<IpAddr>)> {
        if self.is_wanted_again(now, packet, source, dst) {
            let last = self.make_room(None);
            return Some((Place::Front, last));
        }
        let at = (share(source, SOURCES), share((source, flow(packet)), LANES));
        let last = self.make_room(Some(at));
        let has_room = last.is_some() || self.waiting < WAITING;
        has_room.then_some((Place::Lane(at.0, at.1), last))
    }

    /// Whether the flow of a packet wanted the same before, a moment ago, and may go to the front.
    pub(super) fn is_wanted_again(
        &mut self,
        now: Timestamp,
        packet: &[u8],
        source: IpAddr,
        dst: IpAddr,
    ) -> bool {
        let again = self.sightings.again(now, hash((source, flow(packet), dst)));
        again && self.front.len() < IN_FRONT
    }

    /// If all places are taken, takes somebody out of the longest lane of the source that has most,
    /// if that has more than the one `at` which somebody wants to wait.
    fn make_room(&mut self, at: Option<(usize, usize)>) -> Option<IpAddr> {
        if self.waiting < WAITING {
            return None;
        }
        let sources = self.sources.iter().enumerate();
        let (most, lanes) = sources.max_by_key(|(_, lanes)| lanes.waiting)?;
        let flows = lanes.flows.iter().enumerate();
        let (longest, lane) = flows.max_by_key(|(_, lane)| lane.len())?;
        let (length, own) = match at {
            None => (lane.len(), 0),
            Some((source, flow)) if source == most => {
                let own = lanes.flows.get(flow);
                (lane.len(), own.map_or(0, VecDeque::len) + 1)
            }
            Some((source, _)) => {
                let own = self.sources.get(source);
                (lanes.waiting, own.map_or(0, |lanes| lanes.waiting) + 1)
            }
        };
        if length <= own {
            return None;
        }
        let lanes = self.sources.get_mut(most)?;
        let last = lanes.flows.get_mut(longest)?.pop_back()?;
        lanes.waiting -= 1;
        self.waiting -= 1;
        Some(last)
    }

    /// Lets `dst` wait there.
    pub(super) fn wait(&mut self, place: Place, dst: IpAddr) {
        match place {
            Place::Front => self.front.push_back(dst),
            Place::Lane(source, flow) => {
                let Some(lanes) = self.sources.get_mut(source) else {
                    return;
                };
                let Some(lane) = lanes.flows.get_mut(flow) else {
                    return;
                };
                lane.push_back(dst);
                lanes.waiting += 1;
            }
        }
        self.waiting += 1;
    }

    /// Takes out whose turn it is.
    pub(super) fn pop(&mut self) -> Option<IpAddr> {
        let mut next = self.front.pop_front();
        for _ in 0..SOURCES {
            if next.is_some() {
                break;
            }
            self.turn = (self.turn + 1) % SOURCES;
            next = self.sources.get_mut(self.turn).and_then(Lanes::pop);
        }
        self.waiting = self.waiting.saturating_sub(usize::from(next.is_some()));
        next
    }
}

impl Lanes {
    fn pop(&mut self) -> Option<IpAddr> {
        let next = (0..LANES).find_map(|_| {
            self.turn = (self.turn + 1) % LANES;
            self.flows.get_mut(self.turn)?.pop_front()
        });
        self.waiting -= usize::from(next.is_some());
        next
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Which of `shares` falls to `of`.
fn share(of: impl Hash, shares: usize) -> usize {
    let shares = u64::try_from(shares).unwrap_or(1);
    usize::try_from(hash(of) % shares).unwrap_or(0)
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
