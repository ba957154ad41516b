//! The control tunnel: one WireGuard interface, one peer per enrolled agent.

use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use wg_device::{
    Device, DeviceConfig, DeviceError, MAIN_TABLE, PeerSpec, PrivateKey, RouteSpec, Routes,
};

use super::endpoints::Endpoints;
use super::settings::{ControlSettings, Settings};

/// MTU of the interface in bytes: what WireGuard leaves of an Ethernet frame.
const MTU: u16 = 1420;
/// How often is looked where the agents are.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Least time between two looks, however many agents register.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The interface with its routes.
#[derive(Debug)]
pub(super) struct ControlTunnel {
    device: Device,
    endpoints: Endpoints,
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
        Ok(Self {
            device,
            endpoints,
            _routes: routes,
        })
    }

    /// Returns the interface.
    pub(super) const fn device(&self) -> &Device {
        &self.device
    }

    /// Keeps the file of the agents' endpoints up to date until `stop` comes or is dropped, and
    /// once more then. A server that is killed seconds after an agent has registered, or has
    /// moved, must find it afterwards: `registered` makes it look at once.
    pub(super) async fn watch_endpoints(
        &mut self,
        registered: &Notify,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut stopped = false;
        while !stopped {
            let news = async {
                sleep(LOOK_PAUSE).await;
                registered.notified().await;
            };
            stopped = tokio::select! {
                _ = &mut stop => true,
                _ = timeout(LOOK_INTERVAL, news) => false,
            };
            self.note_endpoints().await;
        }
    }

    /// Writes down where the agents are, if that has changed. Failures are reported only: without
    /// the file the server does as well, a little later.
    async fn note_endpoints(&mut self) {
        let peers = match self.device.peer_stats().await {
            Ok(peers) => peers,
            Err(error) => return warn!(%error, "reading the endpoints of the agents"),
        };
        let peers = peers.into_iter().map(|peer| (peer.key, peer.endpoint));
        if !self.endpoints.observe(peers) {
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
