//! What the agent says of itself: for `status`, and for whoever watches it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{EidPrefix, PublicKey, Timestamp};
use serde::Serialize;

use super::event::Cause;
use super::map_cache::{Entry, State};
use super::nat::Found;
use super::trace::whole;
use super::{Agent, Sizes};

/// Where the agent stands. All times are spans before or after the moment it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What lives here, and what is served.
    pub eid_prefixes: Vec<EidPrefix>,
    /// Where the data interface can be reached.
    pub rlocs: Vec<IpAddr>,
    /// Key of the data interface.
    pub public_key: PublicKey,
    /// Whether those who share our prefixes are to take our clients over.
    pub draining: bool,
    /// Whether there is a NAT.
    pub nat: NatStatus,
    /// The map servers, in the order of the configuration.
    pub servers: Vec<ServerStatus>,
    /// The map-cache: IPv4 first, in prefix order.
    pub mappings: Vec<MappingStatus>,
    /// The peers, by key. What the data plane measured of them, the shell knows.
    pub peers: Vec<PeerStatus>,
    /// How full the tables are.
    pub sizes: Sizes,
}

/// Whether there is a NAT between the data interface and the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NatStatus {
    /// Whether there is one; `None`: no map server has told.
    pub behind: Option<bool>,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Where it lets the data interface appear; `None` while only the address is known.
    pub seen_at: Option<SocketAddr>,
    /// How long that has been so, in milliseconds.
    pub since_ms: Option<u64>,
    /// The map server, while it is a peer of the data interface.
    #[serde(skip)]
    pub lookout: Option<PublicKey>,
}

/// Where the agent stands with one map server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Time since it last acknowledged a registration, in milliseconds; `None`: never yet.
    pub acknowledged_ms: Option<u64>,
    /// From a Map-Register to its acknowledgement, the last time, in microseconds.
    pub rtt_us: Option<u64>,
    /// Whether a Map-Register waits for its acknowledgement.
    pub unacknowledged: bool,
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MappingStatus {
    /// The prefix.
    pub eid: EidPrefix,
    /// How far it is on its way into the data plane.
    pub state: MappingState,
    /// What led to it.
    pub cause: Cause,
    /// The peer that serves it; `None` when nobody does.
    pub key: Option<PublicKey>,
    /// Where the mapping says that the peer lives. It may have roamed since.
    pub endpoint: Option<SocketAddr>,
    /// The peer that it moves to when that has shaken hands.
    pub moves_to: Option<PublicKey>,
    /// Whether that peer only passes packets on to the far end, which NATs keep from us.
    pub relayed: bool,
    /// How long it is still good for, in milliseconds.
    pub ttl_left_ms: u64,
    /// Time since it came, in milliseconds.
    pub age_ms: u64,
    /// Whether it is used beyond its time because no map server answers.
    pub stale: bool,
}

/// How far a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingState {
    /// The data plane is being told of the peer.
    Installing,
    /// A handshake is awaited.
    Handshake,
    /// The route past the agent is being set.
    Routing,
    /// Packets go past the agent.
    Active,
    /// Nobody uses it; the next packet is asked for again.
    Idle,
    /// Nobody serves the prefix; packets are refused.
    Negative,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its key.
    pub key: PublicKey,
    /// The prefixes it serves.
    pub eids: Vec<EidPrefix>,
    /// Where its mappings say that it lives. It may have roamed since.
    pub endpoint: SocketAddr,
    /// All its locators, the best first, if there are several.
    pub locators: Vec<LocatorStatus>,
    /// Our uplink that packets to it were made to leave by.
    pub uplink: Option<IpAddr>,
    /// Whether a handshake with it was seen since it was added. That it is
    /// there now, only the data plane's counters tell.
    pub handshake_seen: bool,
}

/// One of several locators of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LocatorStatus {
    /// Where it is.
    pub endpoint: SocketAddr,
    /// Its priority: the lowest number comes first.
    pub priority: u8,
    /// Its weight among those of one priority.
    pub weight: u8,
    /// Whether it is the one that is used.
    pub used: bool,
}

impl Agent {
    /// Where the agent stands at `now`. Costs as much as there are mappings and peers.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        let own = self.config.registered();
        Status {
            eid_prefixes: own.map(|prefix| self.eid(*prefix)).collect(),
            rlocs: self.config.addresses().collect(),
            public_key: self.config.public_key,
            draining: self.draining,
            nat: self.nat_status(now),
            servers: self.server_status(now),
            mappings: self
                .cache
                .iter()
                .map(|(prefix, entry)| MappingStatus {
                    moves_to: self.handovers.moves_to(&prefix),
                    relayed: entry
                        .chosen
                        .is_some_and(|it| self.apart.is_relay(&prefix, &it)),
                    ..mapping_status(now, self.eid(prefix), entry)
                })
                .collect(),
            peers: self
                .peers
                .each()
                .map(|(key, peer)| PeerStatus {
                    key,
                    eids: peer.allowed_ips.iter().map(|net| self.eid(*net)).collect(),
                    endpoint: peer.endpoint,
                    locators: self.locator_status(&key, peer.endpoint),
                    uplink: self.locators.uplink(&key),
                    handshake_seen: peer.handshake_seen,
                })
                .collect(),
            sizes: self.sizes(),
        }
    }

    fn locator_status(&self, key: &PublicKey, used: SocketAddr) -> Vec<LocatorStatus> {
        let known = self.locators.of(key).iter();
        let told = known.map(|it| LocatorStatus {
            endpoint: it.endpoint,
            priority: it.priority,
            weight: it.weight,
            used: it.endpoint == used,
        });
        told.collect()
    }

    fn nat_status(&self, now: Timestamp) -> NatStatus {
        let behind = match self.nat.found() {
            Found::Unknown => None,
            Found::Direct => Some(false),
            Found::Behind => Some(true),
        };
        NatStatus {
            behind,
            address: self.nat.address(),
            seen_at: self.nat.at(),
            since_ms: behind.map(|_| milliseconds(now - self.nat.since())),
            lookout: self.lookout(),
        }
    }

    /// Where the agent stands with its map servers, in the order of the configuration.
    #[must_use]
    pub fn server_status(&self, now: Timestamp) -> Vec<ServerStatus> {
        let configured = self.config.map_servers.iter().zip(&self.servers);
        configured
            .map(|(configured, server)| {
                let registration = &server.registration;
                let acknowledged = registration.acknowledged();
                let rtt = registration.rtt();
                ServerStatus {
                    address: configured.address,
                    acknowledged_ms: acknowledged.map(|at| milliseconds(now - at)),
                    rtt_us: rtt.map(|rtt| whole(rtt, Duration::from_micros(1))),
                    unacknowledged: registration.unacknowledged(),
                }
            })
            .collect()
    }
}

fn mapping_status(now: Timestamp, eid: EidPrefix, entry: &Entry) -> MappingStatus {
    MappingStatus {
        eid,
        state: match entry.state {
            State::Installing => MappingState::Installing,
            State::Awaiting(_) | State::Opening => MappingState::Handshake,
            State::Routing => MappingState::Routing,
            State::Active => MappingState::Active,
            State::Dozing => MappingState::Idle,
            State::Negative(_) => MappingState::Negative,
        },
        cause: entry.cause,
        key: entry.chosen.map(|chosen| chosen.key),
        endpoint: entry.chosen.map(|chosen| chosen.endpoint),
        moves_to: None,
        relayed: false,
        ttl_left_ms: milliseconds(entry.expires - now),
        age_ms: milliseconds(now - entry.since),
        stale: entry.stale.is_some(),
    }
}

fn milliseconds(span: Duration) -> u64 {
    whole(span, Duration::from_millis(1))
}
