//! The way to the map server, which all instances share: its tunnel and its socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};
use tokio::net::UdpSocket;
use tracing::warn;
use wg_device::{
    Device, DeviceConfig, DeviceError, MAIN_TABLE, PeerSpec, PrivateKey, RouteSpec, Routes,
    Sources, bind_control_socket,
};

use super::data_plane::DATA_METRIC;
use super::uplinks::OwnUplinks;
use crate::agent::Uplink;
use crate::agent::limits::CONTROL_RENEWAL;
use crate::config::{Access, Config};

/// Keeps the way to the map server open through stateful firewalls, seconds.
const CONTROL_KEEPALIVE_S: u16 = 25;

/// The control socket, and the tunnel it is in unless the map server knows none.
pub(super) struct Control {
    pub(super) socket: UdpSocket,
    tunnel: Option<Tunnel>,
    /// Of what the socket sends.
    mark: u32,
    /// From which address packets to the map server leave, where uplinks have routes of their own.
    by: Option<IpAddr>,
    renewed: Option<Timestamp>,
    /// When the map server was last heard of.
    heard: Option<Timestamp>,
}

/// The tunnel to the map server.
struct Tunnel {
    device: Device,
    peer: PeerSpec,
    routes: Routes,
    to_server: RouteSpec,
}

impl Tunnel {
    /// The map server is another peer, or reached by another route, which are there: the old ones go.
    async fn replace(&mut self, peer: PeerSpec, to_server: RouteSpec) {
        let old = std::mem::replace(&mut self.peer, peer);
        if old.key != self.peer.key {
            unless_done(self.device.remove_peer(&old.key).await);
        }
        let old = std::mem::replace(&mut self.to_server, to_server);
        if old.prefix != self.to_server.prefix {
            unless_done(self.routes.remove(&old));
        }
    }
}

/// Says what was not removed of the way to a map server that was left: it harms nobody.
fn unless_done(done: Result<(), DeviceError>) {
    if let Err(error) = done {
        warn!(%error, "something of the old map server is left");
    }
}

/// When one instance has had the control tunnel set up anew.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    last: Option<Timestamp>,
    pause: Duration,
}

impl Renewals {
    /// The map server has answered the instance.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// Whether it is time for another renewal; if so, it counts as done. `heard` is when the map
    /// server was last heard of by any instance: one that was there since the last renewal, and has
    /// not answered this instance, is not reached any better by the next one.
    fn may_follow(&mut self, now: Timestamp, heard: Option<Timestamp>) -> bool {
        let Some(last) = self.last else {
            self.last = Some(now);
            return true;
        };
        let in_vain = heard.is_some_and(|heard| heard > last);
        if in_vain && now - last < self.pause {
            return false;
        }
        self.pause = if in_vain {
            (self.pause * 2).clamp(RENEWAL_PAUSE, RENEWAL_PAUSE_MAX)
        } else {
            Duration::ZERO
        };
        self.last = Some(now);
        true
    }
}

/// First pause between renewals of an instance that alone is not answered; doubles from there.
const RENEWAL_PAUSE: Duration = Duration::from_secs(8);
/// Longest such pause.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(600);

impl Control {
    /// Makes the tunnel and the socket in it; what was made goes again on an error.
    pub(super) async fn create(
        config: &Config,
        key: PrivateKey,
        address: IpAddr,
        sources: Option<Sources>,
    ) -> Result<Self> {
        let server = config.map_server.address;
        let tunnel = match &config.map_server.access {
            Access::Tunnel {
                public_key,
                endpoint,
                ..
            } => {
                let peer = peer(*public_key, *endpoint, server.ip());
                let device = tunnel(config, (key, sources), IpNet::from(address), &peer).await?;
                let to_server = route(device.name(), server.ip(), address);
                // The route goes with its interface.
                let routes = Routes::new().context("no access to the routing tables")?;
                routes.adopt(device.name())?;
                routes.add(&to_server)?;
                routes.remove_stale()?;
                Some(Tunnel {
                    device,
                    peer,
                    routes,
                    to_server,
                })
            }
            Access::Plain { .. } => None,
        };
        let bind = SocketAddr::new(address, server.port());
        let device = tunnel.as_ref().map(|tunnel| tunnel.device.name());
        let socket = bind_control_socket(bind, device, plain_mark(config))
            .with_context(|| format!("control socket on {bind}"))?;
        Ok(Self {
            socket,
            tunnel,
            mark: plain_mark(config),
            by: None,
            renewed: None,
            heard: None,
        })
    }

    /// The map server is reached by the uplink that was chosen for it from now on.
    pub(super) async fn follow(&mut self, uplinks: &OwnUplinks) {
        let from = uplinks.for_server();
        if from == self.by {
            return;
        }
        self.by = from;
        if let Some(Tunnel { device, peer, .. }) = &self.tunnel {
            // The data plane goes on sending from where the map server has reached it, until it is told
            // where that is.
            if let Err(error) = device.set_peer(peer).await {
                warn!(%error, "the map server is reached as before");
            }
        } else if let Some(from) = from
            && let Err(error) = self.leave_from(from)
        {
            warn!(%from, %error, "control socket not moved");
        }
    }

    /// Something came from the map server, for whichever instance.
    pub(super) const fn heard(&mut self, now: Timestamp) {
        self.heard = Some(now);
    }

    /// Talks to the map server from another address of this host; only where there is no control
    /// tunnel, which follows by itself.
    ///
    /// # Errors
    /// The address cannot be used, or not yet.
    pub(super) fn move_to(&mut self, rlocs: &[Uplink]) -> io::Result<()> {
        let now = self.socket.local_addr()?;
        let mut rlocs = rlocs.iter().map(|rloc| rloc.address);
        let like_now = |rloc: &IpAddr| rloc.is_ipv4() == now.is_ipv4();
        let is_there = rlocs.clone().any(|rloc| rloc == now.ip());
        let moved = rlocs.find(like_now);
        if self.tunnel.is_none()
            && !is_there
            && let Some(rloc) = moved
        {
            self.leave_from(rloc)?;
        }
        Ok(())
    }

    /// Talks to the map server from `address`: without a control tunnel it answers to that.
    fn leave_from(&mut self, address: IpAddr) -> io::Result<()> {
        let now = self.socket.local_addr()?;
        if now.ip() != address {
            let bind = SocketAddr::new(address, now.port());
            self.socket = bind_control_socket(bind, None, self.mark)?;
        }
        Ok(())
    }

    /// Where the map server answers to, if there is no control tunnel: that may change.
    pub(super) fn answers_to(&self) -> Option<IpAddr> {
        let address = self.socket.local_addr().ok()?;
        self.tunnel.is_none().then_some(address.ip())
    }

    /// From now on the map server is that of `config`, which answers to `address`: the new way is there
    /// before the old one goes.
    ///
    /// # Errors
    /// A part of the new way is refused; what was done by then stays, beside the old one.
    pub(super) async fn change_server(&mut self, config: &Config, address: IpAddr) -> Result<()> {
        let server = config.map_server.address;
        let bind = SocketAddr::new(address, server.port());
        let before = self.socket.local_addr()?;
        let mark = self.mark;
        let opened = |device| {
            let socket = (bind != before).then(|| bind_control_socket(bind, device, mark));
            let socket = socket.transpose();
            socket.with_context(|| format!("control socket on {bind}"))
        };
        let socket = match (&mut self.tunnel, &config.map_server.access) {
            (
                Some(tunnel),
                Access::Tunnel {
                    public_key,
                    endpoint,
                    ..
                },
            ) => {
                let mut both = vec![IpNet::from(before.ip()), IpNet::from(address)];
                both.dedup();
                tunnel.device.set_addresses(&both).await?;
                let name = tunnel.device.name();
                let to_server = route(name, server.ip(), address);
                if to_server.prefix == tunnel.to_server.prefix {
                    tunnel.routes.replace(&to_server)?;
                } else {
                    tunnel.routes.add(&to_server)?;
                }
                let socket = opened(Some(name))?;
                let peer = peer(*public_key, *endpoint, server.ip());
                tunnel.device.set_peer(&peer).await?;
                tunnel.replace(peer, to_server).await;
                let address = [IpNet::from(address)];
                unless_done(tunnel.device.set_addresses(&address).await);
                socket
            }
            _ => opened(None)?,
        };
        if let Some(socket) = socket {
            self.socket = socket;
        }
        (self.renewed, self.heard, self.by) = (None, None, None);
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
    /// Every instance notices a silent map server by itself: one renewal serves them all. One that
    /// the map server answers nothing, while it answers others, must not end their session again and
    /// again: `renewals` are its own. It may be the uplink that has failed, then another one is used.
    pub(super) async fn renew(
        &mut self,
        now: Timestamp,
        index: usize,
        renewals: &mut Renewals,
        uplinks: Option<&mut OwnUplinks>,
    ) {
        if self.renewed.is_some_and(|at| now - at < CONTROL_RENEWAL)
            || !renewals.may_follow(now, self.heard)
        {
            return;
        }
        // There is one map server.
        if index != 0 {
            return;
        }
        self.renewed = Some(now);
        if let Some(uplinks) = uplinks {
            uplinks.server_is_silent(now);
            self.follow(uplinks).await;
        }
        let Some(Tunnel { device, peer, .. }) = &self.tunnel else {
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

    /// From now on the tunnel is left in place for the next run, where the kernel has it.
    pub(super) fn stay(&self) {
        if let Some(tunnel) = &self.tunnel {
            tunnel.device.stay();
        }
    }

    /// Removes everything that `create` made.
    pub(super) async fn close(self) {
        drop(self.socket);
        if let Some(tunnel) = self.tunnel {
            tunnel.device.close().await;
        }
    }
}

/// The mark of control datagrams: inside a tunnel it is the tunnel that has one.
fn plain_mark(config: &Config) -> u32 {
    match &config.map_server.access {
        Access::Tunnel { .. } => 0,
        Access::Plain { .. } => config.mark(),
    }
}

/// The map server, as the control tunnel knows it.
fn peer(key: PublicKey, endpoint: SocketAddr, server: IpAddr) -> PeerSpec {
    PeerSpec {
        key,
        endpoint: Some(endpoint),
        allowed_ips: vec![IpNet::from(server)],
        keepalive: Some(CONTROL_KEEPALIVE_S),
    }
}

/// The way to the map server through the control tunnel.
fn route(device: &str, server: IpAddr, source: IpAddr) -> RouteSpec {
    RouteSpec {
        prefix: IpNet::from(server),
        device: device.to_owned(),
        metric: DATA_METRIC,
        source: Some(source),
        table: MAIN_TABLE,
    }
}

/// The tunnel to the map server, with the map server as its only peer.
async fn tunnel(
    config: &Config,
    (private_key, sources): (PrivateKey, Option<Sources>),
    address: IpNet,
    peer: &PeerSpec,
) -> Result<Device, DeviceError> {
    let wanted = DeviceConfig {
        name: config.control_interface.clone(),
        private_key,
        listen_port: 0,
        mtu: config.mtu,
        mark: config.mark(),
        sources,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an instance that wants to every second has the tunnel set up anew within an hour.
    fn renewed(heard: impl Fn(u64) -> Option<Timestamp>) -> usize {
        let at = |second| Timestamp::ZERO + Duration::from_secs(second);
        let mut renewals = Renewals::default();
        let wanted = (1..3_600).filter(|second| renewals.may_follow(at(*second), heard(*second)));
        wanted.count()
    }

    #[test]
    fn an_instance_that_alone_is_not_answered_leaves_the_tunnel_to_the_others() {
        let just_before =
            |second| Some(Timestamp::ZERO + Duration::from_millis(second * 1_000 - 1));
        let times = renewed(just_before);
        assert!((8..=16).contains(&times), "{times}");
    }

    #[test]
    fn a_map_server_that_answers_nobody_is_looked_for_every_second() {
        assert_eq!(renewed(|_| None), 3_599);
        assert_eq!(renewed(|_| Some(Timestamp::ZERO)), 3_599);
    }
}
