//! What one instance has on this host: data interface, miss catcher, and the routes into both.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use lisp_proto::PublicKey;
use tracing::{info, warn};
use wg_device::{
    Backend, Device, DeviceConfig, DeviceError, MissTun, NetNs, OverlayRules, PeerSpec, PrivateKey,
    RouteSpec, Routes, Sources,
};

use super::forwarding::Forwarding;
use crate::agent::limits::KEEPALIVE_S;
use crate::agent::{self, Change};
use crate::config::{Config, Instance};

/// Metric of the routes that catch: any other route to the same prefix wins.
const MISS_METRIC: u32 = 8_192;
/// Metric of the routes past the agent.
pub(super) const DATA_METRIC: u32 = 512;

/// Everything the agent made on this host for one instance.
pub(super) struct DataPlane {
    pub(super) data: Device,
    pub(super) miss: MissTun,
    routes: Routes,
    sources: Vec<IpAddr>,
    /// Where the routes are.
    table: u32,
    /// Where the overlay is everything.
    rules: Option<OverlayRules>,
    forwarding: Forwarding,
    /// The latest packet was refused, and that was said.
    refusing: bool,
}

impl DataPlane {
    /// Makes the interfaces and routes; what was made goes again on an error.
    pub(super) async fn create(
        config: &Config,
        instance: &Instance,
        private_key: PrivateKey,
        answers_from: Option<Sources>,
    ) -> Result<Self> {
        let netns = instance.netns.as_deref().map(NetNs::open).transpose()?;
        let forwarding = Forwarding::prepare(instance, netns, &config.state_dir)?;
        let netns = forwarding.netns();
        let routes = Routes::new_in(netns).context("no access to the routing tables")?;
        let sources = host_addresses(&instance.eid_prefixes);
        let wanted = DeviceConfig {
            name: instance.interfaces.data.clone(),
            private_key,
            listen_port: instance.listen_port,
            mtu: instance.mtu,
            mark: config.mark(),
            sources: answers_from,
            addresses: sources.iter().map(|addr| IpNet::from(*addr)).collect(),
            adopt: true,
        };
        let data = Device::create_in(netns, wanted, config.data_plane).await?;
        // Where tunnels outlive us, packets to unknown destinations must not leave in the clear
        // meanwhile.
        let outlives = data.backend() == Backend::Kernel;
        let miss = MissTun::create_in(netns, &instance.interfaces.miss, instance.mtu, outlives)?;
        for name in [data.name(), miss.name()] {
            routes.adopt(name)?;
        }
        let mut made = Self {
            data,
            miss,
            routes,
            sources,
            table: instance.table,
            rules: None,
            forwarding,
            refusing: false,
        };
        for prefix in &instance.overlay {
            made.routes.add(&made.catch_route(prefix))?;
        }
        if instance.is_everything {
            made.rules = Some(OverlayRules::add()?);
            warn_of_strict_filters();
        }
        Ok(made)
    }

    /// Takes over what `instance` says about the overlay and what lives here; tunnels do not notice.
    /// There is no moment in which packets to the overlay find no route of ours.
    ///
    /// # Errors
    /// An address or a route is refused; what was done by then stays.
    pub(super) async fn move_house(&mut self, instance: &Instance) -> Result<(), DeviceError> {
        let wanted = host_addresses(&instance.eid_prefixes);
        let as_nets = |addresses: &[IpAddr]| -> Vec<IpNet> {
            addresses.iter().map(|addr| IpNet::from(*addr)).collect()
        };
        // With an address go the routes that name it as their source.
        let mut both = self.sources.clone();
        both.extend(wanted.iter().filter(|addr| !self.sources.contains(addr)));
        self.data.set_addresses(&as_nets(&both)).await?;
        self.sources = wanted;
        for prefix in &instance.overlay {
            self.routes.replace(&self.catch_route(prefix))?;
        }
        for route in self.routes.through(self.data.name()) {
            self.routes.replace(&self.data_route(&route.prefix))?;
        }
        for route in self.routes.through(self.miss.name()) {
            if !instance.overlay.contains(&route.prefix) {
                self.routes.remove(&route)?;
            }
        }
        self.data.set_addresses(&as_nets(&self.sources)).await
    }

    fn catch_route(&self, prefix: &IpNet) -> RouteSpec {
        RouteSpec {
            prefix: *prefix,
            device: self.miss.name().to_owned(),
            metric: MISS_METRIC,
            source: self.source(prefix),
            table: self.table,
        }
    }

    /// From now on interfaces and routes are left in place for the next run, where the kernel has
    /// the tunnels.
    pub(super) fn stay(&self) {
        if self.backend() == Backend::Kernel {
            self.data.stay();
            self.miss.stay();
            if let Some(rules) = &self.rules {
                rules.stay();
            }
            self.forwarding.stay();
        }
    }

    /// Removes what an earlier run left and `wanted` does not name: routes first.
    pub(super) async fn remove_strays(&self, wanted: &HashSet<PublicKey>) {
        match self.routes.remove_stale() {
            Ok(0) => {}
            Ok(routes) => info!(event = "strays_removed", routes),
            Err(error) => warn!(%error, "routes of an earlier run not removed"),
        }
        for key in self.data.peers().await {
            if wanted.contains(&key) {
                continue;
            }
            match self.data.remove_peer(&key).await {
                Ok(()) => info!(event = "stray_removed", key = %key.short()),
                Err(error) => warn!(%error, "peer of an earlier run not removed"),
            }
        }
    }

    /// The network namespace of all this; `None`: that of the agent.
    pub(super) fn netns(&self) -> Option<&NetNs> {
        self.forwarding.netns()
    }

    /// What carries the data.
    pub(super) fn backend(&self) -> Backend {
        self.data.backend()
    }

    /// Carries out one change.
    pub(super) async fn apply(&mut self, change: &Change) -> Result<(), DeviceError> {
        match change {
            Change::SetPeer(spec) => self.data.set_peer(&peer(spec)).await,
            Change::RemovePeer(key) => self.data.remove_peer(key).await,
            Change::AddRoute(prefix) => {
                let route = self.data_route(prefix);
                self.routes.add(&route)
            }
            Change::RemoveRoute(prefix) => {
                let route = self.data_route(prefix);
                self.routes.remove(&route)
            }
        }
    }

    /// Sets peers in their order: what became of each.
    pub(super) async fn set_peers(
        &self,
        specs: impl Iterator<Item = &agent::PeerSpec>,
    ) -> Vec<Result<(), DeviceError>> {
        let specs: Vec<_> = specs.map(peer).collect();
        self.data.set_peers(&specs).await
    }

    /// Whether packets to `prefix` pass the agent already.
    pub(super) fn has_route(&self, prefix: &IpNet) -> bool {
        self.routes.has(&self.data_route(prefix))
    }

    fn data_route(&self, prefix: &IpNet) -> RouteSpec {
        RouteSpec {
            prefix: *prefix,
            device: self.data.name().to_owned(),
            metric: DATA_METRIC,
            source: self.source(prefix),
            table: self.table,
        }
    }

    /// The EID that local packets to `prefix` shall come from.
    fn source(&self, prefix: &IpNet) -> Option<IpAddr> {
        let family = prefix.addr().is_ipv4();
        self.sources
            .iter()
            .copied()
            .find(|addr| addr.is_ipv4() == family)
    }

    pub(super) async fn kick(&mut self, key: &PublicKey) {
        if let Err(error) = self.data.kick(key).await {
            warn!(key = %key.short(), %error, "handshake not started");
        }
    }

    /// Sends a packet out through the data interface; says whether that was taken. The log has the
    /// first of those that were not.
    pub(super) async fn inject(&mut self, packet: &[u8]) -> bool {
        let sent = self.data.inject(packet).await;
        if let Err(error) = &sent
            && !self.refusing
        {
            warn!(%error, "held packets not sent");
        }
        self.refusing = sent.is_err();
        sent.is_ok()
    }

    pub(super) async fn deliver(&mut self, packet: &[u8]) {
        if let Err(error) = self.miss.send(packet).await {
            warn!(%error, "ICMP error not delivered");
        }
    }

    /// Removes everything that `create` and `apply` made.
    pub(super) async fn close(self) {
        let Self {
            data,
            miss,
            routes,
            sources: _,
            table: _,
            rules,
            forwarding,
            refusing: _,
        } = self;
        if let Some(rules) = rules {
            rules.remove();
        }
        miss.close();
        drop(routes);
        data.close().await;
        forwarding.remove();
    }
}

/// Says what to do where the kernel drops what it would not answer through the same interface: it
/// looks for the way back without the mark of the tunnels, and finds the overlay.
fn warn_of_strict_filters() {
    let filter = |name: &OsStr| {
        let path = Path::new("/proc/sys/net/ipv4/conf")
            .join(name)
            .join("rp_filter");
        let value = fs::read_to_string(path).ok()?;
        value.trim().parse::<u8>().ok()
    };
    let all = filter(OsStr::new("all")).unwrap_or(0);
    let interfaces = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter();
    for interface in interfaces.flatten().flatten() {
        let name = interface.file_name();
        let is_one = name != "all" && name != "default" && name != "lo";
        // The greater one of both counts.
        if is_one && filter(&name).is_some_and(|own| own.max(all) == 1) {
            let remedy = "run `sysctl net.ipv4.conf.all.rp_filter=2`, which is enough for all";
            let interface = name.display();
            warn!(event = "strict_rp_filter", %interface, remedy);
            return;
        }
    }
}

fn peer(spec: &agent::PeerSpec) -> PeerSpec {
    PeerSpec {
        key: spec.key,
        endpoint: spec.endpoint,
        allowed_ips: spec.allowed_ips.clone(),
        keepalive: spec.keep_open.then_some(KEEPALIVE_S),
    }
}

fn host_addresses(prefixes: &[IpNet]) -> Vec<IpAddr> {
    prefixes
        .iter()
        .filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len())
        .map(IpNet::addr)
        .collect()
}
