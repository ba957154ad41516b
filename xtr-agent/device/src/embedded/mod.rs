//! WireGuard in this process: gotatun over a TUN interface.
//!
//! Facts about gotatun 0.10 the code below rests on:
//! - A device built without peers has no socket, and adding a peer opens none; setting the private
//!   key does. Adding, changing and removing peers leaves sockets and sessions alone.
//! - An AllowedIP that moves to another peer stays in the old peer's own list, and changing the
//!   old peer in any way would take it back. So a peer is always changed with its whole list.
//! - Changes happen under a lock that packets take too: between two packets, never during one.

mod packet_io;
mod pins;
mod udp;

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gotatun::device::{Device, DeviceBuilder, Error, Peer};
use gotatun::noise::TimerParams;
use gotatun::packet::Packet;
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use lisp_proto::PublicKey;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::error::DeviceError;
use crate::link_guard::{BRINGING_UP, LinkGuard};
use crate::types::{DeviceConfig, PeerSpec, PeerStats};
use packet_io::{TunReader, TunWriter};
pub use pins::Sources;
use pins::plain;
use udp::RoomySockets;

type Gotatun = Device<(RoomySockets, TunWriter, TunReader)>;

/// Reads the peers of one interface, and does not keep it running.
#[derive(Clone)]
pub(crate) struct Reads(Weak<Gotatun>);

/// One interface of the embedded data plane.
pub(crate) struct Embedded {
    device: Arc<Gotatun>,
    injected: mpsc::Sender<Packet<gotatun::packet::Ip>>,
    paused: watch::Sender<bool>,
    listen_port: u16,
}

impl Embedded {
    /// Starts WireGuard between `tun` and a UDP socket of its own.
    pub(crate) async fn start(
        config: &DeviceConfig,
        tun: tun::AsyncDevice,
        link: &LinkGuard,
    ) -> Result<Self, DeviceError> {
        if config.mtu > MAX_MTU {
            return Err(DeviceError::MtuTooLarge {
                name: link.name().to_owned(),
                mtu: config.mtu,
                limit: MAX_MTU,
            });
        }
        let tun = Arc::new(tun);
        let (injected, injected_packets) = mpsc::channel(INJECTED_PACKETS);
        let (paused, paused_now) = watch::channel(false);
        let reader = TunReader {
            tun: Arc::clone(&tun),
            injected: injected_packets,
            paused: paused_now,
            mtu: config.mtu,
            held: None,
        };
        let failed = |error| failed_to_start(error, config, link.name());
        let pins = config.sources.as_ref().map(|it| Arc::clone(&it.0));
        let builder = DeviceBuilder::new()
            .with_udp(RoomySockets::new(pins))
            .with_ip_pair(TunWriter(tun), reader)
            .with_listen_port(config.listen_port)
            .with_fwmark(config.mark);
        let device = builder.build().await.map_err(failed)?;
        let secret = config.private_key.secret();
        device.set_private_key(secret).await.map_err(failed)?;
        let listen_port = device.read(async |device| device.listen_port()).await;
        Ok(Self {
            device: Arc::new(device),
            injected,
            paused,
            listen_port,
        })
    }

    pub(crate) const fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Makes the peer exactly as described, one beside so many others if it is new.
    pub(crate) async fn set_peer(&self, spec: &PeerSpec, others: u32) -> Result<(), Error> {
        let key = x25519::PublicKey::from(spec.key.0);
        let allowed_ips: Vec<IpNetwork> = spec.allowed_ips.iter().map(network).collect();
        self.device
            .write(async |device| {
                let known = device
                    .modify_peer(&key, |peer| {
                        peer.clear_allowed_ips();
                        peer.add_allowed_ips(allowed_ips.iter().copied());
                        peer.set_keepalive(spec.keepalive);
                        if spec.endpoint.is_some() {
                            peer.set_endpoint(spec.endpoint);
                        }
                    })
                    .await;
                if !known {
                    let mut peer = Peer::new(key)
                        .with_allowed_ips(allowed_ips.iter().copied())
                        .dangerously_with_timer_params(timers(others));
                    peer.endpoint = spec.endpoint;
                    peer.keepalive = spec.keepalive;
                    device.add_peer(peer);
                }
            })
            .await
    }

    pub(crate) async fn remove_peer(&self, key: &PublicKey) -> Result<(), Error> {
        let key = x25519::PublicKey::from(key.0);
        self.device.remove_peer(&key).await?;
        Ok(())
    }

    /// What reads the peers.
    pub(crate) fn reads(&self) -> Reads {
        Reads(Arc::downgrade(&self.device))
    }

    /// Sends an initiation unless there is a session or an initiation on its way; does not wait.
    pub(crate) fn kick(&self, key: &PublicKey) {
        tokio::spawn(self.handshake_within(key, KICK_WAIT));
    }

    /// The same, and waits for a session with the peer as it is now; returns whether there is one.
    pub(crate) fn handshake(&self, key: &PublicKey) -> impl Future<Output = bool> + Send + use<> {
        self.handshake_within(key, HANDSHAKE_WAIT)
    }

    fn handshake_within(
        &self,
        key: &PublicKey,
        wait: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        let device = Arc::clone(&self.device);
        let key = *key;
        async move {
            let dh_key = x25519::PublicKey::from(key.0);
            let handshake = device.force_handshake(&dh_key);
            // gotatun repeats the initiation by itself; only this wait is bounded.
            match tokio::time::timeout(wait, handshake).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::debug!(key = key.short(), %error, "no handshake");
                    false
                }
                Err(_) => false,
            }
        }
    }

    /// Queues a packet before everything that is read from the interface from now on.
    pub(crate) fn inject(&self, packet: &[u8], name: &str) -> Result<(), DeviceError> {
        let name = || name.to_owned();
        let packet = Packet::copy_from(packet)
            .try_into_ip()
            .map_err(|_| DeviceError::NotIp { name: name() })?;
        self.injected
            .try_send(packet)
            .map_err(|_| DeviceError::QueueFull { name: name() })
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Ends the tasks and closes the sockets.
    pub(crate) async fn stop(self) {
        self.device.suspend().await;
    }
}

impl Reads {
    /// The counters of all peers; none once the data plane was stopped.
    pub(crate) async fn peer_stats(&self) -> Vec<PeerStats> {
        let Some(device) = self.0.upgrade() else {
            return Vec::new();
        };
        let read_at = clock::now();
        let peers = device.peers().await;
        peers
            .into_iter()
            .map(|peer| PeerStats {
                key: PublicKey(peer.peer.public_key.to_bytes()),
                endpoint: peer.peer.endpoint.map(plain),
                since_handshake: peer.stats.last_handshake,
                rx_bytes: peer.stats.rx_bytes as u64,
                tx_bytes: peer.stats.tx_bytes as u64,
                read_at,
            })
            .collect()
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reads(embedded)")
    }
}

fn network(prefix: &IpNet) -> IpNetwork {
    let prefix = prefix.trunc();
    // The lengths of an `IpNet` are always valid ones.
    IpNetwork::new(prefix.addr(), prefix.prefix_len()).unwrap_or_else(|_| prefix.addr().into())
}

/// When an unanswered initiation to one more peer than `others` is repeated.
///
/// A responder ignores an initiation from a key it does not know yet; with WireGuard's five
/// seconds until the next try, an initiation that overtakes the push would cost that much. But all
/// peers may be silent at once, when a link is back or this is a map server that was restarted: if
/// more initiations were due in a second than a processor can make, each answer would come after
/// the initiation that replaced what it answers, and nobody would ever be answered. So the more
/// peers there are, the later: those that are not left to WireGuard's own pace make less than 2,000
/// in a second, all together.
fn timers(others: u32) -> TimerParams {
    let first = (REPEATED_FIRST * (1 + others / 100)).min(REPEATED_LAST);
    TimerParams {
        rekey_timeout: first..=first + REPEATED_SPREAD,
        ..TimerParams::default()
    }
}

fn failed_to_start(error: Error, config: &DeviceConfig, name: &str) -> DeviceError {
    let (Error::Bind(source, _) | Error::IoError(source)) = error else {
        return DeviceError::system(BRINGING_UP, name, io::Error::other(error));
    };
    if source.kind() == io::ErrorKind::AddrInUse {
        let name = name.to_owned();
        let port = config.listen_port;
        return DeviceError::PortTaken { name, port };
    }
    DeviceError::system(BRINGING_UP, name, source)
}

/// Twice what an agent holds for all its destinations together: they may be sent on at once.
/// The queue takes memory for what is in it, not for this bound.
const INJECTED_PACKETS: usize = 32_768;

/// When an initiation is repeated among few peers, and among very many, as WireGuard does.
const REPEATED_FIRST: Duration = Duration::from_millis(300);
const REPEATED_LAST: Duration = Duration::from_secs(5);
/// So much later, by chance: two ends that initiate at once do not do so again.
const REPEATED_SPREAD: Duration = Duration::from_millis(200);

/// As long as packets are held at most (`hold_ms`).
const HANDSHAKE_WAIT: Duration = Duration::from_secs(30);
/// How long the device stays for an initiation whose end nobody waits for.
const KICK_WAIT: Duration = Duration::from_secs(1);

/// gotatun's packet buffers have 4,096 bytes, with header and tag.
const MAX_MTU: u16 = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_peers_the_later_a_silent_one_is_tried_again() {
        let first = |others| *timers(others).rekey_timeout.start();
        assert_eq!(first(0), Duration::from_millis(300));
        assert_eq!(first(99), first(0));
        assert!(first(500) < Duration::from_secs(2));
        assert_eq!(first(20_000), Duration::from_secs(5));
        let rate = |peers| -> f64 { (0..peers).map(|n| 1.0 / first(n).as_secs_f64()).sum() };
        assert!(rate(5_000) < 2_000.0, "{}", rate(5_000));
        let by_itself = |peers: u32| f64::from(peers) / 5.0;
        assert!(
            rate(50_000) < 2_000.0 + by_itself(50_000),
            "{}",
            rate(50_000)
        );
    }
}
