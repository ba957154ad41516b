//! The generic netlink family of WireGuard: programs peers, reads them back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use netlink_packet_core::{Emitable, NLM_F_DUMP};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use tokio::time::Instant;

use crate::clock;
use crate::netlink::NetlinkSocket;
use crate::table::AllowedIpsChange;
use crate::types::{PeerSpec, PeerStats};

/// One kernel WireGuard interface, over a socket and a family id that are kept.
#[derive(Debug)]
pub(crate) struct WireGuard {
    socket: NetlinkSocket,
    family: u16,
    index: u32,
}

/// What the interface says of itself.
#[derive(Debug, Default)]
pub(crate) struct Description {
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) listen_port: u16,
    pub(crate) peers: Vec<Peer>,
}

/// What the interface says of a peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stats: PeerStats,
    pub(crate) allowed_ips: Vec<IpNet>,
    pub(crate) keepalive: Option<u16>,
}

impl WireGuard {
    /// Opens the interface `index`; `ENOENT` when the kernel has no WireGuard.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        let mut socket = NetlinkSocket::open(NETLINK_GENERIC)?;
        let request = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        };
        let mut family = None;
        socket.query(GenlMessage::from_payload(request), 0, |answer| {
            for attribute in answer.payload.nlas {
                if let GenlCtrlAttrs::FamilyId(id) = attribute {
                    family = Some(id);
                }
            }
        })?;
        let family = family.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self {
            socket,
            family,
            index,
        })
    }

    /// Sets the private key and the UDP port (0: a free one), of which `None` leaves what there is,
    /// and the mark of outer packets (0: none).
    pub(crate) fn configure(
        &mut self,
        private_key: Option<[u8; 32]>,
        listen_port: Option<u16>,
        mark: u32,
    ) -> io::Result<()> {
        let mark = WireguardAttribute::Fwmark(mark);
        let key = private_key.map(WireguardAttribute::PrivateKey);
        let port = listen_port.map(WireguardAttribute::ListenPort);
        self.set(key.into_iter().chain(port).chain([mark]).collect())
    }

    /// Adds or updates these peers, in their order, and leaves all others alone, but for AllowedIPs
    /// that move here. After an error nobody knows which of them were set.
    pub(crate) fn set_peers(&mut self, peers: &[(&PeerSpec, AllowedIpsChange)]) -> io::Result<()> {
        for message in messages(peers) {
            self.change(message)?;
        }
        Ok(())
    }

    /// Removes a peer; one that is not there is no error.
    pub(crate) fn remove_peer(&mut self, key: &PublicKey) -> io::Result<()> {
        let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        self.change(vec![WireguardPeer(peer_with(*key, flags))])
    }

    /// Switches persistent keepalive off and on: the kernel then sends one at once, which starts a
    /// handshake when there is no session.
    ///
    /// Within five seconds of its last initiation to that peer the kernel starts none.
    pub(crate) fn kick(&mut self, key: &PublicKey, keepalive: Option<u16>) -> io::Result<()> {
        let steps = match keepalive {
            Some(seconds) => [0, seconds],
            None => [1, 0],
        };
        // Both in one message: nobody sees the state in between.
        let peers = steps.map(|seconds| {
            let mut peer = peer_with(*key, WireguardPeerFlags::UpdateOnly);
            peer.push(WireguardPeerAttribute::PersistentKeepalive(seconds));
            WireguardPeer(peer)
        });
        self.change(peers.into())
    }

    /// Reads the interface and all its peers, over as many messages as the kernel needs.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kernel tells more of an interface than is asked for"
    )]
    pub(crate) fn describe(&mut self) -> io::Result<Description> {
        let request = self.message(WireguardCmd::GetDevice, Vec::new());
        let now = clock::since_1970();
        let mut description = Description::default();
        // The kernel writes each part when the one before it is fetched: the newest peers, which
        // come last, are read last.
        let mut fetched = [clock::now(); 2];
        self.socket.query(request, NLM_F_DUMP, |answer| {
            let [read_at, next] = fetched;
            for attribute in answer.payload.attributes {
                match attribute {
                    WireguardAttribute::PublicKey(key) => {
                        description.public_key = Some(PublicKey(key));
                    }
                    WireguardAttribute::ListenPort(port) => description.listen_port = port,
                    WireguardAttribute::Peers(peers) => {
                        for peer in peers
                            .into_iter()
                            .filter_map(|peer| read_peer(peer, now, read_at))
                        {
                            description.add(peer);
                        }
                    }
                    _ => {}
                }
            }
            fetched = [next, clock::now()];
        })?;
        Ok(description)
    }

    fn change(&mut self, peers: Vec<WireguardPeer>) -> io::Result<()> {
        self.set(vec![WireguardAttribute::Peers(peers)])
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> io::Result<()> {
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.socket.execute(message, 0)
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        mut attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        attributes.insert(0, WireguardAttribute::IfIndex(self.index));
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }
}

impl Description {
    /// A peer whose AllowedIPs fill more than one message comes again with only those.
    fn add(&mut self, peer: Peer) {
        match self.peers.last_mut() {
            Some(last) if last.stats.key == peer.stats.key => {
                last.allowed_ips.extend(peer.allowed_ips);
            }
            _ => self.peers.push(peer),
        }
    }
}

/// What sets these peers, as much in one message as fits.
fn messages(peers: &[(&PeerSpec, AllowedIpsChange)]) -> Vec<Vec<WireguardPeer>> {
    let parts = peers.iter().flat_map(|(spec, change)| parts(spec, *change));
    let mut messages: Vec<Vec<WireguardPeer>> = Vec::new();
    let mut room = 0;
    for part in parts {
        let length = std::slice::from_ref(&part).buffer_len();
        match messages.last_mut().filter(|_| length <= room) {
            Some(message) => message.push(part),
            None => {
                messages.push(vec![part]);
                room = MESSAGE_BYTES;
            }
        }
        room = room.saturating_sub(length);
    }
    messages
}

/// What sets one peer: it may have more AllowedIPs than one attribute holds.
fn parts(spec: &PeerSpec, change: AllowedIpsChange) -> Vec<WireguardPeer> {
    let flags = match change {
        AllowedIpsChange::Replace => WireguardPeerFlags::ReplaceAllowedIps,
        AllowedIpsChange::Keep | AllowedIpsChange::Add => WireguardPeerFlags::empty(),
    };
    let mut first = peer_with(spec.key, flags);
    if let Some(endpoint) = spec.endpoint {
        first.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    let keepalive = spec.keepalive.unwrap_or_default();
    first.push(WireguardPeerAttribute::PersistentKeepalive(keepalive));
    let mut parts = vec![first];
    if change != AllowedIpsChange::Keep {
        for (index, some) in spec.allowed_ips.chunks(ALLOWED_IPS_AT_ONCE).enumerate() {
            if index > 0 {
                parts.push(peer_with(spec.key, WireguardPeerFlags::UpdateOnly));
            }
            if let Some(part) = parts.last_mut() {
                part.push(allowed_ips_attribute(some));
            }
        }
    }
    parts.into_iter().map(WireguardPeer).collect()
}

fn peer_with(key: PublicKey, flags: WireguardPeerFlags) -> Vec<WireguardPeerAttribute> {
    vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(flags),
    ]
}

fn allowed_ips_attribute(prefixes: &[IpNet]) -> WireguardPeerAttribute {
    let allowed_ips = prefixes.iter().map(|prefix| {
        let family = match prefix {
            IpNet::V4(_) => WireguardAddressFamily::Ipv4,
            IpNet::V6(_) => WireguardAddressFamily::Ipv6,
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(prefix.network()),
            WireguardAllowedIpAttr::Cidr(prefix.prefix_len()),
        ])
    });
    WireguardPeerAttribute::AllowedIps(allowed_ips.collect())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel tells more of a peer than is asked for"
)]
fn read_peer(peer: WireguardPeer, now: Duration, read_at: Instant) -> Option<Peer> {
    let mut key = None;
    let mut endpoint: Option<SocketAddr> = None;
    let mut handshake = Duration::ZERO;
    let mut keepalive = None;
    let mut allowed_ips = Vec::new();
    let (mut rx_bytes, mut tx_bytes) = (0, 0);
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey(bytes)),
            WireguardPeerAttribute::Endpoint(address) => endpoint = Some(address),
            WireguardPeerAttribute::RxBytes(bytes) => rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => tx_bytes = bytes,
            WireguardPeerAttribute::LastHandshake(time) => {
                let seconds = u64::try_from(time.seconds).unwrap_or_default();
                let nanos = u32::try_from(time.nano_seconds).unwrap_or_default();
                handshake = Duration::new(seconds, nanos.min(999_999_999));
            }
            WireguardPeerAttribute::PersistentKeepalive(seconds) => {
                keepalive = (seconds != 0).then_some(seconds);
            }
            WireguardPeerAttribute::AllowedIps(prefixes) => {
                allowed_ips.extend(prefixes.iter().filter_map(read_allowed_ip));
            }
            _ => {}
        }
    }
    let stats = PeerStats {
        key: key?,
        endpoint,
        since_handshake: (!handshake.is_zero()).then(|| now.saturating_sub(handshake)),
        rx_bytes,
        tx_bytes,
        read_at,
    };
    Some(Peer {
        stats,
        allowed_ips,
        keepalive,
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel may tell more of a prefix than is asked for"
)]
fn read_allowed_ip(attributes: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut ip, mut length) = (None, None);
    for attribute in &attributes.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(address) => ip = Some(*address),
            WireguardAllowedIpAttr::Cidr(cidr) => length = Some(*cidr),
            _ => {}
        }
    }
    IpNet::new(ip?, length?).ok()
}

/// At most 40 bytes each, in an attribute of at most 65,535.
const ALLOWED_IPS_AT_ONCE: usize = 1_024;
/// Bytes of peers in one message: they are one attribute, and an error brings all of it back.
const MESSAGE_BYTES: usize = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(number: u16, prefixes: u16) -> PeerSpec {
        let prefix = |n: u16| format!("fd00:{number:x}:{n:x}::/48").parse().unwrap();
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        PeerSpec {
            key: PublicKey(key),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed_ips: (0..prefixes).map(prefix).collect(),
            keepalive: Some(25),
        }
    }

    /// The keys of all peers of a message, and the prefixes of each.
    fn told(message: &[WireguardPeer]) -> Vec<(PublicKey, usize)> {
        let peers = message.iter().map(|peer| {
            let (mut key, mut prefixes) = (None, 0);
            for attribute in &peer.0 {
                if let WireguardPeerAttribute::PublicKey(bytes) = attribute {
                    key = Some(PublicKey(*bytes));
                }
                if let WireguardPeerAttribute::AllowedIps(more) = attribute {
                    prefixes += more.len();
                }
            }
            (key.unwrap(), prefixes)
        });
        peers.collect()
    }

    fn of(specs: &[PeerSpec], change: AllowedIpsChange) -> Vec<Vec<WireguardPeer>> {
        let peers: Vec<_> = specs.iter().map(|spec| (spec, change)).collect();
        messages(&peers)
    }

    #[test]
    fn many_small_peers_are_one_message() {
        let specs: Vec<_> = (0..64).map(|number| spec(number, 2)).collect();
        let messages = of(&specs, AllowedIpsChange::Replace);
        assert_eq!(messages.len(), 1);
        let wanted: Vec<_> = specs.iter().map(|spec| (spec.key, 2)).collect();
        assert_eq!(told(&messages[0]), wanted);
        assert_eq!(of(&[], AllowedIpsChange::Replace), [] as [Vec<_>; 0]);
    }

    #[test]
    fn no_message_is_longer_than_an_attribute_and_all_is_told_in_order() {
        let sizes = [1, 900, 3_000, 0, 1_024, 1_025, 5];
        let specs = (0..).zip(sizes).map(|(number, size)| spec(number, size));
        let specs: Vec<_> = specs.collect();
        let messages = of(&specs, AllowedIpsChange::Add);
        let lengths = messages.iter().map(|peers| peers.as_slice().buffer_len());
        assert!(lengths.clone().all(|length| length <= MESSAGE_BYTES));
        assert!(
            lengths.clone().count() < 7,
            "{:?}",
            lengths.collect::<Vec<_>>()
        );
        let mut all: Vec<(PublicKey, usize)> = Vec::new();
        for (key, prefixes) in messages.iter().flat_map(|message| told(message)) {
            match all.last_mut().filter(|(last, _)| *last == key) {
                Some((_, so_far)) => *so_far += prefixes,
                None => all.push((key, prefixes)),
            }
        }
        let wanted = specs.iter().map(|spec| (spec.key, spec.allowed_ips.len()));
        assert_eq!(all, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn what_a_peer_keeps_is_not_told() {
        let messages = of(&[spec(1, 2_000)], AllowedIpsChange::Keep);
        assert_eq!(told(&messages[0]), [(spec(1, 0).key, 0)]);
    }
}
