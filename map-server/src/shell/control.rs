//! The control tunnel: one WireGuard interface, one peer per enrolled agent.

use ipnet::IpNet;
use tracing::debug;
use wg_device::{Device, DeviceConfig, DeviceError, PeerSpec, PrivateKey, RouteSpec, Routes};

use super::settings::{ControlSettings, Settings};

/// MTU of the interface in bytes: what WireGuard leaves of an Ethernet frame.
const MTU: u16 = 1420;

/// The interface with its routes.
#[derive(Debug)]
pub(super) struct ControlTunnel {
    device: Device,
    /// They go with the interface.
    _routes: Routes,
}

impl ControlTunnel {
    /// Creates the interface, and a peer and a route for every enrolled agent.
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
            addresses: vec![IpNet::from(control.address)],
        };
        let device = Device::create(config, control.data_plane).await?;
        let routes = Routes::new()?;
        for (name, key, address) in settings.enrolled() {
            let prefix = IpNet::from(address);
            device
                .set_peer(&PeerSpec {
                    key,
                    endpoint: None,
                    allowed_ips: vec![prefix],
                    keepalive: None,
                })
                .await?;
            routes.add(&RouteSpec {
                prefix,
                device: device.name().to_owned(),
                metric: 0,
                source: Some(control.address),
            })?;
            debug!(xtr = name, key = key.short(), %address, "enrolled");
        }
        Ok(Self {
            device,
            _routes: routes,
        })
    }

    /// Returns the interface.
    pub(super) const fn device(&self) -> &Device {
        &self.device
    }

    /// Removes the interface.
    pub(super) async fn close(self) {
        self.device.close().await;
    }
}
