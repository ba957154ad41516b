//! What an agent programs: a WireGuard interface, the routes to it, and the catcher of the rest.
//!
//! Changes take time and are carried out one after the other. While a route is being set, what
//! would take it waits until everything that was caught before has gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;
use xtr_agent::agent::{Change, ChangeId, PeerStats};

use super::wireguard::Interface;

/// How long a data plane waits for a handshake that it is to tell of.
const AWAITED: Duration = Duration::from_secs(30);

/// Something the agent asked its data plane to do.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// A change that is reported back.
    Apply(ChangeId, Change),
    /// Starts a handshake.
    Kick(PublicKey),
    /// Starts a handshake and tells when there is a session.
    AwaitHandshake(PublicKey),
    /// Reads counters.
    Stats(Vec<PublicKey>),
    /// Sends a held packet on.
    Reinject(Bytes),
    /// Lets packets take the route that was set.
    Resume,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Into the data interface.
    Data,
    /// To the agent.
    Miss,
    /// Out of the overlay.
    Elsewhere,
}

/// The data plane of one agent.
#[derive(Debug)]
pub(super) struct DataPlane {
    pub(super) interface: Interface,
    routes: BTreeSet<IpNet>,
    overlay: [IpNet; 2],
    tasks: VecDeque<Task>,
    /// Routes that are being set.
    paused: u32,
    /// Packets in front of the interface while it is paused.
    waiting: VecDeque<Bytes>,
    /// Packets that the agent has not read yet.
    missed: VecDeque<Bytes>,
    /// Counters that were read and are not delivered yet, oldest first.
    readings: VecDeque<Vec<PeerStats>>,
    /// Peers of which is told when they answer an initiation, and since when.
    awaited: BTreeMap<PublicKey, Timestamp>,
    /// Peers of which is told now.
    told: Vec<PublicKey>,
    /// Probability that a change is refused.
    pub(super) refusals: f64,
    /// How many times as slow as usual it is.
    pub(super) slowness: u32,
}

impl DataPlane {
    pub(super) const fn new(interface: Interface, overlay: [IpNet; 2]) -> Self {
        Self {
            interface,
            routes: BTreeSet::new(),
            overlay,
            tasks: VecDeque::new(),
            paused: 0,
            waiting: VecDeque::new(),
            missed: VecDeque::new(),
            readings: VecDeque::new(),
            awaited: BTreeMap::new(),
            told: Vec::new(),
            refusals: 0.0,
            slowness: 1,
        }
    }

    /// Which way packets to `dst` go.
    pub(super) fn way(&self, dst: IpAddr) -> Way {
        // A route past the agent is more specific than the one to it, or has the better metric.
        if self.routes.iter().any(|route| route.contains(&dst)) {
            return Way::Data;
        }
        if self.overlay.iter().any(|net| net.contains(&dst)) {
            return Way::Miss;
        }
        Way::Elsewhere
    }

    /// Adds a task; returns when the data plane gets to it, if it was idle.
    pub(super) fn push(&mut self, task: Task, rng: &mut StdRng) -> Option<Duration> {
        self.tasks.push_back(task);
        if self.tasks.len() > 1 {
            return None;
        }
        self.next_after(rng)
    }

    /// Puts a held packet in front of the last one that waits; gives it back if none does.
    pub(super) fn overtake(&mut self, packet: Bytes) -> Option<Bytes> {
        let last = self
            .tasks
            .iter()
            .rposition(|task| matches!(task, Task::Reinject(_)));
        match last {
            Some(index) if index > 0 => {
                self.tasks.insert(index, Task::Reinject(packet));
                None
            }
            Some(_) | None => Some(packet),
        }
    }

    /// Takes the next task out.
    pub(super) fn pop(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// How long the next task takes; `None` without one.
    pub(super) fn next_after(&self, rng: &mut StdRng) -> Option<Duration> {
        let micros = match self.tasks.front()? {
            Task::Apply(_, Change::SetPeer(_) | Change::RemovePeer(_)) => 20..400,
            Task::Apply(_, Change::AddRoute(_) | Change::RemoveRoute(_)) => 100..1_000,
            Task::Stats(_) => 10..100,
            Task::Kick(_) | Task::AwaitHandshake(_) | Task::Reinject(_) | Task::Resume => 1..10,
        };
        let micros = rng.random_range(micros) * u64::from(self.slowness);
        Some(Duration::from_micros(micros))
    }

    /// Keeps counters that were read; returns when they are there.
    pub(super) fn read(&mut self, stats: Vec<PeerStats>, rng: &mut StdRng) -> Duration {
        self.readings.push_back(stats);
        Duration::from_micros(rng.random_range(10..100) * u64::from(self.slowness))
    }

    /// Takes the oldest counters out that are not delivered yet.
    pub(super) fn take_reading(&mut self) -> Vec<PeerStats> {
        self.readings.pop_front().unwrap_or_default()
    }

    /// Tells when there is a session with a peer that is there: at once, or when it answers an
    /// initiation of ours, as gotatun does; of one that it starts itself nothing is told.
    pub(super) fn await_session(&mut self, key: PublicKey, now: Timestamp) {
        if self.interface.has_session(&key, now) {
            self.told.push(key);
        } else if self.interface.stats(&key).is_some() {
            self.awaited.insert(key, now);
        }
    }

    /// Takes out those of the awaited peers with whom there is a session.
    pub(super) fn take_told(&mut self, now: Timestamp) -> Vec<PublicKey> {
        let mut told = std::mem::take(&mut self.told);
        let interface = &self.interface;
        let answers = |key: &PublicKey, since: &mut Timestamp| {
            interface.answered(key).is_some_and(|at| at >= *since)
        };
        told.extend(self.awaited.extract_if(.., answers).map(|(key, _)| key));
        self.awaited.retain(|_, since| now - *since < AWAITED);
        told
    }

    /// Removes a peer; what was read of it is about a session that is gone.
    pub(super) fn forget_readings(&mut self, key: &PublicKey) {
        self.awaited.remove(key);
        self.told.retain(|told| told != key);
        for stats in &mut self.readings {
            stats.retain(|peer| peer.key != *key);
        }
    }

    /// Adds a route; the interface is paused until [`Self::resume`].
    pub(super) fn add_route(&mut self, prefix: IpNet) {
        self.routes.insert(prefix);
        self.paused += 1;
    }

    /// Removes a route.
    pub(super) fn remove_route(&mut self, prefix: &IpNet) {
        self.routes.remove(prefix);
    }

    /// Ends the pause that a new route brought; returns the packets that waited for that.
    pub(super) fn resume(&mut self) -> VecDeque<Bytes> {
        self.paused = self.paused.saturating_sub(1);
        if self.paused > 0 {
            return VecDeque::new();
        }
        std::mem::take(&mut self.waiting)
    }

    /// Keeps a packet back while the interface is paused; gives it back otherwise.
    pub(super) fn wait(&mut self, packet: Bytes) -> Option<Bytes> {
        if self.paused == 0 {
            return Some(packet);
        }
        self.waiting.push_back(packet);
        None
    }

    /// Keeps a packet for the agent; true when the agent must be told of it.
    pub(super) fn miss(&mut self, packet: Bytes) -> bool {
        self.missed.push_back(packet);
        self.missed.len() == 1
    }

    /// Takes the packets for the agent out.
    pub(super) fn take_missed(&mut self) -> VecDeque<Bytes> {
        std::mem::take(&mut self.missed)
    }

    /// How many routes there are.
    pub(super) fn routes(&self) -> usize {
        self.routes.len()
    }
}
