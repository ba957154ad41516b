//! The agent as a pure state machine: inputs and a clock in, actions out.
//!
//! `mod.rs` says what goes in and sends every input to the file that answers
//! it: `miss` for captured packets, `control` for datagrams from the map
//! servers, `install` for the way of a mapping into the data plane.

mod action;
mod allowed;
mod anew;
mod answer;
mod apart;
mod armed;
mod asked;
mod bucket;
mod carry;
mod change_servers;
mod choice;
mod config;
mod control;
mod doubt;
mod echoes;
mod event;
mod failover;
mod gap;
mod guard;
mod handover;
mod handshake;
mod hold;
mod idle;
mod inspect;
mod install;
mod ip_header;
pub mod limits;
mod liveness;
mod locators;
mod map_cache;
mod miss;
mod multihomed;
mod nat;
mod notify;
mod peers;
mod reconfigure;
mod refresh;
mod refusal;
mod registration;
mod remove;
mod replay;
mod routes;
mod server;
mod sightings;
mod snapshot;
mod status;
mod storm;
mod subscribe;
mod trace;
mod upkeep;
mod watch;
mod witnesses;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Connections, Deadlines, EidPrefix, Nonce, PublicKey, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use action::{Action, Actions, Change, ChangeId};
pub use carry::{Carry, Translates};
pub use config::{Config, MapServer, Uplink};
pub use event::{Cause, DropReason, Event};
pub use inspect::Sizes;
pub use map_cache::{Chosen, State};
pub use nat::Sighting;
pub use peers::PeerSpec;
pub use reconfigure::Adjustable;
pub use snapshot::{SavedLocator, SavedLocators, SavedMapping, Snapshot};
pub use status::{
    LocatorStatus, MappingState, MappingStatus, NatStatus, PeerStatus, ServerStatus, Status,
};
pub use trace::{Failure, Reached, Stage, Trace};

use apart::Apart;
use armed::Handovers;
use bucket::Bucket;
use carry::Carrying;
use failover::Failover;
use gap::Gaps;
use hold::HoldBudget;
use ip_header::Unreachable;
use liveness::Liveness;
use locators::Locators;
use map_cache::{MapCache, Resolver};
use nat::Nat;
use peers::Peers;
use refusal::Refusals;
use remove::{Object, Repairs};
use routes::Routes;
use server::Server;
use storm::Ration;
use subscribe::Subscriptions;
use trace::Traces;
use watch::Watches;

/// What the data plane says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub key: PublicKey,
    /// Where packets to it go at present.
    pub endpoint: Option<SocketAddr>,
    /// Whether there was a handshake since it was added.
    pub handshake_seen: bool,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// When this was so, at the earliest.
    pub read_at: Timestamp,
}

/// Everything that can happen to the agent.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The process starts.
    Start,
    /// A UDP datagram on the control socket.
    Datagram {
        /// Its sender, as the control socket saw it.
        src: SocketAddr,
        /// Its payload.
        bytes: &'a [u8],
    },
    /// An IP packet that no route took past the agent.
    TunPacket(&'a [u8]),
    /// The data plane carried out a change, or did not.
    Applied {
        /// Which.
        id: ChangeId,
        /// How it went.
        ok: bool,
    },
    /// The data plane did not take this packet of an [`Action::Reinject`].
    NotSent(&'a [u8]),
    /// The answer to [`Action::ReadPeerStats`].
    PeerStats(&'a [PeerStats]),
    /// There is a session with a peer of an [`Action::AwaitHandshake`].
    Handshake(PublicKey),
    /// An echo of [`Action::Echo`] was answered.
    EchoAnswered {
        /// By whom.
        from: IpAddr,
        /// Which.
        number: u16,
    },
    /// The echo of [`Action::Echo`] with this number could not be sent.
    EchoNotSent(u16),
    /// Where some packets went between [`Action::Listen`] and [`Action::Hear`]; what came may be
    /// among them.
    Heard(&'a [IpAddr]),
    /// The connections of this client, of a [`Carry::Fetch`], are here, or cannot be had.
    Fetched(IpNet),
    /// The connections of a [`Carry::Release`] are gone.
    Released {
        /// Whose they were.
        client: IpNet,
        /// What became of them, if that is known.
        connections: Option<Connections>,
    },
    /// The addresses of this host changed.
    LocalRlocs(&'a [Uplink]),
    /// Without a control tunnel: the map servers answer to this address of ours from now on.
    AnswersTo(IpAddr),
    /// The map servers are reached by another uplink from now on: whether they answer there shows what is
    /// sent.
    OtherWay,
    /// Whether those who share our prefixes are to take our clients over.
    Drain(bool),
    /// A deadline passed.
    Tick,
    /// The process is about to stop: withdraw and tidy up.
    Shutdown,
}

/// What waits for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next Map-Register to the map server with this index.
    Register(usize),
    /// The next of those who wait to be asked for.
    Ask,
    /// The next try for this destination.
    Request(IpAddr),
    /// The mapping wants a look: it expires, or its far end is late.
    Entry(IpNet),
    /// The mapping in use should be asked for again.
    Refresh(IpNet),
    /// The next try to subscribe at the map server with this index.
    Subscribe(usize, IpNet),
    /// The next try of what the data plane refused.
    Repair(Object),
    /// Time to start a handshake with a key that has taken the place of another one.
    Kick(PublicKey),
    /// The new peer of this mapping has had time to shake hands.
    Handover(IpNet),
    /// Time to look for first handshakes.
    Handshakes,
    /// Time to look for peers that fell silent.
    Liveness,
    /// Time to look at the proxies in use.
    Guards,
    /// Time to look at what comes of mappings that move.
    Gaps,
    /// Connections that come or go take too long.
    Carry,
    /// The next question where we are seen.
    Info,
    /// Time that the far end of this prefix has shaken hands.
    Apart(IpNet),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    rng: StdRng,
    register_nonce: Nonce,
    /// In the order of the configuration.
    servers: Vec<Server>,
    cache: MapCache,
    resolver: Resolver,
    budget: HoldBudget,
    ration: Ration,
    refusals: Refusals,
    peers: Peers,
    routes: Routes,
    repairs: Repairs,
    changes: BTreeMap<ChangeId, install::Pending>,
    next_change: u64,
    acks: BTreeMap<(usize, Nonce), notify::PendingAck>,
    subscriptions: Subscriptions,
    /// What others may ask of us.
    questions: Bucket,
    /// What may be asked again of what was refused.
    second_questions: Bucket,
    /// Peers whose first handshake is being looked for.
    watches: Watches,
    /// Mappings that are to move to another peer.
    handovers: Handovers,
    /// Proxies in use that others could take the place of.
    failover: Failover,
    /// Far ends that can be reached in several ways.
    locators: Locators,
    /// What comes of mappings that move.
    gaps: Gaps,
    /// Clients whose connections come or go.
    carrying: Carrying,
    /// Mappings that await a handshake, or did.
    opening: BTreeSet<IpNet>,
    /// Mappings whose use is being looked at before they run out.
    refresh_checks: BTreeSet<IpNet>,
    /// Mappings of an earlier life that no map server was asked for yet.
    restored: Vec<IpNet>,
    traces: Traces,
    liveness: Liveness,
    nat: Nat,
    apart: Apart,
    /// The peer that was looked at last, in turn.
    looked_at: Option<PublicKey>,
    /// Peers that go if the next look finds them unused.
    evicting: BTreeSet<PublicKey>,
    deadlines: Deadlines<Timer>,
    /// Whether our clients are to go to others.
    draining: bool,
    /// Others are about to take the place of the map servers.
    leaving: bool,
    stopping: bool,
}

impl Agent {
    /// An agent that has done nothing yet; feed it [`Input::Start`] first.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let servers = config.map_servers.iter();
        Self {
            rng: StdRng::from_seed(seed),
            register_nonce: config.first_nonce,
            servers: servers.map(|_| Server::default()).collect(),
            cache: MapCache::default(),
            resolver: Resolver::default(),
            budget: HoldBudget::default(),
            ration: Ration::default(),
            refusals: Refusals::default(),
            peers: Peers::default(),
            routes: Routes::default(),
            repairs: Repairs::default(),
            changes: BTreeMap::new(),
            next_change: 0,
            acks: BTreeMap::new(),
            subscriptions: Subscriptions::default(),
            questions: Bucket::per_second(limits::QUESTIONS_PER_SECOND),
            second_questions: Bucket::per_second(limits::SECOND_QUESTIONS_PER_SECOND),
            watches: Watches::default(),
            handovers: Handovers::default(),
            failover: Failover::default(),
            locators: Locators::default(),
            gaps: Gaps::default(),
            carrying: Carrying::default(),
            opening: BTreeSet::new(),
            refresh_checks: BTreeSet::new(),
            restored: Vec::new(),
            traces: Traces::default(),
            liveness: Liveness::default(),
            nat: Nat::default(),
            apart: Apart::default(),
            looked_at: None,
            evicting: BTreeSet::new(),
            deadlines: Deadlines::default(),
            draining: false,
            leaving: false,
            stopping: false,
            config,
        }
    }

    /// Takes one input and appends what is to be done about it.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>, actions: &mut Actions) {
        self.refusals.at(now);
        match input {
            Input::Start => self.register_all(now, actions),
            Input::Datagram { src, bytes } => self.datagram(now, src, bytes, actions),
            Input::TunPacket(packet) => self.tun_packet(now, packet, actions),
            Input::Applied { id, ok } => self.applied(now, id, ok, actions),
            Input::NotSent(packet) => {
                let (why, reason) = (Unreachable::Host, DropReason::NotTaken);
                self.refusals.refuse(packet, why, reason, actions);
            }
            Input::PeerStats(stats) => self.peer_stats(now, stats, actions),
            Input::Handshake(key) => self.handshake_told(now, key, actions),
            Input::EchoAnswered { from, number } => {
                self.echo_answered(now, from, number, actions);
            }
            Input::EchoNotSent(number) => self.echo_not_sent(number),
            Input::Heard(went) => self.heard(went),
            Input::Fetched(client) => self.fetched(&client, actions),
            Input::Released {
                client,
                connections,
            } => self.released(client, connections, actions),
            Input::LocalRlocs(rlocs) => self.local_rlocs(now, rlocs, actions),
            Input::AnswersTo(own) => self.config.control_address = own,
            Input::OtherWay => self.other_way(now, actions),
            Input::Drain(draining) => self.drain(now, draining, actions),
            Input::Tick => {}
            Input::Shutdown => self.shut_down(now, actions),
        }
        while let Some(timer) = self.deadlines.pop_due(now) {
            self.timer(now, timer, actions);
        }
    }

    /// When [`Input::Tick`] is wanted next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.next()
    }

    /// The first nonce that no Map-Register has used yet.
    #[must_use]
    pub fn register_nonce(&self) -> Nonce {
        self.register_nonce
    }

    /// Every peer that should be in the data plane.
    pub fn peers(&self) -> impl Iterator<Item = PeerSpec> + '_ {
        self.peers.iter()
    }

    /// Every mapping in the map-cache: prefix, state, peer, expiry.
    pub fn map_cache(
        &self,
    ) -> impl Iterator<Item = (EidPrefix, State, Option<Chosen>, Timestamp)> + '_ {
        self.cache.iter().map(|(prefix, entry)| {
            let eid = EidPrefix::new(self.config.iid, prefix);
            (eid, entry.state, entry.chosen, entry.expires)
        })
    }

    /// When the map server at `index` last acknowledged a registration.
    #[must_use]
    pub fn acknowledged(&self, index: usize) -> Option<Timestamp> {
        self.servers.get(index)?.registration.acknowledged()
    }

    /// Whether an agent that was told to stop, or to leave its map servers, has nothing more to wait
    /// for: all that it withdrew is acknowledged.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let withdrawn = |server: &Server| !server.registration.unacknowledged();
        self.is_leaving() && self.servers.iter().all(withdrawn) && self.subscriptions.all_answered()
    }

    fn timer(&mut self, now: Timestamp, timer: Timer, actions: &mut Actions) {
        match timer {
            Timer::Register(index) => self.register_due(now, index, actions),
            Timer::Request(dst) => self.retry_request(now, dst, actions),
            Timer::Ask => self.ask_next(now, actions),
            Timer::Entry(prefix) => self.entry_due(now, prefix, actions),
            Timer::Refresh(prefix) => self.refresh_due(now, prefix, actions),
            Timer::Subscribe(index, prefix) => self.subscribe(now, index, prefix, actions),
            Timer::Repair(object) => self.repair_due(now, object, actions),
            Timer::Handshakes => self.look_for_handshakes(now, actions),
            Timer::Kick(key) => self.kick_due(now, key, actions),
            Timer::Handover(prefix) => self.handover_due(now, prefix, actions),
            Timer::Liveness => self.liveness_due(now, actions),
            Timer::Guards => self.guards_due(now, actions),
            Timer::Gaps => self.gaps_due(now, actions),
            Timer::Carry => self.carry_due(now, actions),
            Timer::Info => self.info_due(now, actions),
            Timer::Apart(prefix) => self.apart_due(now, prefix, actions),
        }
    }

    fn shut_down(&mut self, now: Timestamp, actions: &mut Actions) {
        self.stopping = true;
        self.unsubscribe_all(now, actions);
        self.register_all(now, actions);
        let prefixes: Vec<IpNet> = self.cache.iter().map(|(prefix, _)| prefix).collect();
        for prefix in prefixes {
            self.forget(prefix, actions);
        }
    }

    /// The map server at `index` did not answer in time, for the `unanswered`th
    /// time. WireGuard would notice a restarted map server only after 15 s.
    /// Says whether the tunnel to it is set up anew.
    fn unanswered(
        &mut self,
        now: Timestamp,
        index: usize,
        unanswered: u32,
        actions: &mut Actions,
    ) -> bool {
        let server = self.servers.get_mut(index);
        let lost = server.is_some_and(|server| server.has_lost_us(now, unanswered));
        if lost {
            actions.push(Action::RenewControlTunnel(index));
        }
        lost
    }

    /// Which map server is asked after `tries` tries.
    fn turn(&self, tries: u32) -> usize {
        usize::try_from(tries).unwrap_or(0) % self.config.map_servers.len().max(1)
    }

    fn eid(&self, prefix: IpNet) -> EidPrefix {
        EidPrefix::new(self.config.iid, prefix)
    }

    /// How long to wait for an answer before asking again: up to a quarter less than `longest`, so
    /// that thousands of agents that lose a map server at once do not ask in step.
    fn retry_in(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.rng.random_range(0.75..1.0))
    }

    /// Returns how long to wait for an answer to a Map-Request that was sent `tries` times before.
    fn ask_again_in(&mut self, tries: u32) -> Duration {
        let least = if self.config.keyless {
            limits::PLAIN_REQUEST_RETRY
        } else {
            Duration::ZERO
        };
        let first = limits::REQUEST_RETRY.max(least);
        self.retry_in(first.saturating_mul(1 << tries.min(10)))
            .max(least)
    }

    /// `base` with up to a quarter added or taken, so that agents started
    /// together do not stay together.
    fn jitter(&mut self, base: Duration) -> Duration {
        base.mul_f64(self.rng.random_range(0.75..1.25))
    }
}

#[cfg(test)]
mod tests;
