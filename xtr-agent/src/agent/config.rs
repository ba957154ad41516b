//! What the agent is told before it starts.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{AuthKey, EidPrefix, InstanceId, Nonce, PublicKey, SiteId, Ttl, XtrId};

use super::Translates;

/// A map server that the agent registers with and asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapServer {
    /// Where it listens, inside the control tunnel.
    pub address: SocketAddr,
    /// The secret shared with it (RFC 9301 5.6).
    pub key: AuthKey,
    /// Its key in the control tunnel, and where it is outside of that; without a tunnel it is not asked where it sees
    /// us.
    pub outer: Option<(PublicKey, SocketAddr)>,
}

/// An address of this host at which the data interface can be reached (an RLOC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The address.
    pub address: IpAddr,
    /// Which one far ends shall use: the lowest number; 255: none shall (RFC 9301 5.4).
    pub priority: u8,
    /// The share of far ends that use it, among those of one priority.
    pub weight: u8,
    /// Whether tunnels can be made to leave from it, by [`Action::LeaveFrom`](super::Action::LeaveFrom).
    pub steers: bool,
}

impl From<IpAddr> for Uplink {
    /// An address that is like any other.
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            priority: 1,
            weight: 100,
            steers: false,
        }
    }
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
    /// Prefixes that are reached through us but do not live here: what a proxy registers for its
    /// clients. They may contain the overlay, and with it the clients themselves.
    pub serves: Vec<IpNet>,
    /// What becomes of the addresses of clients, whose packets we pass on.
    pub translates: Translates,
    /// Whether others register the same prefixes, and all are answered together (RFC 9301 5.6).
    pub shared: bool,
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
    pub rlocs: Vec<Uplink>,
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
    /// How long packets wait for an answer before they are given up.
    pub hold: Duration,
    /// How long a peer is not used before it is removed; at least
    /// [`limits::IDLE_MIN`](super::limits::IDLE_MIN).
    pub idle: Duration,
    /// Whether the data plane tells of the handshakes that this end has started, so that nobody
    /// has to look for them.
    pub tells_handshakes: bool,
    /// Peers in the data plane; when more are wanted, those used longest ago go.
    pub max_peers: usize,
    /// Destinations inside the overlay that are kept ready before a packet
    /// goes there.
    pub subscriptions: Vec<IpNet>,
    /// Addresses beyond proxies that answer echoes.
    pub witnesses: Vec<IpAddr>,
}

impl Config {
    /// The addresses of this host at which the data interface can be reached.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.rlocs.iter().map(|rloc| rloc.address)
    }

    /// Those that tunnels can be made to leave from, the best first.
    pub(super) fn uplinks(&self) -> impl Iterator<Item = IpAddr> {
        let steers = self.rlocs.iter().filter(|rloc| rloc.steers);
        let mut steers: Vec<_> = steers.collect();
        steers.sort_by_key(|it| (it.priority, Reverse(it.weight)));
        steers.into_iter().map(|it| it.address)
    }

    /// What is registered: what lives here, then what is served.
    pub(super) fn registered(&self) -> impl Iterator<Item = &IpNet> {
        self.eid_prefixes.iter().chain(&self.serves)
    }

    /// Whether `prefix` lives here.
    pub(super) fn lives_here(&self, prefix: &IpNet) -> bool {
        self.eid_prefixes.iter().any(|own| own.contains(prefix))
    }

    /// Whether `eid` is a part of what lives here, or all of something that is served. What lies
    /// inside of that may be somebody else's.
    pub(super) fn registers(&self, eid: &EidPrefix) -> bool {
        let prefix = eid.net();
        eid.iid() == self.iid && (self.lives_here(&prefix) || self.serves.contains(&prefix))
    }
}
