//! One end of one WireGuard tunnel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::Packet;
use gotatun::tun::MtuWatcher;
use gotatun::x25519;
use lisp_proto::PublicKey;

use super::socket::Datagram;

/// Initiations per second that are answered without a cookie.
const HANDSHAKES_PER_SECOND: u64 = 100;
const MTU: u16 = 1_420;

/// Our half of a key pair, and what is common to all tunnels with it.
pub struct Identity {
    secret: x25519::StaticSecret,
    limiter: Arc<RateLimiter>,
    indices: IndexTable,
}

/// One end of a tunnel.
pub struct Tunnel {
    noise: Tunn,
    own: Ipv4Addr,
    far: SocketAddrV4,
}

/// What tunnels want to be sent.
pub type Outbox = Vec<Datagram>;

impl Identity {
    /// The half with this private key.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        let secret = x25519::StaticSecret::from(secret);
        let public = x25519::PublicKey::from(&secret);
        Self {
            secret,
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            indices: IndexTable::from_os_rng(),
        }
    }

    pub(super) fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret).to_bytes())
    }

    /// A tunnel from the address `own` to the peer `key` at `far`.
    #[must_use]
    pub fn tunnel(&self, key: &PublicKey, own: Ipv4Addr, far: SocketAddrV4) -> Tunnel {
        let noise = Tunn::new(
            self.secret.clone(),
            x25519::PublicKey::from(key.0),
            None,
            None,
            self.indices.clone(),
            Arc::clone(&self.limiter),
        );
        Tunnel { noise, own, far }
    }
}

impl Tunnel {
    /// Moves the far end.
    pub(super) fn set_far(&mut self, far: SocketAddrV4) {
        self.far = far;
    }

    /// Sends an IP packet through the tunnel; it waits if there has to be a handshake first.
    pub fn send(&mut self, packet: &[u8], out: &mut Outbox) {
        let packet = Packet::from_bytes(BytesMut::from(packet));
        let mut mtu = MtuWatcher::new(MTU);
        if let Some(wire) = self.noise.handle_outgoing_packet(packet, Some(&mut mtu)) {
            self.emit(wire.into(), out);
        }
    }

    /// Starts a handshake unless one is under way.
    pub(super) fn kick(&mut self, out: &mut Outbox) {
        if let Some(initiation) = self.noise.format_handshake_initiation(false) {
            self.emit(initiation.into_bytes(), out);
        }
    }

    /// Takes a datagram of `identity` in; returns the IP packet that was in it. It is `false` that
    /// it was for this tunnel when nothing could be made of it.
    pub fn receive(
        &mut self,
        identity: &Identity,
        datagram: &Datagram,
        out: &mut Outbox,
    ) -> (bool, Option<Vec<u8>>) {
        let packet = Packet::from_bytes(BytesMut::from(datagram.bytes.as_slice()));
        let src = SocketAddr::new(IpAddr::V4(*datagram.far.ip()), datagram.far.port());
        let Ok(packet) = identity.limiter.verify_packet(src, packet) else {
            return (false, None);
        };
        let inner = match self.noise.handle_incoming_packet(packet) {
            TunnResult::Err(_) => return (false, None),
            TunnResult::Done => None,
            TunnResult::WriteToNetwork(wire) => {
                self.emit(wire.into(), out);
                let mut mtu = MtuWatcher::new(MTU);
                let queued: Vec<Packet> = self
                    .noise
                    .get_queued_packets(&mut mtu)
                    .map(Packet::from)
                    .collect();
                for wire in queued {
                    self.emit(wire, out);
                }
                None
            }
            TunnResult::WriteToTunnel(inner) => Some(inner.to_vec()).filter(|it| !it.is_empty()),
        };
        (true, inner)
    }

    /// Time passes: handshakes are repeated, sessions end.
    pub fn tick(&mut self, out: &mut Outbox) {
        // An error is that a session or a handshake has ended, which the next packet mends.
        if let Ok(Some(wire)) = self.noise.update_timers() {
            self.emit(wire.into(), out);
        }
    }

    /// Whether there was a handshake, and bytes received and sent.
    pub(super) fn stats(&self) -> (bool, u64, u64) {
        let (handshake, sent, received, _, _) = self.noise.stats();
        let bytes = |count| u64::try_from(count).unwrap_or(u64::MAX);
        (handshake.is_some(), bytes(received), bytes(sent))
    }

    fn emit(&self, wire: Packet, out: &mut Outbox) {
        out.push(Datagram {
            own: self.own,
            far: self.far,
            bytes: wire.to_vec(),
        });
    }
}
