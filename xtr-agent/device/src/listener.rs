//! Where do packets go through an interface? A moment of listening tells.

use std::io::{self, Read};
use std::net::IpAddr;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::DeviceError;
use crate::kernel::link_address;
use crate::netns::{NetNs, inside};

/// Packets looked at in all.
const PACKETS: usize = 256;

/// Destinations that are told.
const TOLD: usize = 8;

/// Room for packets that were not looked at yet, in bytes: what finds none is not waited for.
const ROOM: usize = 64 * 1024;

/// Listens to what goes through one interface, now and then.
#[derive(Debug)]
pub struct Listener {
    netns: Option<String>,
    device: String,
    socket: Option<Socket>,
}

impl Listener {
    /// One for the interface `device`, which may be in another network namespace, and need not be
    /// there yet.
    #[must_use]
    pub fn new(netns: Option<&str>, device: &str) -> Self {
        Self {
            netns: netns.map(str::to_owned),
            device: device.to_owned(),
            socket: None,
        }
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, or there is no such interface.
    pub fn begin(&mut self) -> Result<(), DeviceError> {
        let netns = self.netns.as_deref().map(NetNs::open).transpose()?;
        let device = self.device.as_str();
        let failed = |error| DeviceError::system(LISTENING, device, error);
        self.socket = Some(inside(netns.as_ref(), || open(device).map_err(failed))?);
        Ok(())
    }

    /// Ends that; returns where packets have gone meanwhile, those that came included.
    pub fn end(&mut self) -> Vec<IpAddr> {
        let mut told = Vec::new();
        let Some(mut socket) = self.socket.take() else {
            return told;
        };
        let mut packet = [0; 64];
        for _ in 0..PACKETS {
            let Ok(length) = socket.read(&mut packet) else {
                break;
            };
            let packet = packet.get(..length).unwrap_or_default();
            if let Some(dst) = destination(packet)
                && !told.contains(&dst)
            {
                told.push(dst);
            }
            if told.len() == TOLD {
                break;
            }
        }
        told
    }
}

fn open(device: &str) -> io::Result<Socket> {
    // Protocol 0: nothing is received before the interface is named.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(ROOM)?;
    // Only who listens to all protocols hears what this host sends.
    socket.bind(&link_address(if_nametoindex(device)?, libc::ETH_P_ALL)?)?;
    Ok(socket)
}

/// Returns where an IP packet goes.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

const LISTENING: &str = "listening on interface";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_both_families_say_where_they_go() {
        let mut packet = [0; 64];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
        assert_eq!(destination(&packet), Some([192, 0, 2, 1].into()));
        packet[0] = 0x60;
        packet[24..40].copy_from_slice(&[1; 16]);
        assert_eq!(destination(&packet), Some([1; 16].into()));
        assert_eq!(destination(&packet[..39]), None);
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0x10; 64]), None);
    }
}
