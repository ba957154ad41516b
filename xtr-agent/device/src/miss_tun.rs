//! The TUN interface that catches packets to destinations nobody has resolved yet.

use std::io;

use crate::error::DeviceError;
use crate::link_guard::{LinkGuard, NameClaim};
use crate::netlink::link::Links;
use crate::tun;

/// A TUN interface that is up, without addresses; removed when dropped.
pub struct MissTun {
    // First: the link is deleted after its descriptor is closed.
    device: ::tun::AsyncDevice,
    link: LinkGuard,
}

impl MissTun {
    /// Makes the interface `name` with `mtu` bytes and brings it up.
    ///
    /// # Errors
    /// The name is taken, TUN is not available, or CAP_NET_ADMIN is missing. Must be called within
    /// a tokio runtime.
    pub fn create(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        let claim = NameClaim::take(name)?;
        let links = Links::open().map_err(|e| DeviceError::system(OPENING_NETLINK, name, e))?;
        let (device, link) = tun::open(claim, links, mtu)?;
        link.bring_up(&[])?;
        Ok(Self { device, link })
    }

    /// Waits for a packet; returns its length. Cancelling loses nothing.
    ///
    /// # Errors
    /// The interface is gone.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buffer).await
    }

    /// Takes a packet that is there, without waiting.
    pub fn try_recv(&self, buffer: &mut [u8]) -> Option<usize> {
        let device: &::tun::Device = &self.device;
        device.recv(buffer).ok()
    }

    /// Hands a packet to the local stack, as if it had been received.
    ///
    /// # Errors
    /// The interface is gone, or the bytes are not an IP packet.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).await?;
        Ok(())
    }

    /// Returns the name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        self.link.name()
    }
}

pub(crate) const OPENING_NETLINK: &str = "opening netlink for interface";
