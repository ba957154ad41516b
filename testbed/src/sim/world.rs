//! The whole network: every host, everything under way, and the loop that makes time pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};

use super::agent_host::AgentHost;
use super::carried::Carried;
use super::checks::Bounds;
use super::clock::Queue;
use super::invariant::{Invariant, Violation};
use super::ledger::Ledger;
use super::net::{Host, Network, Passage};
use super::sabotage::Sabotage;
use super::scenario::{Scenario, millis};
use super::seeds::{Streams, dice, stream};
use super::server_host::ServerHost;
use super::stats::Stats;
use super::subscribed::Wanted;
use super::trace::Trace;
use super::traffic::FlowState;
use super::uplinks::Second;
use super::wireguard::Wire;

/// Time between two looks at everything.
const INSPECTION: Duration = Duration::from_secs(1);

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A datagram arrives, if somebody is there.
    Arrive(Box<Datagram>),
    /// An agent, or one of its interfaces, has something to do.
    AgentTimer(u32),
    /// A map server, or its interface, has something to do.
    ServerTimer(u32),
    /// The data plane of an agent has carried out a task. The second number tells the lives of an
    /// agent apart.
    DataPlane(u32, u32),
    /// Counters that an agent wanted are there.
    Counted(u32, u32),
    /// The data plane of an agent tells of a session.
    ShakenHands(u32, u32, PublicKey),
    /// An agent reads the packets that were caught.
    Missed(u32, u32),
    /// An agent hears of its new address.
    Renumbered(u32, u32),
    /// An agent that was told to stop has had time to say goodbye.
    Gone(u32, u32),
    /// An agent starts.
    AgentStarts(u32),
    /// A map server starts.
    ServerStarts(u32),
    /// The next packet of a flow is due.
    Packet(u32),
    /// An operator moves clients.
    Operator(u32),
    /// A push that was kept back leaves.
    LatePush(u32, SocketAddr, Bytes),
    /// A fault begins.
    FaultBegins(usize),
    /// A fault ends.
    FaultEnds(usize),
    /// All invariants that are not checked on the way are checked.
    Inspect,
}

/// A UDP datagram of the underlay.
#[derive(Clone, Debug, Hash)]
pub(super) struct Datagram {
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
    /// The NAT behind which it stays.
    pub(super) inside: Option<u32>,
    pub(super) wire: Wire,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) bounds: Bounds,
    pub(super) queue: Queue<Event>,
    pub(super) streams: Streams,
    pub(super) network: Network,
    pub(super) agents: Vec<AgentHost>,
    pub(super) servers: Vec<ServerHost>,
    pub(super) flows: Vec<FlowState>,
    pub(super) ledger: Ledger,
    pub(super) stats: Stats,
    pub(super) trace: Trace,
    /// Whose every key is.
    pub(super) keys: BTreeMap<PublicKey, u32>,
    /// What the owners of EID-prefixes have registered for them.
    pub(super) registered: BTreeSet<(PublicKey, IpNet)>,
    /// Flows by the agents at their ends.
    pub(super) flows_of: BTreeMap<u32, Vec<u32>>,
    /// When agents last heard of each other.
    pub(super) met: BTreeMap<(u32, u32), Timestamp>,
    /// Agents and the nonces with which they have subscribed, for a bug on purpose.
    pub(super) subscribed_with: BTreeSet<(u32, u64)>,
    /// What subscribers shall have, and what of it was missing at the last look.
    pub(super) wanted: Vec<Wanted>,
    pub(super) missed: BTreeSet<Wanted>,
    /// Proxies and clients that have left them, and could reach them still at the last look.
    pub(super) strays: BTreeSet<(u32, u32)>,
    /// When a client last knew an address of the proxy itself: proxy and client.
    pub(super) far_ends: BTreeMap<(u32, u32), Timestamp>,
    /// What relays have passed on.
    pub(super) carried: Carried,
    /// When pairs have got a relay.
    pub(super) relayed: BTreeMap<(u32, u32), Vec<Timestamp>>,
    /// Datagrams that attackers have seen.
    pub(super) overheard: VecDeque<Bytes>,
    pub(super) violation: Option<Violation>,
    /// Agents whose data plane has refused a change: what follows there is its fault.
    pub(super) refusers: BTreeSet<u32>,
}

impl World {
    /// Builds the world of `scenario`; the last `lines` events are kept in words.
    pub(super) fn new(scenario: Scenario, lines: usize) -> Self {
        let mut world = Self {
            bounds: Bounds::new(&scenario),
            queue: Queue::new(),
            streams: Streams::new(scenario.seed),
            network: Network::new(scenario.ipv6_underlay),
            agents: Vec::new(),
            servers: Vec::new(),
            flows: scenario
                .flows
                .iter()
                .map(|flow| FlowState::new(*flow, scenario.patience(flow)))
                .collect(),
            ledger: Ledger::default(),
            stats: Stats::default(),
            trace: Trace::new(lines),
            keys: BTreeMap::new(),
            registered: BTreeSet::new(),
            flows_of: BTreeMap::new(),
            met: BTreeMap::new(),
            subscribed_with: BTreeSet::new(),
            wanted: scenario.wanted(),
            missed: BTreeSet::new(),
            strays: BTreeSet::new(),
            far_ends: BTreeMap::new(),
            carried: Carried::default(),
            relayed: BTreeMap::new(),
            overheard: VecDeque::new(),
            violation: None,
            refusers: BTreeSet::new(),
            scenario,
        };
        if world.sabotaged(Sabotage::Dice) {
            world.streams.hosts = stream(dice(), "hosts");
        }
        world.populate();
        world
    }

    fn populate(&mut self) {
        for number in 0..self.scenario.servers {
            let rloc = self
                .network
                .attach(Host::Server(number), &mut self.streams.network);
            self.servers.push(ServerHost::new(rloc));
            self.queue.at(Timestamp::ZERO, Event::ServerStarts(number));
        }
        for number in 0..self.scenario.agents {
            let rng = &mut self.streams.network;
            let rloc = if let Some(router) = self.scenario.router_of(number) {
                self.network.attach_inside(number, router, rng)
            } else if self.scenario.behind_nat(number) {
                self.network.attach_behind_nat(number, rng)
            } else {
                self.network.attach(Host::Agent(number), rng)
            };
            let has_second = self.scenario.two_uplinks.contains(&number);
            let second = has_second.then(|| self.network.renumber(Host::Agent(number), None));
            self.agents
                .push(AgentHost::new(rloc, second.map(Second::new)));
            if self.scenario.has(number) {
                self.queue
                    .at(self.scenario.starts(number), Event::AgentStarts(number));
            }
        }
        for (number, flow) in (0..).zip(&self.scenario.flows) {
            self.queue.at(millis(flow.start_ms), Event::Packet(number));
        }
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            self.queue
                .at(millis(fault.at_ms), Event::FaultBegins(number));
        }
        self.plan_moves();
        self.index_flows();
        self.queue.after(INSPECTION, Event::Inspect);
    }

    /// Lets the next event happen; false when the run is over.
    pub(super) fn step(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some(event) = self.queue.pop(self.scenario.end()) else {
            return false;
        };
        self.stats.events += 1;
        self.record(&event);
        self.happen(event);
        true
    }

    /// The present.
    pub(super) const fn now(&self) -> Timestamp {
        self.queue.now()
    }

    /// Notes that `invariant` is broken; the first one counts.
    pub(super) fn broken(&mut self, invariant: Invariant, detail: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let at = self.now();
            let violation = Violation {
                invariant,
                at,
                detail: detail(),
            };
            self.trace.say(at, || format!("BROKEN {violation}"));
            self.violation = Some(violation);
        }
    }

    /// Whether this bug was asked for.
    pub(super) fn sabotaged(&self, sabotage: Sabotage) -> bool {
        self.scenario.sabotage == Some(sabotage)
    }

    /// Sends a datagram of the underlay on its way.
    pub(super) fn transmit(&mut self, from: Host, src: SocketAddr, dst: SocketAddr, wire: Wire) {
        let now = self.now();
        let src = self.source_of(from, src, dst);
        if matches!(wire, Wire::Init { .. }) {
            self.stats.initiations += 1;
        }
        if !matches!(wire, Wire::Data { .. }) {
            self.trace
                .say(now, || format!("{from:?} {} {dst}", wire.verb()));
        }
        let network = &mut self.network;
        let passage = network.send(now, from, src, dst, &mut self.streams.network);
        let Passage {
            src,
            inside,
            copies,
        } = passage;
        let datagram = Datagram {
            src,
            dst,
            inside,
            wire,
        };
        match copies {
            [Some(first), Some(second)] => {
                let again = datagram.clone();
                self.queue.after(first, Event::Arrive(Box::new(datagram)));
                self.queue.after(second, Event::Arrive(Box::new(again)));
            }
            [Some(delay), None] | [None, Some(delay)] => {
                self.queue.after(delay, Event::Arrive(Box::new(datagram)));
            }
            [None, None] => {}
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(datagram) => self.arrive(*datagram),
            Event::AgentTimer(agent) => self.agent_timer(agent),
            Event::ServerTimer(server) => self.server_timer(server),
            Event::DataPlane(agent, life) => self.data_plane(agent, life),
            Event::Counted(agent, life) => self.counted(agent, life),
            Event::ShakenHands(agent, life, key) => self.shaken_hands(agent, life, key),
            Event::Missed(agent, life) => self.missed(agent, life),
            Event::Renumbered(agent, life) => self.renumbered(agent, life),
            Event::Gone(agent, life) => self.agent_gone(agent, life),
            Event::AgentStarts(agent) => self.start_agent(agent),
            Event::ServerStarts(server) => self.start_server(server),
            Event::Packet(flow) => self.packet_due(flow),
            Event::Operator(number) => self.operate(number),
            Event::LatePush(server, dst, bytes) => self.send_to_agent(server, dst, bytes),
            Event::FaultBegins(fault) => self.fault_begins(fault),
            Event::FaultEnds(fault) => self.fault_ends(fault),
            Event::Inspect => {
                self.keep_disks();
                self.keep_caches();
                self.inspect();
                self.queue.after(INSPECTION, Event::Inspect);
            }
        }
    }

    fn arrive(&mut self, datagram: Datagram) {
        let Datagram {
            src,
            dst,
            inside,
            wire,
        } = datagram;
        match self.network.receiver(self.queue.now(), src, dst, inside) {
            Some((Host::Agent(agent), port)) => {
                let host = self.agents.get_mut(agent as usize);
                if let Some(second) = host.and_then(|host| host.second.as_mut()) {
                    second.is_reached(src.ip(), dst.ip());
                }
                self.agent_receives(agent, port, src, wire);
            }
            Some((Host::Server(server), _)) => self.server_receives(server, src, wire),
            None => {}
        }
    }

    /// Writes an event into the trace.
    fn record(&mut self, event: &Event) {
        let now = self.now();
        let digest = self.trace.digest();
        digest.write_u64(now.0);
        std::mem::discriminant(event).hash(digest);
        match event {
            Event::Arrive(datagram) => datagram.hash(digest),
            Event::AgentTimer(number)
            | Event::ServerTimer(number)
            | Event::DataPlane(number, _)
            | Event::Counted(number, _)
            | Event::ShakenHands(number, ..)
            | Event::Missed(number, _)
            | Event::Renumbered(number, _)
            | Event::Gone(number, _)
            | Event::AgentStarts(number)
            | Event::ServerStarts(number)
            | Event::Packet(number)
            | Event::Operator(number)
            | Event::LatePush(number, ..) => digest.write_u32(*number),
            Event::FaultBegins(number) | Event::FaultEnds(number) => number.hash(digest),
            Event::Inspect => {}
        }
    }

    fn index_flows(&mut self) {
        for (number, flow) in (0..).zip(&self.scenario.flows) {
            self.flows_of.entry(flow.from).or_default().push(number);
            if let super::scenario::Target::Agent(to, _) = flow.to {
                self.flows_of.entry(to).or_default().push(number);
            }
        }
    }
}
