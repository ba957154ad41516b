//! A far end: the agent's own core, with two tunnels of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Algorithm, AuthKey, InstanceId, Nonce, PublicKey, SiteId, Timestamp, Ttl, XtrId};
use rand::RngCore;
use wg_device::PrivateKey;
use xtr_agent::agent::{
    Action, Actions, Agent, Change, Config, Input, MapServer, PeerStats, Translates,
};

use super::inner;
use super::socket::Datagram;
use super::tunnel::{Identity, Outbox, Tunnel};
use super::{OVERLAY, PORT};

/// Key ID of the secret that both ends derive from the control tunnel's keys.
const DERIVED_KEY_ID: u8 = 1;

/// The port that members send from.
const SOURCE_PORT: u16 = 9_000;

/// The keys and addresses of a member.
pub(super) struct Enrolment {
    pub(super) number: u32,
    control_secret: [u8; 32],
    data_secret: [u8; 32],
    seed: [u8; 32],
}

/// The map server, as members see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory {
    /// Key of its control interface.
    pub(crate) key: PublicKey,
    /// Endpoint of that interface.
    pub(crate) endpoint: SocketAddrV4,
    /// Where it listens inside the tunnels.
    pub(crate) address: SocketAddrV6,
}

/// A packet of the overlay that came out at a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub member: u32,
    /// The number in it.
    pub number: u32,
}

/// A far end.
pub(super) struct Member {
    number: u32,
    agent: Agent,
    control_identity: Identity,
    control: Tunnel,
    control_address: SocketAddrV6,
    data_identity: Identity,
    peers: BTreeMap<PublicKey, Peer>,
    /// Destinations that pass the agent.
    routes: BTreeSet<IpNet>,
    address: Ipv4Addr,
    eid: Ipv4Addr,
    directory: Directory,
}

struct Peer {
    tunnel: Tunnel,
    allowed_ips: Vec<IpNet>,
}

impl Enrolment {
    pub(super) fn new(number: u32, rng: &mut impl RngCore) -> Self {
        let mut random = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            bytes
        };
        Self {
            number,
            control_secret: random(),
            data_secret: random(),
            seed: random(),
        }
    }

    pub(super) fn control_key(&self) -> PublicKey {
        Identity::new(self.control_secret).public()
    }
}

/// Where a member is on the underlay.
pub(super) fn underlay_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(super::UNDERLAY.addr().to_bits() + 1 + number)
}

/// What lives at a member.
pub(super) fn eid(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(super::EIDS.addr().to_bits() + 1 + number)
}

/// Where a member is inside its tunnel to the map server.
pub(super) fn control_address(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(super::CONTROL.addr().to_bits() + 1 + u128::from(number))
}

impl Member {
    pub(super) fn new(enrolment: &Enrolment, directory: Directory, first_nonce: Nonce) -> Self {
        let number = enrolment.number;
        let (address, eid) = (underlay_address(number), eid(number));
        let control_identity = Identity::new(enrolment.control_secret);
        let data_identity = Identity::new(enrolment.data_secret);
        let control = control_identity.tunnel(&directory.key, address, directory.endpoint);
        let control_address = control_address(number);
        let secret =
            PrivateKey::from_bytes(enrolment.control_secret).map_register_secret(&directory.key);
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(control_identity.public().0) {
            *to = from;
        }
        let config = Config {
            map_servers: vec![MapServer {
                address: directory.address.into(),
                key: AuthKey::new(DERIVED_KEY_ID, Algorithm::Sha256_128Hkdf, &secret),
                outer: None,
            }],
            iid: InstanceId(0),
            eid_prefixes: vec![IpNet::from(IpAddr::V4(eid))],
            serves: Vec::new(),
            shared: false,
            overlay: vec![IpNet::V4(OVERLAY)],
            control_address: control_address.into(),
            public_key: data_identity.public(),
            listen_port: PORT,
            rlocs: vec![IpAddr::from(address).into()],
            ids: Some((XtrId(id), SiteId([0; 8]))),
            keyless: false,
            encapsulate_requests: false,
            ttl: Ttl::from_minutes(15),
            register_interval: Duration::from_secs(60),
            first_nonce,
            hold: Duration::from_secs(3),
            idle: Duration::from_secs(3600),
            translates: Translates::Nothing,
            tells_handshakes: false,
            max_peers: 1_000,
            subscriptions: Vec::new(),
            witnesses: Vec::new(),
        };
        Self {
            number,
            agent: Agent::new(config, enrolment.seed),
            control_identity,
            control,
            control_address: SocketAddrV6::new(control_address, directory.address.port(), 0, 0),
            data_identity,
            peers: BTreeMap::new(),
            routes: BTreeSet::new(),
            address,
            eid,
            directory,
        }
    }

    /// Whether the map server has acknowledged its registration.
    pub(super) fn is_registered(&self) -> bool {
        self.agent.acknowledged(0).is_some()
    }

    /// When the agent wants to be looked after.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.agent.next_deadline()
    }

    /// Takes a datagram of the underlay in; returns what came out of the overlay.
    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        datagram: &Datagram,
        out: &mut Outbox,
    ) -> Option<Arrival> {
        if datagram.far == self.directory.endpoint {
            let (_, packet) = self.control.receive(&self.control_identity, datagram, out);
            if let Some((src, _, bytes)) = packet.as_deref().and_then(inner::read_udp_v6) {
                let src = SocketAddr::V6(src);
                self.input(now, Input::Datagram { src, bytes }, out);
            }
            return None;
        }
        for peer in self.peers.values_mut() {
            let (mine, packet) = peer.tunnel.receive(&self.data_identity, datagram, out);
            if mine {
                peer.tunnel.set_far(datagram.far);
                return self.delivered(packet?, out);
            }
        }
        None
    }

    /// A packet came out of a tunnel: notes it and sends it back.
    fn delivered(&mut self, mut packet: Vec<u8>, out: &mut Outbox) -> Option<Arrival> {
        let (src, dst, payload) = inner::read_udp_v4(&packet)?;
        let number = u32::from_be_bytes(*payload.first_chunk()?);
        // The data plane pads, and the packet says where it ends.
        let length = u16::from_be_bytes(*packet.get(2..)?.first_chunk()?);
        let from = IpNet::from(IpAddr::V4(src));
        let mut peers = self.peers.values_mut();
        let peer = peers.find(|peer| peer.allowed_ips.iter().any(|net| net.contains(&from)))?;
        if dst != self.eid {
            return None;
        }
        packet.truncate(length.into());
        inner::turn_around(&mut packet);
        peer.tunnel.send(&packet, out);
        let member = self.number;
        Some(Arrival { member, number })
    }

    /// Sends a UDP datagram to an address of the overlay, as a program on this host would.
    pub(super) fn send(
        &mut self,
        now: Timestamp,
        to: SocketAddrV4,
        payload: &[u8],
        out: &mut Outbox,
    ) {
        let from = SocketAddrV4::new(self.eid, SOURCE_PORT);
        let packet = inner::udp_v4(from, to, payload);
        let to = IpAddr::V4(*to.ip());
        if self.routes.iter().any(|net| net.contains(&to)) {
            self.encrypt(&packet, out);
        } else {
            self.input(now, Input::TunPacket(&packet), out);
        }
    }

    /// Sends a packet to the peer that has its destination.
    fn encrypt(&mut self, packet: &[u8], out: &mut Outbox) {
        let Some(to) = inner::destination_v4(packet).map(IpAddr::V4) else {
            return;
        };
        let peers = self.peers.values_mut().filter_map(|peer| {
            let matching = peer.allowed_ips.iter().filter(|net| net.contains(&to));
            let longest = matching.map(IpNet::prefix_len).max()?;
            Some((longest, peer))
        });
        if let Some((_, peer)) = peers.max_by_key(|(length, _)| *length) {
            peer.tunnel.send(packet, out);
        }
    }

    /// Gives the agent an input and carries out what it wants.
    pub(super) fn input(&mut self, now: Timestamp, input: Input<'_>, out: &mut Outbox) {
        let mut actions = Actions::default();
        self.agent.handle(now, input, &mut actions);
        let mut wanted: VecDeque<Action> = actions.drain().collect();
        while let Some(action) = wanted.pop_front() {
            self.carry_out(now, action, out, &mut actions);
            wanted.extend(actions.drain());
        }
    }

    fn carry_out(
        &mut self,
        now: Timestamp,
        action: Action,
        out: &mut Outbox,
        actions: &mut Actions,
    ) {
        match action {
            Action::Send { dst, bytes } => {
                if let SocketAddr::V6(dst) = dst {
                    let packet = inner::udp_v6(self.control_address, dst, &bytes);
                    self.control.send(&packet, out);
                }
            }
            Action::Apply { id, change } => {
                self.change(change);
                let done = Input::Applied { id, ok: true };
                self.agent.handle(now, done, actions);
            }
            Action::Kick(key) | Action::AwaitHandshake(key) => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.tunnel.kick(out);
                }
            }
            Action::RenewControlTunnel(_) => {
                let Directory { key, endpoint, .. } = self.directory;
                self.control = self.control_identity.tunnel(&key, self.address, endpoint);
            }
            Action::ReadPeerStats(keys) | Action::ReadPeerStatsAnew(keys) => {
                let stats = keys.iter().filter_map(|key| self.stats(now, key));
                let stats: Vec<_> = stats.collect();
                self.agent.handle(now, Input::PeerStats(&stats), actions);
            }
            Action::Reinject(packet) => self.encrypt(&packet, out),
            // Nobody waits for an ICMP error here, nobody reads the log, a member that gets no echoes
            // back leaves no proxy, and none translates addresses.
            Action::Echo { .. }
            | Action::Carry(_)
            | Action::Listen
            | Action::LeaveFrom { .. }
            | Action::Hear
            | Action::Deliver(_)
            | Action::Count(_)
            | Action::Event(_) => {}
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::SetPeer(spec) => {
                let far = match spec.endpoint {
                    Some(SocketAddr::V4(far)) => Some(far),
                    Some(SocketAddr::V6(_)) | None => None,
                };
                if let Some(peer) = self.peers.get_mut(&spec.key) {
                    peer.allowed_ips = spec.allowed_ips;
                    if let Some(far) = far {
                        peer.tunnel.set_far(far);
                    }
                } else if let Some(far) = far {
                    let tunnel = self.data_identity.tunnel(&spec.key, self.address, far);
                    let allowed_ips = spec.allowed_ips;
                    let peer = Peer {
                        tunnel,
                        allowed_ips,
                    };
                    self.peers.insert(spec.key, peer);
                }
            }
            Change::RemovePeer(key) => {
                self.peers.remove(&key);
            }
            Change::AddRoute(prefix) => {
                self.routes.insert(prefix);
            }
            Change::RemoveRoute(prefix) => {
                self.routes.remove(&prefix);
            }
        }
    }

    fn stats(&self, now: Timestamp, key: &PublicKey) -> Option<PeerStats> {
        let (handshake_seen, rx_bytes, tx_bytes) = self.peers.get(key)?.tunnel.stats();
        Some(PeerStats {
            key: *key,
            endpoint: None,
            read_at: now,
            handshake_seen,
            rx_bytes,
            tx_bytes,
        })
    }

    /// Time passes for the tunnels.
    pub(super) fn tick_tunnels(&mut self, out: &mut Outbox) {
        self.control.tick(out);
        for peer in self.peers.values_mut() {
            peer.tunnel.tick(out);
        }
    }
}
