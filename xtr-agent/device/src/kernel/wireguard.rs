//! The generic netlink family of WireGuard: programs peers, reads them back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use netlink_packet_core::NLM_F_DUMP;
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

    /// Adds or updates one peer and leaves all others alone, but for AllowedIPs that move here.
    pub(crate) fn set_peer(&mut self, spec: &PeerSpec, change: AllowedIpsChange) -> io::Result<()> {
        let flags = match change {
            AllowedIpsChange::Replace => WireguardPeerFlags::ReplaceAllowedIps,
            AllowedIpsChange::Keep | AllowedIpsChange::Add => WireguardPeerFlags::empty(),
        };
        let allowed_ips = match change {
            AllowedIpsChange::Keep => &[],
            AllowedIpsChange::Replace | AllowedIpsChange::Add => spec.allowed_ips.as_slice(),
        };
        // The length of a netlink attribute has 16 bits.
        let (first, others) = allowed_ips
            .split_at_checked(ALLOWED_IPS_PER_MESSAGE)
            .unwrap_or((allowed_ips, &[]));
        let mut peer = peer_with(spec.key, flags);
        if let Some(endpoint) = spec.endpoint {
            peer.push(WireguardPeerAttribute::Endpoint(endpoint));
        }
        let keepalive = spec.keepalive.unwrap_or_default();
        peer.push(WireguardPeerAttribute::PersistentKeepalive(keepalive));
        if !first.is_empty() {
            peer.push(allowed_ips_attribute(first));
        }
        self.set_peers(vec![WireguardPeer(peer)])?;
        for more in others.chunks(ALLOWED_IPS_PER_MESSAGE) {
            let mut peer = peer_with(spec.key, WireguardPeerFlags::UpdateOnly);
            peer.push(allowed_ips_attribute(more));
            self.set_peers(vec![WireguardPeer(peer)])?;
        }
        Ok(())
    }

    /// Removes a peer; one that is not there is no error.
    pub(crate) fn remove_peer(&mut self, key: &PublicKey) -> io::Result<()> {
        let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        self.set_peers(vec![WireguardPeer(peer_with(*key, flags))])
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
        self.set_peers(peers.into())
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

    fn set_peers(&mut self, peers: Vec<WireguardPeer>) -> io::Result<()> {
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
const ALLOWED_IPS_PER_MESSAGE: usize = 1_024;
