//! How far a first packet has come: the stages of its way with their times, or where it stopped.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, PublicKey, Timestamp};
use serde::Serialize;

use super::Agent;
use super::event::DropReason;
use super::limits::TRACES;

/// Bytes that a handshake brings from the far end at most: an initiation and a keepalive.
const HANDSHAKE_BYTES: u64 = 148 + 32;

/// The stages on the way of a first packet, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its first packet was caught.
    Caught,
    /// A Map-Request went out.
    Asked,
    /// A Map-Reply came in.
    Answered,
    /// The far end knows us, as far as the answer tells: a Lispwire map server answers once the far
    /// end has acknowledged. With `reply_after = "send"`, or after `reply_hold_ms`, it was only told.
    FarEndReady,
    /// The data plane has the peer.
    Installed,
    /// The handshake was seen. The counters are looked at every few milliseconds.
    Handshake,
    /// Bytes beyond a handshake came back. Seen at the latest with the next regular look.
    FirstReply,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 7] = [
        Self::Caught,
        Self::Asked,
        Self::Answered,
        Self::FarEndReady,
        Self::Installed,
        Self::Handshake,
        Self::FirstReply,
    ];
}

/// A stage that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// Which.
    pub stage: Stage,
    /// How long after the first packet was caught, in microseconds.
    pub after_us: u64,
}

/// Where and why it went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The stage that was not reached.
    pub stage: Stage,
    /// Why.
    pub reason: DropReason,
    /// How long after the first packet was caught, in microseconds.
    pub after_us: u64,
}

/// The way of the first packet to a destination, as [`Agent::trace`] tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// The destination.
    pub eid: IpAddr,
    /// How long ago its first packet was caught, in milliseconds.
    pub age_ms: u64,
    /// Map-Requests sent for it.
    pub requests: u32,
    /// The mapping that answers for it.
    pub mapping: Option<EidPrefix>,
    /// The peer it goes to.
    pub key: Option<PublicKey>,
    /// The stages reached, in order. One may be missing: a far end that starts
    /// by itself needs no answer.
    pub stages: Vec<Reached>,
    /// Where it stopped; `None` while it is on its way, or has arrived.
    pub failed: Option<Failure>,
}

impl Trace {
    /// The stage that comes next; `None` after the last one, or when it stopped.
    #[must_use]
    pub fn waits_for(&self) -> Option<Stage> {
        let last = self.stages.last()?.stage;
        let next = Stage::ALL.into_iter().find(|stage| *stage > last);
        next.filter(|_| self.failed.is_none())
    }
}

/// What is kept of one way.
#[derive(Debug)]
struct Way {
    caught: Timestamp,
    requests: u32,
    mapping: Option<IpNet>,
    key: Option<PublicKey>,
    /// By stage, in order; the first one is `caught`.
    reached: BTreeMap<Stage, Timestamp>,
    failed: Option<(Stage, DropReason, Timestamp)>,
}

impl Way {
    fn reach(&mut self, stage: Stage, now: Timestamp) {
        self.reached.entry(stage).or_insert(now);
    }

    fn is_open(&self) -> bool {
        self.failed.is_none() && !self.reached.contains_key(&Stage::FirstReply)
    }
}

/// The ways of the latest first packets, by destination.
#[derive(Debug, Default)]
pub(super) struct Traces {
    ways: BTreeMap<IpAddr, Way>,
    /// Oldest first.
    order: VecDeque<IpAddr>,
}

impl Traces {
    /// The first packet to `dst` was caught.
    pub(super) fn caught(&mut self, now: Timestamp, dst: IpAddr) {
        let way = Way {
            caught: now,
            requests: 0,
            mapping: None,
            key: None,
            reached: BTreeMap::new(),
            failed: None,
        };
        if self.ways.insert(dst, way).is_some() {
            self.order.retain(|other| *other != dst);
        }
        self.order.push_back(dst);
        if self.order.len() > TRACES
            && let Some(oldest) = self.order.pop_front()
        {
            self.ways.remove(&oldest);
        }
    }

    /// A Map-Request for `dst` goes out.
    pub(super) fn asked(&mut self, now: Timestamp, dst: IpAddr) {
        if let Some(way) = self.ways.get_mut(&dst) {
            way.requests = way.requests.saturating_add(1);
            way.reach(Stage::Asked, now);
        }
    }

    /// `dst` was answered by a mapping.
    pub(super) fn answered(&mut self, now: Timestamp, dst: IpAddr) {
        if let Some(way) = self.ways.get_mut(&dst) {
            way.reach(Stage::Answered, now);
            way.reach(Stage::FarEndReady, now);
        }
    }

    /// The peer `key` of the mapping of `prefix` is in the data plane.
    pub(super) fn installed(&mut self, now: Timestamp, prefix: IpNet, key: PublicKey) {
        let range = prefix.network()..=prefix.broadcast();
        for (_, way) in self.ways.range_mut(range) {
            if way.is_open() {
                way.mapping = Some(prefix);
                way.key = Some(key);
                way.reach(Stage::Installed, now);
            }
        }
    }

    /// There was a handshake with a peer, and so much was received from it, as far as is known.
    pub(super) fn seen(&mut self, now: Timestamp, key: PublicKey, rx_bytes: u64) {
        for way in self.ways.values_mut() {
            if way.key == Some(key) && way.is_open() {
                way.reach(Stage::Handshake, now);
                if rx_bytes > HANDSHAKE_BYTES {
                    way.reach(Stage::FirstReply, now);
                }
            }
        }
    }

    /// Packets to `dst` were refused.
    pub(super) fn failed(&mut self, now: Timestamp, dst: IpAddr, reason: DropReason) {
        if let Some(way) = self.ways.get_mut(&dst)
            && way.is_open()
        {
            let last = way.reached.last_key_value().map(|(stage, _)| *stage);
            let last = last.unwrap_or(Stage::Caught);
            if let Some(stage) = Stage::ALL.into_iter().find(|stage| *stage > last) {
                way.failed = Some((stage, reason, now));
            }
        }
    }

    /// The same for everything within `prefix` that has not come as far as a handshake.
    pub(super) fn lost(&mut self, now: Timestamp, prefix: IpNet, reason: DropReason) {
        let range = prefix.network()..=prefix.broadcast();
        let waiting = self.ways.range(range);
        let waiting: Vec<IpAddr> = waiting
            .filter(|(_, way)| !way.reached.contains_key(&Stage::Handshake))
            .map(|(dst, _)| *dst)
            .collect();
        for dst in waiting {
            self.failed(now, dst, reason);
        }
    }
}

impl Agent {
    /// How far the latest first packet to `eid` has come; `None` when none was
    /// caught, or too many others since.
    #[must_use]
    pub fn trace(&self, now: Timestamp, eid: IpAddr) -> Option<Trace> {
        let way = self.traces.ways.get(&eid)?;
        let after_us = |at: Timestamp| whole(at - way.caught, Duration::from_micros(1));
        let caught = (Stage::Caught, way.caught);
        let reached = way.reached.iter().map(|(stage, at)| (*stage, *at));
        let stages = std::iter::once(caught).chain(reached);
        Some(Trace {
            eid,
            age_ms: whole(now - way.caught, Duration::from_millis(1)),
            requests: way.requests,
            mapping: way.mapping.map(|prefix| self.eid(prefix)),
            key: way.key,
            stages: stages
                .map(|(stage, at)| Reached {
                    stage,
                    after_us: after_us(at),
                })
                .collect(),
            failed: way.failed.map(|(stage, reason, at)| Failure {
                stage,
                reason,
                after_us: after_us(at),
            }),
        })
    }
}

/// How many whole `unit`s are in `span`.
pub(super) fn whole(span: Duration, unit: Duration) -> u64 {
    let units = span.as_nanos() / unit.as_nanos().max(1);
    u64::try_from(units).unwrap_or(u64::MAX)
}
