//! A WireGuard interface, whichever data plane it runs on.

use std::fmt;
use std::io;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use tokio::sync::Mutex;

use crate::counters::{Counters, Source};
use crate::embedded::Embedded;
use crate::error::DeviceError;
use crate::kernel::{Kernel, Made};
use crate::link_guard::{LinkGuard, NameClaim};
use crate::miss_tun::OPENING_NETLINK;
use crate::netlink::link::Links;
use crate::netns::{NetNs, inside};
use crate::table::CryptokeyTable;
use crate::tun;
use crate::types::{Backend, BackendChoice, DeviceConfig, PeerSpec, PeerStats};

/// A WireGuard interface that is up; removed by [`Device::close`], or when dropped, unless it was
/// adopted or told to [`stay`](Device::stay).
///
/// Nobody else may program the interface: it remembers what it was told, and changes only that.
pub struct Device {
    // First: its tasks end before the interface is deleted.
    plane: Plane,
    /// Held over every change, so that what it says and what the interface holds agree.
    table: Mutex<CryptokeyTable>,
    counters: Counters,
    link: LinkGuard,
}

enum Plane {
    Kernel(Box<Kernel>),
    Embedded(Embedded),
}

impl Device {
    /// Creates the interface in the present network namespace, gives it its addresses, brings it up.
    ///
    /// With `config.adopt`, a kernel interface of that name that an earlier run left is taken over:
    /// it keeps its peers with their sessions, and its UDP port if that is not prescribed.
    ///
    /// # Errors
    /// The name or the UDP port is taken, the data plane does not exist here, or CAP_NET_ADMIN is
    /// missing.
    pub async fn create(config: DeviceConfig, choice: BackendChoice) -> Result<Self, DeviceError> {
        Self::create_in(None, config, choice).await
    }

    /// Creates the interface in another network namespace; the UDP socket of its tunnels stays in
    /// the present one.
    ///
    /// # Errors
    /// As [`create`](Self::create), or the namespace cannot be entered.
    pub async fn create_in(
        netns: Option<&NetNs>,
        config: DeviceConfig,
        choice: BackendChoice,
    ) -> Result<Self, DeviceError> {
        let open =
            || Links::open().map_err(|e| DeviceError::system(OPENING_NETLINK, &config.name, e));
        let home = match netns {
            Some(netns) => Some((open()?, netns.descriptor())),
            None => None,
        };
        let made = inside(netns, || {
            let (claim, links) = (NameClaim::take(&config.name)?, open()?);
            if choice == BackendChoice::Embedded {
                return Ok(Made::Unsupported(claim, links));
            }
            Kernel::create(&config, claim, links, home)
        })?;
        let device = match made {
            Made::Up(kernel, link, peers) => Self::new(Plane::Kernel(kernel), link, &peers),
            Made::Unsupported(..) if choice == BackendChoice::Kernel => {
                return Err(DeviceError::NoKernelWireGuard { name: config.name });
            }
            Made::Unsupported(claim, links) => {
                let (tun, link) = inside(netns, || {
                    let (tun, link) = tun::open(claim, links, config.mtu, false)?;
                    link.bring_up(&config.addresses)?;
                    Ok((tun, link))
                })?;
                Self::create_embedded(&config, tun, link).await?
            }
        };
        device.link.settle(&config.addresses).await?;
        Ok(device)
    }

    async fn create_embedded(
        config: &DeviceConfig,
        tun: ::tun::AsyncDevice,
        link: LinkGuard,
    ) -> Result<Self, DeviceError> {
        let embedded = Embedded::start(config, tun, &link).await?;
        Ok(Self::new(Plane::Embedded(embedded), link, &[]))
    }

    fn new(plane: Plane, link: LinkGuard, present: &[PeerSpec]) -> Self {
        let mut table = CryptokeyTable::default();
        for peer in present {
            table.commit(peer);
        }
        let source = match &plane {
            Plane::Kernel(kernel) => Source::Kernel(kernel.reads()),
            Plane::Embedded(embedded) => Source::Embedded(embedded.reads()),
        };
        Self {
            plane,
            table: Mutex::new(table),
            counters: Counters::new(link.name(), source),
            link,
        }
    }

    /// From now on a kernel interface is left in place when this is dropped, and forwards without
    /// this process; an embedded one cannot.
    pub fn stay(&self) {
        match self.plane {
            Plane::Kernel(_) => self.link.stay(),
            Plane::Embedded(_) => {}
        }
    }

    /// Gives the interface these addresses and no others, and waits until they can be used; tunnels
    /// do not notice.
    ///
    /// # Errors
    /// An address is refused, or CAP_NET_ADMIN is missing.
    pub async fn set_addresses(&self, addresses: &[IpNet]) -> Result<(), DeviceError> {
        self.link.set_addresses(addresses)?;
        self.link.settle(addresses).await
    }

    /// Returns which data plane the interface runs on.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self.plane {
            Plane::Kernel(_) => Backend::Kernel,
            Plane::Embedded(_) => Backend::Embedded,
        }
    }

    /// Returns the name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        self.link.name()
    }

    /// Returns the UDP port WireGuard listens on.
    #[must_use]
    pub const fn listen_port(&self) -> u16 {
        match &self.plane {
            Plane::Kernel(kernel) => kernel.listen_port(),
            Plane::Embedded(embedded) => embedded.listen_port(),
        }
    }

    /// Makes the peer exactly as described, whether it exists or not.
    ///
    /// An AllowedIP that another peer holds moves here in one step, without a moment in which it
    /// belongs to neither. An existing session is kept.
    ///
    /// # Errors
    /// The data plane refuses; the call may be repeated.
    pub async fn set_peer(&self, spec: &PeerSpec) -> Result<(), DeviceError> {
        let mut table = self.table.lock().await;
        self.set_one(&mut table, spec).await
    }

    /// Makes many peers exactly as described, one after the other in their order, as
    /// [`set_peer`](Self::set_peer) does; the kernel gets as many in one message as it takes.
    ///
    /// Returns what became of each, in the same order. When the kernel refuses one of many, all are
    /// set once more on their own.
    pub async fn set_peers(&self, specs: &[PeerSpec]) -> Vec<Result<(), DeviceError>> {
        let mut table = self.table.lock().await;
        if let Plane::Kernel(kernel) = &self.plane
            && specs.len() > 1
        {
            match set_together(kernel, &mut table, specs) {
                Ok(()) => return specs.iter().map(|_| Ok(())).collect(),
                Err(error) => tracing::debug!(%error, "peers are set one by one"),
            }
        }
        let mut results = Vec::with_capacity(specs.len());
        for spec in specs {
            results.push(self.set_one(&mut table, spec).await);
        }
        results
    }

    async fn set_one(
        &self,
        table: &mut CryptokeyTable,
        spec: &PeerSpec,
    ) -> Result<(), DeviceError> {
        let Some(change) = table.plan(spec) else {
            return Ok(());
        };
        let result = match &self.plane {
            Plane::Kernel(kernel) => kernel
                .set_peers(&[(spec, change)])
                .map_err(|e| self.error(SETTING_PEER, e)),
            Plane::Embedded(embedded) => embedded
                .set_peer(spec, table.len())
                .await
                .map_err(|e| self.error(SETTING_PEER, io::Error::other(e))),
        };
        match &result {
            Ok(()) => table.commit(spec),
            Err(_) => table.doubt(table.touched(spec)),
        }
        result
    }

    /// Lists the peers of the interface, those of an earlier run included, in no particular order.
    pub async fn peers(&self) -> Vec<PublicKey> {
        self.table.lock().await.keys().copied().collect()
    }

    /// Removes a peer; one that is not there is no error.
    ///
    /// # Errors
    /// The data plane refuses; the call may be repeated.
    pub async fn remove_peer(&self, key: &PublicKey) -> Result<(), DeviceError> {
        let mut table = self.table.lock().await;
        match &self.plane {
            Plane::Kernel(kernel) => kernel
                .remove_peer(key)
                .map_err(|e| self.error(REMOVING_PEER, e))?,
            Plane::Embedded(embedded) => embedded
                .remove_peer(key)
                .await
                .map_err(|e| self.error(REMOVING_PEER, io::Error::other(e)))?,
        }
        table.remove(key);
        self.counters.forget(key);
        Ok(())
    }

    /// Reads what the data plane knows about every peer, in no particular order.
    ///
    /// # Errors
    /// The data plane refuses.
    pub async fn peer_stats(&self) -> Result<Vec<PeerStats>, DeviceError> {
        self.counters.all().await
    }

    /// Returns what reads the counters of the peers, beside everything else.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Makes this side start a handshake now, unless there is a session; does not wait for it.
    ///
    /// # Errors
    /// The peer was never set.
    pub async fn kick(&self, key: &PublicKey) -> Result<(), DeviceError> {
        let table = self.table.lock().await;
        let Some(keepalive) = table.keepalive(key) else {
            let name = self.name().to_owned();
            return Err(DeviceError::UnknownPeer { name, key: *key });
        };
        match &self.plane {
            Plane::Kernel(kernel) => kernel
                .kick(key, keepalive)
                .map_err(|e| self.error("starting a handshake on interface", e))?,
            Plane::Embedded(embedded) => embedded.kick(key),
        }
        Ok(())
    }

    /// Makes this side start a handshake as [`kick`](Self::kick) does, and returns what waits for
    /// a session, and gives up in the end; `None` where the data plane cannot tell.
    #[must_use]
    pub fn handshake(&self, key: &PublicKey) -> Option<impl Future<Output = bool> + Send + use<>> {
        match &self.plane {
            Plane::Kernel(_) => None,
            Plane::Embedded(embedded) => Some(embedded.handshake(key)),
        }
    }

    /// Sends an IP packet out through the interface, before anything that is read from it later.
    ///
    /// Packets injected one after the other leave in that order. Routes do not matter, AllowedIPs
    /// do. Where packets are injected faster than they are encrypted, this waits, a moment at most.
    ///
    /// # Errors
    /// The bytes are not an IP packet, or nothing leaves the queue, which is full.
    pub async fn inject(&self, packet: &[u8]) -> Result<(), DeviceError> {
        if !is_ip(packet) {
            let name = self.name().to_owned();
            return Err(DeviceError::NotIp { name });
        }
        match &self.plane {
            Plane::Kernel(kernel) => kernel.inject(packet, self.name()).await,
            Plane::Embedded(embedded) => embedded.inject(packet, self.name()),
        }
    }

    /// Stops reading the interface: what is sent to it waits, injected packets pass.
    ///
    /// A moment only: what waits is bounded. A kernel without the queueing discipline `plug`
    /// does nothing here.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Reads the interface again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        match &self.plane {
            Plane::Kernel(kernel) => {
                if let Err(error) = kernel.pause(paused) {
                    let name = self.name();
                    tracing::warn!(name, paused, %error, "packets may be overtaken, or wait");
                }
            }
            Plane::Embedded(embedded) => embedded.pause(paused),
        }
    }

    /// Stops the data plane and removes the interface, whether it was to stay or not; done when
    /// this returns.
    pub async fn close(self) {
        match self.plane {
            Plane::Kernel(_) => {}
            Plane::Embedded(embedded) => embedded.stop().await,
        }
        self.link.remove();
    }

    fn error(&self, action: &'static str, source: io::Error) -> DeviceError {
        DeviceError::system(action, self.name(), source)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self.name(), self.backend())
    }
}

/// Sets all of `specs`, or leaves it open which of them are set.
fn set_together(kernel: &Kernel, table: &mut CryptokeyTable, specs: &[PeerSpec]) -> io::Result<()> {
    let touched = specs.iter().flat_map(|spec| table.touched(spec)).collect();
    let mut changes = Vec::with_capacity(specs.len());
    for spec in specs {
        if let Some(change) = table.plan(spec) {
            changes.push((spec, change));
            // What the next one needs depends on it.
            table.commit(spec);
        }
    }
    kernel
        .set_peers(&changes)
        .inspect_err(|_| table.doubt(touched))
}

/// Whether the bytes begin with a whole IPv4 or IPv6 header.
fn is_ip(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.len() >= 20,
        Some(6) => packet.len() >= 40,
        _ => false,
    }
}

const SETTING_PEER: &str = "setting a peer of interface";
const REMOVING_PEER: &str = "removing a peer of interface";
