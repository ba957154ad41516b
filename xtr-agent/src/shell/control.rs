//! The way to the map server, which all instances share: its tunnel and its socket.

use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use lisp_proto::Timestamp;
use tokio::net::UdpSocket;
use tracing::warn;
use wg_device::{
    Device, DeviceConfig, DeviceError, MAIN_TABLE, PeerSpec, PrivateKey, RouteSpec, Routes,
    bind_control_socket,
};

use super::data_plane::DATA_METRIC;
use crate::agent::limits::CONTROL_RENEWAL;
use crate::config::{Access, Config};

/// Keeps the way to the map server open through stateful firewalls, seconds.
const CONTROL_KEEPALIVE_S: u16 = 25;

/// The control socket, and the tunnel it is in unless the map server knows none.
pub(super) struct Control {
    pub(super) socket: UdpSocket,
    tunnel: Option<(Device, PeerSpec)>,
    renewed: Option<Timestamp>,
}

impl Control {
    /// Makes the tunnel and the socket in it; what was made goes again on an error.
    pub(super) async fn create(config: &Config, key: PrivateKey, address: IpAddr) -> Result<Self> {
        let server = config.map_server.address;
        let tunnel = match &config.map_server.access {
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
                let device = tunnel(config, key, IpNet::from(address), &peer).await?;
                let to_server = RouteSpec {
                    prefix: IpNet::from(server.ip()),
                    device: device.name().to_owned(),
                    metric: DATA_METRIC,
                    source: Some(address),
                    table: MAIN_TABLE,
                };
                // The route goes with its interface.
                let routes = Routes::new().context("no access to the routing tables")?;
                routes.adopt(device.name())?;
                routes.add(&to_server)?;
                routes.remove_stale()?;
                Some((device, peer))
            }
            Access::Plain { .. } => None,
        };
        let bind = SocketAddr::new(address, server.port());
        let device = tunnel.as_ref().map(|(device, _)| device.name());
        let socket = bind_control_socket(bind, device)
            .with_context(|| format!("control socket on {bind}"))?;
        Ok(Self {
            socket,
            tunnel,
            renewed: None,
        })
    }

    /// Talks to the map server from another address of this host; only where there is no control
    /// tunnel, which follows by itself.
    ///
    /// # Errors
    /// The address cannot be used, or not yet.
    pub(super) fn move_to(&mut self, rlocs: &[IpAddr]) -> io::Result<()> {
        let now = self.socket.local_addr()?;
        let like_now = |rloc: &&IpAddr| rloc.is_ipv4() == now.is_ipv4();
        let moved = rlocs.iter().find(like_now);
        if self.tunnel.is_none()
            && !rlocs.contains(&now.ip())
            && let Some(rloc) = moved
        {
            self.socket = bind_control_socket(SocketAddr::new(*rloc, now.port()), None)?;
        }
        Ok(())
    }

    /// Sends a datagram, or says why not.
    pub(super) async fn send(&self, dst: SocketAddr, bytes: &[u8]) {
        if let Err(error) = self.socket.send_to(bytes, dst).await {
            warn!(%dst, %error, "control datagram not sent");
        }
    }

    /// Forgets the session with the map server at `index`; the next datagram makes a new one.
    ///
    /// Every instance notices a silent map server by itself: one renewal serves them all.
    pub(super) async fn renew(&mut self, now: Timestamp, index: usize) {
        if self.renewed.is_some_and(|at| now - at < CONTROL_RENEWAL) {
            return;
        }
        // There is one map server.
        let Some((device, peer)) = self.tunnel.as_ref().filter(|_| index == 0) else {
            return;
        };
        self.renewed = Some(now);
        let renewed = async {
            device.remove_peer(&peer.key).await?;
            device.set_peer(peer).await
        };
        if let Err(error) = renewed.await {
            warn!(%error, "control tunnel not renewed");
        }
    }

    /// From now on the tunnel is left in place for the next run, where the kernel has it.
    pub(super) fn stay(&self) {
        if let Some((device, _)) = &self.tunnel {
            device.stay();
        }
    }

    /// Removes everything that `create` made.
    pub(super) async fn close(self) {
        drop(self.socket);
        if let Some((device, _)) = self.tunnel {
            device.close().await;
        }
    }
}

/// The tunnel to the map server, with the map server as its only peer.
async fn tunnel(
    config: &Config,
    private_key: PrivateKey,
    address: IpNet,
    peer: &PeerSpec,
) -> Result<Device, DeviceError> {
    let wanted = DeviceConfig {
        name: config.control_interface.clone(),
        private_key,
        listen_port: 0,
        mtu: config.mtu,
        addresses: vec![address],
        adopt: true,
    };
    let device = Device::create(wanted, config.data_plane).await?;
    device.set_peer(peer).await?;
    for old in device.peers().await {
        if old != peer.key {
            device.remove_peer(&old).await?;
        }
    }
    Ok(device)
}
