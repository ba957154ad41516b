//! The interfaces of the agent: control tunnel, data plane, miss catcher, and the routes between them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use lisp_proto::PublicKey;
use serde_json::json;
use tokio::net::UdpSocket;
use tracing::warn;
use wg_device::{
    Backend, Device, DeviceConfig, DeviceError, MissTun, PeerSpec, PrivateKey, RouteSpec, Routes,
    bind_control_socket,
};

use super::Keys;
use crate::agent::{Agent, Change, PeerStats};
use crate::config::{Access, Config};

/// Metric of the routes that catch: any other route to the same prefix wins.
const MISS_METRIC: u32 = 8_192;
/// Metric of the routes past the agent.
const DATA_METRIC: u32 = 512;
/// Keeps the way to the map server open through stateful firewalls, seconds.
const CONTROL_KEEPALIVE_S: u16 = 25;

/// Everything the agent made on this host.
pub(super) struct Interfaces {
    pub(super) control: UdpSocket,
    control_tunnel: Option<(Device, PeerSpec)>,
    pub(super) data: Device,
    pub(super) miss: MissTun,
    routes: Routes,
    sources: Vec<IpAddr>,
}

impl Interfaces {
    /// Makes the interfaces and routes; what was made goes again on an error.
    pub(super) async fn create(
        config: &Config,
        keys: Keys,
        control_address: IpAddr,
    ) -> Result<Self> {
        let server = config.map_server.address;
        let routes = Routes::new().context("no access to the routing tables")?;
        let control_tunnel = match &config.map_server.access {
            Access::Tunnel {
                public_key,
                endpoint,
                ..
            } => {
                let peer = PeerSpec {
                    key: *public_key,
                    endpoint: Some(*endpoint),
                    allowed_ips: vec![IpNet::from(server.ip())],
                    keepalive: Some(CONTROL_KEEPALIVE_S),
                };
                let address = IpNet::from(control_address);
                let device = control_tunnel(config, keys.control, address, &peer).await?;
                let to_server = RouteSpec {
                    prefix: IpNet::from(server.ip()),
                    device: device.name().to_owned(),
                    metric: DATA_METRIC,
                    source: Some(control_address),
                };
                routes.add(&to_server)?;
                Some((device, peer))
            }
            Access::Plain { .. } => None,
        };
        let bind = SocketAddr::new(control_address, server.port());
        let device = control_tunnel.as_ref().map(|(device, _)| device.name());
        let control = bind_control_socket(bind, device)
            .with_context(|| format!("control socket on {bind}"))?;
        let sources = host_addresses(&config.eid_prefixes);
        let data = Device::create(
            DeviceConfig {
                name: config.interfaces.data.clone(),
                private_key: keys.data,
                listen_port: config.listen_port,
                mtu: config.mtu,
                addresses: sources.iter().map(|addr| IpNet::from(*addr)).collect(),
                adopt: false,
            },
            config.data_plane,
        )
        .await?;
        let miss = MissTun::create(&config.interfaces.miss, config.mtu, false)?;
        let made = Self {
            control,
            control_tunnel,
            data,
            miss,
            routes,
            sources,
        };
        for prefix in &config.overlay {
            let source = made.source(prefix);
            let catch = RouteSpec {
                prefix: *prefix,
                device: made.miss.name().to_owned(),
                metric: MISS_METRIC,
                source,
            };
            made.routes.add(&catch)?;
        }
        Ok(made)
    }

    /// Talks to the map server from another address of this host; only where there is no control
    /// tunnel, which follows by itself.
    ///
    /// # Errors
    /// The address cannot be used, or not yet.
    pub(super) fn move_control(&mut self, rlocs: &[IpAddr]) -> io::Result<()> {
        let now = self.control.local_addr()?;
        let like_now = |rloc: &&IpAddr| rloc.is_ipv4() == now.is_ipv4();
        let moved = rlocs.iter().find(like_now);
        if self.control_tunnel.is_none()
            && !rlocs.contains(&now.ip())
            && let Some(rloc) = moved
        {
            self.control = bind_control_socket(SocketAddr::new(*rloc, now.port()), None)?;
        }
        Ok(())
    }

    /// What carries the data.
    pub(super) fn backend(&self) -> Backend {
        self.data.backend()
    }

    /// Carries out one change.
    pub(super) async fn apply(&mut self, change: &Change) -> Result<(), DeviceError> {
        match change {
            Change::SetPeer(spec) => {
                let spec = PeerSpec {
                    key: spec.key,
                    endpoint: spec.endpoint,
                    allowed_ips: spec.allowed_ips.clone(),
                    keepalive: None,
                };
                self.data.set_peer(&spec).await
            }
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

    fn data_route(&self, prefix: &IpNet) -> RouteSpec {
        RouteSpec {
            prefix: *prefix,
            device: self.data.name().to_owned(),
            metric: DATA_METRIC,
            source: self.source(prefix),
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

    /// Forgets the session with the map server at `index`; the next datagram makes a new one.
    pub(super) async fn renew_control_tunnel(&self, index: usize) {
        // There is one map server.
        let Some((device, peer)) = self.control_tunnel.as_ref().filter(|_| index == 0) else {
            return;
        };
        let renewed = async {
            device.remove_peer(&peer.key).await?;
            device.set_peer(peer).await
        };
        if let Err(error) = renewed.await {
            warn!(%error, "control tunnel not renewed");
        }
    }

    pub(super) async fn kick(&mut self, key: &PublicKey) {
        if let Err(error) = self.data.kick(key).await {
            warn!(key = %key.short(), %error, "handshake not started");
        }
    }

    pub(super) fn inject(&mut self, packet: &[u8]) {
        if let Err(error) = self.data.inject(packet) {
            warn!(%error, "held packet not sent");
        }
    }

    pub(super) async fn deliver(&mut self, packet: &[u8]) {
        if let Err(error) = self.miss.send(packet).await {
            warn!(%error, "ICMP error not delivered");
        }
    }

    pub(super) async fn stats(&mut self, keys: &[PublicKey]) -> Vec<PeerStats> {
        let found = match self.data.stats_of(keys).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "counters not read");
                return Vec::new();
            }
        };
        found
            .iter()
            .map(|peer| PeerStats {
                key: peer.key,
                handshake_seen: peer.since_handshake.is_some(),
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            })
            .collect()
    }

    /// How many peers the data plane has, and what it measured of each, as JSON.
    pub(super) async fn describe_peers(&mut self, agent: &Agent) -> (usize, String) {
        let stats = self.data.peer_stats().await.unwrap_or_default();
        let mut wanted: HashMap<PublicKey, Vec<IpNet>> = agent
            .peers()
            .map(|peer| (peer.key, peer.allowed_ips))
            .collect();
        let peers: Vec<_> = stats
            .iter()
            .map(|peer| {
                json!({
                    "key": peer.key.to_string(),
                    "eids": wanted.remove(&peer.key).unwrap_or_default(),
                    "endpoint": peer.endpoint,
                    "since_handshake_ms": peer.since_handshake.map(|since| since.as_millis()),
                    "rx_bytes": peer.rx_bytes,
                    "tx_bytes": peer.tx_bytes,
                })
            })
            .collect();
        (peers.len(), json!(peers).to_string())
    }

    /// Removes everything that `create` and `apply` made.
    pub(super) async fn close(self) {
        let Self {
            control,
            control_tunnel,
            data,
            miss,
            routes,
            sources: _,
        } = self;
        drop(control);
        drop(miss);
        drop(routes);
        data.close().await;
        if let Some((device, _)) = control_tunnel {
            device.close().await;
        }
    }
}

/// The tunnel to the map server, with the map server as its only peer.
async fn control_tunnel(
    config: &Config,
    private_key: PrivateKey,
    address: IpNet,
    peer: &PeerSpec,
) -> Result<Device, DeviceError> {
    let wanted = DeviceConfig {
        name: config.interfaces.control.clone(),
        private_key,
        listen_port: 0,
        mtu: config.mtu,
        addresses: vec![address],
        adopt: false,
    };
    let device = Device::create(wanted, config.data_plane).await?;
    device.set_peer(peer).await?;
    Ok(device)
}

fn host_addresses(prefixes: &[IpNet]) -> Vec<IpAddr> {
    prefixes
        .iter()
        .filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len())
        .map(IpNet::addr)
        .collect()
}
