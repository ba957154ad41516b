//! The packets that applications exchange: IP and UDP, with a payload that tells them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

/// What the payload of a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Probe {
    /// Unique in a run.
    pub(super) id: u64,
    /// The flow it belongs to.
    pub(super) flow: u32,
    /// Position in its flow and direction.
    pub(super) sequence: u32,
    /// Whether it answers another one.
    pub(super) echo: bool,
    /// Position of the packet that it answers; its own if it answers none.
    pub(super) about: u32,
}

const PROBE_LEN: usize = 21;
const UDP_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const ICMP_LEN: usize = 8;

impl Probe {
    /// Builds the packet; `None` when the addresses are of different families.
    pub(super) fn packet(&self, src: IpAddr, dst: IpAddr) -> Option<Bytes> {
        let mut out = Vec::with_capacity(V6_LEN + UDP_LEN + PROBE_LEN);
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let [high, low] = length(V4_LEN + UDP_LEN + PROBE_LEN);
                out.extend([0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let [high, low] = length(UDP_LEN + PROBE_LEN);
                out.extend([0x60, 0, 0, 0, high, low, 17, 64]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        let [high, low] = length(UDP_LEN + PROBE_LEN);
        out.extend([0x10, 0, 0x20, 0, high, low, 0, 0]);
        out.extend(self.id.to_be_bytes());
        out.extend(self.flow.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.push(u8::from(self.echo));
        out.extend(self.about.to_be_bytes());
        Some(out.into())
    }

    /// Reads a packet that [`Self::packet`] built.
    pub(super) fn of_packet(packet: &[u8]) -> Option<Self> {
        let header = match packet.first()? >> 4 {
            4 => V4_LEN,
            6 => V6_LEN,
            _ => return None,
        };
        Self::read(packet.get(header + UDP_LEN..)?)
    }

    /// Reads the packet that an ICMP error quotes.
    pub(super) fn of_icmp_error(packet: &[u8]) -> Option<Self> {
        let header = match packet.first()? >> 4 {
            4 if packet.get(9) == Some(&1) => V4_LEN,
            6 if packet.get(6) == Some(&58) => V6_LEN,
            _ => return None,
        };
        Self::of_packet(packet.get(header + ICMP_LEN..)?)
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let (id, rest) = payload.split_first_chunk::<8>()?;
        let (flow, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<4>()?;
        let (echo, rest) = rest.split_first()?;
        Some(Self {
            id: u64::from_be_bytes(*id),
            flow: u32::from_be_bytes(*flow),
            sequence: u32::from_be_bytes(*sequence),
            echo: *echo != 0,
            about: u32::from_be_bytes(*rest.first_chunk()?),
        })
    }
}

/// Source and destination of a packet that asks for an echo.
pub(super) fn echo_request(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (protocol, kind) = match packet.first()? >> 4 {
        4 => (packet.get(9)?, packet.get(V4_LEN)?),
        _ => (packet.get(6)?, packet.get(V6_LEN)?),
    };
    matches!((protocol, kind), (1, 8) | (58, 128)).then(|| addresses(packet))?
}

/// Source and destination of an IP packet.
pub(super) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let src: [u8; 4] = *packet.get(12..)?.first_chunk()?;
            let dst: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            Some((Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()))
        }
        6 => {
            let src: [u8; 16] = *packet.get(8..)?.first_chunk()?;
            let dst: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            Some((Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into()))
        }
        _ => None,
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_both_families_can_be_read_back() {
        let probe = Probe {
            id: 1 << 40,
            flow: 7,
            sequence: 9,
            echo: true,
            about: 8,
        };
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let packet = probe.packet(src, dst).unwrap();
            assert_eq!(Probe::of_packet(&packet), Some(probe));
            assert_eq!(addresses(&packet), Some((src, dst)));
            assert_eq!(Probe::of_icmp_error(&packet), None);
        }
        assert_eq!(Probe::of_packet(&[0x45; 30]), None);
        assert_eq!(addresses(&[]), None);
    }
}
