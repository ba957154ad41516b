//! The agent as a pure state machine: inputs and a clock in, actions out.
//!
//! `mod.rs` says what goes in and out and sends every input to the file that
//! answers it: `miss` for captured packets, `control` for datagrams from the
//! map servers, `install` for the way of a mapping into the data plane.

mod asked;
mod control;
mod event;
mod hold;
mod inspect;
mod install;
mod ip_header;
pub mod limits;
mod liveness;
mod map_cache;
mod miss;
mod peers;
mod refresh;
mod registration;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{
    AuthKey, Deadlines, EidPrefix, InstanceId, Nonce, PublicKey, SiteId, Timestamp, Ttl, XtrId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use event::{Cause, DropReason, Event};
pub use inspect::Sizes;
pub use map_cache::{Chosen, State};
pub use peers::PeerSpec;

use hold::HoldBudget;
use liveness::Liveness;
use map_cache::{MapCache, Resolver};
use peers::Peers;
use registration::Registration;
use replay::ReplayWindow;

/// A map server that the agent registers with and asks.
#[derive(Clone, Debug)]
pub struct MapServer {
    /// Where it listens, inside the control tunnel.
    pub address: SocketAddr,
    /// The secret shared with it (RFC 9301 5.6).
    pub key: AuthKey,
}

/// All that the agent must be told; nothing in it is invalid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Registered with all of them; the first is asked.
    pub map_servers: Vec<MapServer>,
    /// Which copy of the address plan this is.
    pub iid: InstanceId,
    /// The prefixes that live here.
    pub eid_prefixes: Vec<IpNet>,
    /// Destinations that are looked up; nothing else is touched.
    pub overlay: Vec<IpNet>,
    /// Where map servers answer to: the agent's address inside the control
    /// tunnel, or its RLOC where there is none.
    pub control_address: IpAddr,
    /// Key of the data interface.
    pub public_key: PublicKey,
    /// UDP port of the data interface.
    pub listen_port: u16,
    /// Addresses at which the data interface can be reached.
    pub rlocs: Vec<IpAddr>,
    /// Identity across address changes, and of the site; `None` for map
    /// servers that predate RFC 9301.
    pub ids: Option<(XtrId, SiteId)>,
    /// Registers plain locators, without a key, for map servers that know no
    /// security key (LCAF 11).
    pub keyless: bool,
    /// Sends Map-Requests in Encapsulated Control Messages (RFC 9301 5.8), as
    /// map resolvers outside a control tunnel want them.
    pub encapsulate_requests: bool,
    /// How long others may keep our mappings.
    pub ttl: Ttl,
    /// Time between registrations, before jitter.
    pub register_interval: Duration,
    /// First nonce of a Map-Register; must exceed all of earlier runs.
    pub first_nonce: Nonce,
    /// How long packets wait for a mapping before they are given up.
    pub hold: Duration,
}

/// What the data plane says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub key: PublicKey,
    /// Whether there was a handshake since it was added.
    pub handshake_seen: bool,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
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
    /// The answer to [`Action::ReadPeerStats`].
    PeerStats(&'a [PeerStats]),
    /// The addresses of this host changed.
    LocalRlocs(&'a [IpAddr]),
    /// A deadline passed.
    Tick,
    /// The process is about to stop: withdraw and tidy up.
    Shutdown,
}

/// Names a change until it is reported back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId(pub u64);

/// A change to the data plane. All are idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the peer exactly so.
    SetPeer(PeerSpec),
    /// Removes the peer.
    RemovePeer(PublicKey),
    /// Sends packets to the prefix to the data interface, past the agent.
    AddRoute(IpNet),
    /// Sends packets to the prefix to the agent again.
    RemoveRoute(IpNet),
}

/// Everything the agent can ask of its shell, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sends a datagram from the control socket.
    Send {
        /// Where to.
        dst: SocketAddr,
        /// Its payload.
        bytes: Bytes,
    },
    /// Carries out a change and reports back with [`Input::Applied`].
    Apply {
        /// Name for the report.
        id: ChangeId,
        /// What to do.
        change: Change,
    },
    /// Starts a handshake with the peer now.
    Kick(PublicKey),
    /// Sets the control tunnel up anew: the map server may have restarted and
    /// lost its half of the session.
    RenewControlTunnel,
    /// Reports back with [`Input::PeerStats`] of these peers.
    ReadPeerStats(Vec<PublicKey>),
    /// Sends a held packet out through the data interface.
    Reinject(Bytes),
    /// Hands a packet to the local IP stack.
    Deliver(Bytes),
    /// Counts something refused.
    Count(DropReason),
    /// Tells the operator.
    Event(Event),
}

/// Actions in the order they are to be carried out. Kept and reused by the shell.
#[derive(Debug, Default)]
pub struct Actions(Vec<Action>);

impl Actions {
    /// Takes all actions out, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Action> + '_ {
        self.0.drain(..)
    }

    /// The actions, oldest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Action] {
        &self.0
    }

    fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    fn count(&mut self, reason: DropReason) {
        self.push(Action::Count(reason));
    }

    fn event(&mut self, event: Event) {
        self.push(Action::Event(event));
    }
}

/// What waits for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next Map-Register to the map server with this index.
    Register(usize),
    /// The next try for this destination.
    Request(IpAddr),
    /// The mapping wants a look: it expires, or its far end is late.
    Entry(IpNet),
    /// The mapping in use should be asked for again.
    Refresh(IpNet),
    /// Time to look for first handshakes.
    Handshakes,
    /// Time to look for peers that fell silent.
    Liveness,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    rng: StdRng,
    register_nonce: Nonce,
    registrations: Vec<Registration>,
    windows: Vec<ReplayWindow>,
    cache: MapCache,
    resolver: Resolver,
    budget: HoldBudget,
    peers: Peers,
    changes: BTreeMap<ChangeId, install::Pending>,
    next_change: u64,
    acks: BTreeMap<(usize, Nonce), control::PendingAck>,
    /// Peers whose first handshake is being looked for, with the looks left.
    watched: BTreeMap<PublicKey, u32>,
    /// Mappings whose use is being looked at before they run out.
    refresh_checks: BTreeSet<IpNet>,
    liveness: Liveness,
    /// When a map server was last heard of.
    heard: Timestamp,
    /// When the control tunnel was last set up anew.
    renewed: Timestamp,
    /// Whether the next counters are for `liveness`.
    liveness_asked: bool,
    deadlines: Deadlines<Timer>,
    stopping: bool,
}

impl Agent {
    /// An agent that has done nothing yet; feed it [`Input::Start`] first.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let servers = config.map_servers.len();
        Self {
            rng: StdRng::from_seed(seed),
            register_nonce: config.first_nonce,
            registrations: (0..servers).map(|_| Registration::default()).collect(),
            windows: vec![ReplayWindow::default(); servers],
            cache: MapCache::default(),
            resolver: Resolver::default(),
            budget: HoldBudget::default(),
            peers: Peers::default(),
            changes: BTreeMap::new(),
            next_change: 0,
            acks: BTreeMap::new(),
            watched: BTreeMap::new(),
            refresh_checks: BTreeSet::new(),
            liveness: Liveness::default(),
            heard: Timestamp::ZERO,
            renewed: Timestamp::ZERO,
            liveness_asked: false,
            deadlines: Deadlines::default(),
            stopping: false,
            config,
        }
    }

    /// Takes one input and appends what is to be done about it.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>, actions: &mut Actions) {
        match input {
            Input::Start => self.register_all(now, actions),
            Input::Datagram { src, bytes } => self.datagram(now, src, bytes, actions),
            Input::TunPacket(packet) => self.tun_packet(now, packet, actions),
            Input::Applied { id, ok } => self.applied(now, id, ok, actions),
            Input::PeerStats(stats) => self.peer_stats(now, stats, actions),
            Input::LocalRlocs(rlocs) => {
                if self.config.rlocs != rlocs {
                    self.config.rlocs = rlocs.to_vec();
                    self.register_all(now, actions);
                }
            }
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
        self.registrations.get(index)?.acknowledged()
    }

    fn timer(&mut self, now: Timestamp, timer: Timer, actions: &mut Actions) {
        match timer {
            Timer::Register(index) => {
                let registration = self.registrations.get(index);
                if registration.is_some_and(Registration::unacknowledged) {
                    self.unanswered(now, 2, actions);
                }
                self.register(now, index, actions);
            }
            Timer::Request(dst) => self.retry_request(now, dst, actions),
            Timer::Entry(prefix) => self.entry_due(now, prefix, actions),
            Timer::Refresh(prefix) => self.refresh_due(now, prefix, actions),
            Timer::Handshakes => self.look_for_handshakes(now, actions),
            Timer::Liveness => self.liveness_due(now, actions),
        }
    }

    fn shut_down(&mut self, now: Timestamp, actions: &mut Actions) {
        self.stopping = true;
        self.config.ttl = Ttl::WITHDRAW;
        self.register_all(now, actions);
        let prefixes: Vec<IpNet> = self.cache.iter().map(|(prefix, _)| prefix).collect();
        for prefix in prefixes {
            self.forget(prefix, actions);
        }
    }

    /// A map server did not answer in time, for the `unanswered`th time.
    /// WireGuard would notice a restarted map server only after 15 s.
    fn unanswered(&mut self, now: Timestamp, unanswered: u32, actions: &mut Actions) {
        // One that answers others is there, and only slow or overloaded.
        let silence = if unanswered > 1 {
            limits::CONTROL_SILENCE_SHORT
        } else {
            limits::CONTROL_SILENCE
        };
        if now - self.heard >= silence && now - self.renewed >= limits::CONTROL_RENEWAL {
            self.renewed = now;
            actions.push(Action::RenewControlTunnel);
        }
    }

    fn eid(&self, prefix: IpNet) -> EidPrefix {
        EidPrefix::new(self.config.iid, prefix)
    }

    /// `base` with up to a quarter added or taken, so that agents started
    /// together do not stay together.
    fn jitter(&mut self, base: Duration) -> Duration {
        base.mul_f64(self.rng.random_range(0.75..1.25))
    }
}

#[cfg(test)]
mod tests;
