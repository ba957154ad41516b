//! The TUN interface that catches packets to destinations nobody has resolved yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::error::DeviceError;
use crate::link_guard::{LinkGuard, NameClaim};
use crate::netlink::link::Links;
use crate::netns::{NetNs, inside};
use crate::tun;

/// A TUN interface that is up, without addresses; removed by [`MissTun::close`], or when dropped,
/// unless it was told to [`stay`](MissTun::stay).
pub struct MissTun {
    // First: the link is deleted after its descriptor is closed.
    device: ::tun::AsyncDevice,
    link: LinkGuard,
}

impl MissTun {
    /// Makes the interface `name` with `mtu` bytes and brings it up.
    ///
    /// With `adopt`, one that an earlier run left in place is taken over and stays; without, it is
    /// replaced.
    ///
    /// # Errors
    /// The name is taken by somebody else, TUN is not available, or CAP_NET_ADMIN is missing. Must
    /// be called within a tokio runtime.
    pub fn create(name: &str, mtu: u16, adopt: bool) -> Result<Self, DeviceError> {
        Self::create_in(None, name, mtu, adopt)
    }

    /// The same in another network namespace.
    ///
    /// # Errors
    /// As [`create`](Self::create), or the namespace cannot be entered.
    pub fn create_in(
        netns: Option<&NetNs>,
        name: &str,
        mtu: u16,
        adopt: bool,
    ) -> Result<Self, DeviceError> {
        inside(netns, || {
            let claim = NameClaim::take(name)?;
            let links = Links::open().map_err(|e| DeviceError::system(OPENING_NETLINK, name, e))?;
            let (device, link) = tun::open(claim, links, mtu, adopt)?;
            link.fit(mtu, &[])?;
            Ok(Self { device, link })
        })
    }

    /// From now on the interface is left in place when this is dropped, if it was created with
    /// `adopt`: without anybody to read them, its packets are then dropped by the kernel.
    pub fn stay(&self) {
        self.link.stay();
    }

    /// Removes the interface, whether it was to stay or not.
    pub fn close(self) {
        drop(self.device);
        self.link.remove();
    }

    /// Waits for a packet; returns its length. Cancelling loses nothing.
    ///
    /// Multicast is passed over: it has no owner to resolve, and a router's kernel sends group
    /// reports through every interface.
    ///
    /// # Errors
    /// The interface is gone.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.device.recv(buffer).await?;
            if !is_multicast(buffer) {
                return Ok(length);
            }
        }
    }

    /// The same for a task that waits for several interfaces: it is woken when there is a packet.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut filled = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.device).poll_read(context, &mut filled))?;
            let length = filled.filled().len();
            if !is_multicast(buffer) {
                return Poll::Ready(Ok(length));
            }
        }
    }

    /// Takes a packet that is there, without waiting.
    pub fn try_recv(&self, buffer: &mut [u8]) -> Option<usize> {
        let device: &::tun::Device = &self.device;
        loop {
            let length = device.recv(buffer).ok()?;
            if !is_multicast(buffer) {
                return Some(length);
            }
        }
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

/// Whether the packet at the front of `buffer` goes to a group.
fn is_multicast(buffer: &[u8]) -> bool {
    match buffer {
        [first, ..] if first >> 4 == 4 => buffer.get(16).is_some_and(|byte| byte >> 4 == 0xe),
        _ => buffer.get(24) == Some(&0xff),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_from_hosts_in_both_families() {
        let packet = |version: u8, at: usize, destination: u8| {
            let mut packet = [0; 40];
            packet[0] = version << 4;
            packet[at] = destination;
            packet
        };
        assert!(is_multicast(&packet(4, 16, 224)));
        assert!(!is_multicast(&packet(4, 16, 10)));
        assert!(is_multicast(&packet(6, 24, 0xff)));
        assert!(!is_multicast(&packet(6, 24, 0xfd)));
        assert!(!is_multicast(&[]));
    }
}
