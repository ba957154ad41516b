//! WireGuard in the kernel, programmed over netlink.

mod gate;
mod packet_socket;
mod wireguard;

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lisp_proto::PublicKey;

use crate::error::{CREATING, DeviceError};
use crate::link_guard::{LinkGuard, NameClaim};
use crate::netlink::link::{Link, Links};
use crate::table::AllowedIpsChange;
use crate::types::{DeviceConfig, PeerSpec, PeerStats};
use gate::Gate;
use packet_socket::PacketSocket;
pub(crate) use packet_socket::link_address;
use wireguard::{Peer, WireGuard};

/// One kernel WireGuard interface.
#[derive(Debug)]
pub(crate) struct Kernel {
    changes: Mutex<WireGuard>,
    /// Its own socket: reading many peers takes long, and changes shall not wait for it.
    reads: Reads,
    packets: PacketSocket,
    /// `None` where the kernel cannot keep packets waiting.
    gate: Option<Mutex<Gate>>,
    listen_port: u16,
}

/// Reads the peers of one kernel interface.
#[derive(Clone, Debug)]
pub(crate) struct Reads(Arc<Mutex<WireGuard>>);

/// What became of an attempt to make a kernel interface.
pub(crate) enum Made {
    /// The interface is up, with these peers of an earlier run.
    Up(Box<Kernel>, LinkGuard, Vec<PeerSpec>),
    /// This kernel has no WireGuard; nothing was changed.
    Unsupported(NameClaim, Links),
}

impl Kernel {
    /// Makes the interface in the present network namespace, or takes over the one an earlier run
    /// left there; gives it key, port and addresses, brings it up. With `home` the UDP socket of a
    /// new one is in the namespace of those links, and the descriptor is that of the present one.
    pub(crate) fn create(
        config: &DeviceConfig,
        claim: NameClaim,
        mut links: Links,
        home: Option<(Links, RawFd)>,
    ) -> Result<Made, DeviceError> {
        let failed = |source| DeviceError::system(CREATING, &config.name, source);
        let left = leftover(config, &mut links).map_err(failed)?;
        if left.is_none() {
            let created = match home {
                Some((mut home, here)) => {
                    home.create_wireguard(&config.name, config.mtu, Some(here))
                }
                None => links.create_wireguard(&config.name, config.mtu, None),
            };
            match created {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    return Ok(Made::Unsupported(claim, links));
                }
                result => result.map_err(failed)?,
            }
        }
        let link = links.find(&config.name).map_err(failed)?;
        let link = link.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
        let guard = LinkGuard::new(claim, link, links);
        let mut changes = WireGuard::open(link.index).map_err(failed)?;
        let reads = WireGuard::open(link.index).map_err(failed)?;
        let packets = PacketSocket::open(link.index).map_err(failed)?;
        let gate = Gate::put(link.index).map_err(failed)?;
        if gate.is_none() {
            let name = &config.name;
            tracing::warn!(
                name,
                "this kernel has no sch_plug: packets held for a new tunnel may be overtaken"
            );
        }
        let private_key = config.private_key.secret().to_bytes();
        let port_in_use = |error| name_port(error, config.listen_port);
        let configured = |result: io::Result<()>| result.map_err(|e| port_in_use(failed(e)));
        if left.is_some() {
            // What runs through it goes on, also when the rest fails.
            guard.stay();
            tracing::info!(name = config.name, "adopting the interface");
            let before = changes.describe().map_err(failed)?;
            // Setting the key anew would end all sessions.
            let rekeyed = before.public_key != Some(config.private_key.public());
            let moved = config.listen_port != 0 && config.listen_port != before.listen_port;
            configured(changes.configure(
                rekeyed.then_some(private_key),
                moved.then_some(config.listen_port),
                config.mark,
            ))?;
            guard.fit(config.mtu, &config.addresses)?;
        } else {
            let (key, port) = (Some(private_key), Some(config.listen_port));
            configured(changes.configure(key, port, config.mark))?;
            // The kernel binds the port when the interface comes up.
            guard.bring_up(&config.addresses).map_err(port_in_use)?;
        }
        let description = changes.describe().map_err(failed)?;
        let kernel = Self {
            changes: Mutex::new(changes),
            reads: Reads(Arc::new(Mutex::new(reads))),
            packets,
            gate: gate.map(Mutex::new),
            listen_port: description.listen_port,
        };
        let peers = description.peers.into_iter().map(Peer::into_spec);
        Ok(Made::Up(Box::new(kernel), guard, peers.collect()))
    }

    pub(crate) const fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Makes the peers exactly as described, in their order.
    pub(crate) fn set_peers(&self, peers: &[(&PeerSpec, AllowedIpsChange)]) -> io::Result<()> {
        self.changes().set_peers(peers)
    }

    pub(crate) fn remove_peer(&self, key: &PublicKey) -> io::Result<()> {
        self.changes().remove_peer(key)
    }

    pub(crate) fn kick(&self, key: &PublicKey, keepalive: Option<u16>) -> io::Result<()> {
        self.changes().kick(key, keepalive)
    }

    /// What reads the peers.
    pub(crate) fn reads(&self) -> Reads {
        self.reads.clone()
    }

    /// Sends an IP packet out through the interface, as soon as there is room.
    pub(crate) async fn inject(&self, packet: &[u8], name: &str) -> Result<(), DeviceError> {
        self.packets.send(packet).await.map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                let name = name.to_owned();
                return DeviceError::QueueFull { name };
            }
            DeviceError::system(INJECTING, name, source)
        })
    }

    /// Makes packets wait that are sent to the interface; injected ones pass.
    pub(crate) fn pause(&self, paused: bool) -> io::Result<()> {
        let Some(gate) = &self.gate else {
            return Ok(());
        };
        let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        if paused { gate.shut() } else { gate.open() }
    }

    fn changes(&self) -> MutexGuard<'_, WireGuard> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reads {
    pub(crate) async fn peer_stats(&self) -> io::Result<Vec<PeerStats>> {
        let reads = Arc::clone(&self.0);
        let read = tokio::task::spawn_blocking(move || {
            let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
            reads.describe()
        });
        let description = read.await.map_err(io::Error::other)??;
        let peers = description.peers.into_iter();
        Ok(peers.map(|peer| peer.stats).collect())
    }
}

impl Peer {
    fn into_spec(self) -> PeerSpec {
        PeerSpec {
            key: self.stats.key,
            endpoint: self.stats.endpoint,
            allowed_ips: self.allowed_ips,
            keepalive: self.keepalive,
        }
    }
}

/// Finds a WireGuard interface of the wanted name that an earlier run left: kernel interfaces
/// outlive their process. One that is not to be adopted is deleted, one of somebody else stays
/// and is in the way.
///
/// Ours carries the mark, or our key. That nobody uses it is known from the claim on the name,
/// which the caller holds.
fn leftover(config: &DeviceConfig, links: &mut Links) -> io::Result<Option<Link>> {
    let Some(link) = links.find(&config.name)? else {
        return Ok(None);
    };
    let is_ours = link.is_marked
        || (link.is_wireguard
            && WireGuard::open(link.index)?.describe()?.public_key
                == Some(config.private_key.public()));
    if !is_ours {
        return Ok(None);
    }
    if config.adopt && link.is_wireguard {
        return Ok(Some(link));
    }
    tracing::info!(
        name = config.name,
        "removing the interface an earlier run left"
    );
    links.delete(link.index)?;
    Ok(None)
}

/// Says that the port is taken, when that is what went wrong.
fn name_port(error: DeviceError, port: u16) -> DeviceError {
    if let DeviceError::System { name, source, .. } = &error
        && source.kind() == io::ErrorKind::AddrInUse
    {
        let name = name.clone();
        return DeviceError::PortTaken { name, port };
    }
    error
}

const INJECTING: &str = "injecting into interface";
