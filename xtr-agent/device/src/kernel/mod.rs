//! WireGuard in the kernel, programmed over netlink.

mod gate;
mod packet_socket;
mod wireguard;

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lisp_proto::PublicKey;

use crate::error::{CREATING, DeviceError};
use crate::link_guard::{BRINGING_UP, LinkGuard, NameClaim};
use crate::netlink::link::Links;
use crate::table::AllowedIpsChange;
use crate::types::{DeviceConfig, PeerSpec, PeerStats};
use gate::Gate;
use packet_socket::PacketSocket;
use wireguard::WireGuard;

/// One kernel WireGuard interface.
#[derive(Debug)]
pub(crate) struct Kernel {
    changes: Mutex<WireGuard>,
    /// Its own socket: reading many peers takes long, and changes shall not wait for it.
    reads: Arc<Mutex<WireGuard>>,
    packets: PacketSocket,
    /// `None` where the kernel cannot keep packets waiting.
    gate: Option<Mutex<Gate>>,
    listen_port: u16,
}

/// What became of an attempt to make a kernel interface.
pub(crate) enum Made {
    /// The interface is up.
    Up(Box<Kernel>, LinkGuard),
    /// This kernel has no WireGuard; nothing was changed.
    Unsupported(NameClaim, Links),
}

impl Kernel {
    /// Makes the interface in the present network namespace, gives it key, port and addresses,
    /// brings it up. With `home` its UDP socket is in the namespace of those links, and the
    /// descriptor is that of the present one.
    pub(crate) fn create(
        config: &DeviceConfig,
        claim: NameClaim,
        mut links: Links,
        home: Option<(Links, RawFd)>,
    ) -> Result<Made, DeviceError> {
        let failed = |source| DeviceError::system(CREATING, &config.name, source);
        remove_leftover(config, &mut links).map_err(failed)?;
        let created = match home {
            Some((mut home, here)) => home.create_wireguard(&config.name, config.mtu, Some(here)),
            None => links.create_wireguard(&config.name, config.mtu, None),
        };
        match created {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok(Made::Unsupported(claim, links));
            }
            result => result.map_err(failed)?,
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
        changes
            .configure(config.private_key.secret().to_bytes(), config.listen_port)
            .map_err(failed)?;
        // The kernel binds the port when the interface comes up.
        guard.bring_up(&config.addresses).map_err(|error| {
            let DeviceError::System { name, source, .. } = error else {
                return error;
            };
            if source.kind() == io::ErrorKind::AddrInUse {
                let port = config.listen_port;
                return DeviceError::PortTaken { name, port };
            }
            DeviceError::system(BRINGING_UP, &name, source)
        })?;
        let listen_port = changes.describe().map_err(failed)?.listen_port;
        let kernel = Self {
            changes: Mutex::new(changes),
            reads: Arc::new(Mutex::new(reads)),
            packets,
            gate: gate.map(Mutex::new),
            listen_port,
        };
        Ok(Made::Up(Box::new(kernel), guard))
    }

    pub(crate) const fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Makes the peer exactly as described.
    pub(crate) fn set_peer(&self, spec: &PeerSpec, change: AllowedIpsChange) -> io::Result<()> {
        self.changes().set_peer(spec, change)
    }

    pub(crate) fn remove_peer(&self, key: &PublicKey) -> io::Result<()> {
        self.changes().remove_peer(key)
    }

    pub(crate) fn kick(&self, key: &PublicKey, keepalive: Option<u16>) -> io::Result<()> {
        self.changes().kick(key, keepalive)
    }

    pub(crate) async fn peer_stats(&self) -> io::Result<Vec<PeerStats>> {
        let reads = Arc::clone(&self.reads);
        let read = tokio::task::spawn_blocking(move || {
            let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
            reads.describe()
        });
        let description = read.await.map_err(io::Error::other)??;
        Ok(description.peers)
    }

    /// Sends an IP packet out through the interface at once.
    pub(crate) fn inject(&self, packet: &[u8], name: &str) -> Result<(), DeviceError> {
        self.packets.send(packet).map_err(|source| {
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

/// Deletes an interface of the wanted name and key: kernel interfaces outlive a killed process.
///
/// That nobody uses it is known from the claim on the name, which the caller holds.
fn remove_leftover(config: &DeviceConfig, links: &mut Links) -> io::Result<()> {
    let Some(link) = links.find(&config.name)?.filter(|link| link.is_wireguard) else {
        return Ok(());
    };
    let key = WireGuard::open(link.index)?.describe()?.public_key;
    if key == Some(config.private_key.public()) {
        tracing::info!(
            name = config.name,
            "removing the interface a killed process left"
        );
        links.delete(link.index)?;
    }
    Ok(())
}

const INJECTING: &str = "injecting into interface";
