//! The control tunnel: one WireGuard interface, one peer per enrolled agent.

use std::collections::BTreeSet;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{sleep_until, timeout_at};
use tracing::{debug, warn};
use wg_device::{
    Device, DeviceConfig, DeviceError, MAIN_TABLE, PeerSpec, PrivateKey, RouteSpec, Routes,
};

use super::clock::Clock;
use super::endpoints::Endpoints;
use super::lookout::{Lookout, Sight};
use super::settings::{ControlSettings, Settings};

/// MTU of the interface in bytes: what WireGuard leaves of an Ethernet frame.
const MTU: u16 = 1420;

/// The interface with its routes.
#[derive(Debug)]
pub(super) struct ControlTunnel {
    device: Device,
    endpoints: Endpoints,
    /// The keys of the agents.
    enrolled: BTreeSet<PublicKey>,
    /// They go with the interface.
    _routes: Routes,
}

impl ControlTunnel {
    /// Creates the interface, and a peer and a route for every enrolled agent. An agent is looked
    /// for where an earlier run has last seen it.
    ///
    /// # Errors
    /// The system refuses an interface, a peer or a route.
    pub(super) async fn create(
        settings: &Settings,
        control: &ControlSettings,
        private_key: PrivateKey,
    ) -> Result<Self, DeviceError> {
        let config = DeviceConfig {
            name: control.interface.clone(),
            private_key,
            listen_port: control.listen_port,
            mtu: MTU,
            mark: 0,
            sources: None,
            addresses: vec![IpNet::from(control.address)],
            adopt: false,
        };
        let device = Device::create(config, control.data_plane).await?;
        let routes = Routes::new()?;
        let endpoints = Endpoints::load(settings.state_dir());
        for (name, key, address) in settings.enrolled() {
            let prefix = IpNet::from(address);
            device
                .set_peer(&PeerSpec {
                    key,
                    endpoint: endpoints.of(&key),
                    allowed_ips: vec![prefix],
                    keepalive: None,
                })
                .await?;
            routes.add(&RouteSpec {
                prefix,
                device: device.name().to_owned(),
                metric: 0,
                source: Some(control.address),
                table: MAIN_TABLE,
            })?;
            debug!(xtr = name, key = key.short(), %address, "enrolled");
        }
        let enrolled = settings.enrolled().map(|(_, key, _)| key);
        Ok(Self {
            device,
            endpoints,
            enrolled: enrolled.collect(),
            _routes: routes,
        })
    }

    /// Returns the interface.
    pub(super) const fn device(&self) -> &Device {
        &self.device
    }

    /// Reports where the peers are, and keeps the file of the agents' endpoints up to date, until `stop`
    /// comes or is dropped, and once more then. A server that is killed seconds after an agent has
    /// registered, or has moved, must find it afterwards: `registered` makes it look at once.
    pub(super) async fn watch_endpoints(
        &mut self,
        mut lookout: Lookout,
        registered: &Notify,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut stopped = false;
        let mut refused = None;
        while !stopped {
            for (key, watch) in lookout.orders.open() {
                match self.obey(key, watch).await {
                    Ok(()) => lookout.note(Clock::present(), key, watch),
                    Err(error) => refused = Some((key, error)),
                }
            }
            let (earliest, searching) = (lookout.earliest(), lookout.is_searching());
            let news = async {
                sleep_until(earliest).await;
                if !searching {
                    registered.notified().await;
                }
            };
            let latest = lookout.latest();
            tokio::select! {
                biased;
                _ = &mut stop => stopped = true,
                () = lookout.orders.given() => {
                    if Clock::present() < latest {
                        continue;
                    }
                }
                _ = timeout_at(latest, news) => {}
            }
            // Said no more often than somebody looks: orders may come, and be refused, much more often.
            if let Some((key, error)) = refused.take() {
                warn!(key = key.short(), %error, "looking for an agent behind a NAT");
            }
            self.note_endpoints(&mut lookout).await;
        }
    }

    /// Lets the holder of `key` shake hands, or no longer, who is no agent. He has no AllowedIPs: nothing that he
    /// sends gets in, and nothing is sent to him. What is refused is tried again.
    async fn obey(&self, key: PublicKey, watch: bool) -> Result<(), DeviceError> {
        if self.enrolled.contains(&key) {
            return Ok(());
        }
        if watch {
            let peer = PeerSpec {
                key,
                endpoint: None,
                allowed_ips: Vec::new(),
                keepalive: None,
            };
            self.device.set_peer(&peer).await
        } else {
            self.device.remove_peer(&key).await
        }
    }

    /// Reports where the peers are, and writes down where the agents are, if that has changed. Failures
    /// are only logged: without the file the server does as well, a little later.
    async fn note_endpoints(&mut self, lookout: &mut Lookout) {
        let began = Clock::present();
        let peers = match self.device.peer_stats().await {
            Ok(peers) => peers,
            Err(error) => {
                lookout.failed(Clock::present());
                return warn!(%error, "reading the endpoints of the agents");
            }
        };
        let vouched = peers.iter().filter_map(|peer| {
            Some(Sight {
                key: peer.key,
                endpoint: peer.endpoint?,
                // Without a handshake an endpoint is what was stored, or somebody's who repeats an old initiation.
                shaken: peer.read_at.checked_sub(peer.since_handshake?)?,
                received: peer.rx_bytes,
            })
        });
        lookout.found((began, Clock::present()), vouched);
        let agents = peers.iter().map(|peer| (peer.key, peer.endpoint));
        let agents = agents.filter(|(key, _)| self.enrolled.contains(key));
        if !self.endpoints.observe(agents) {
            return;
        }
        let endpoints = self.endpoints.clone();
        let saved = spawn_blocking(move || endpoints.save()).await;
        if let Err(error) = saved.map_err(std::io::Error::from).flatten() {
            warn!(%error, "storing the endpoints of the agents");
        }
    }

    /// Removes the interface.
    pub(super) async fn close(self) {
        self.device.close().await;
    }
}
