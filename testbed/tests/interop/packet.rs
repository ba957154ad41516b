//! UDP datagrams as IP packets, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lisp_proto::encode_ecm;

const ECM_HEADER_LEN: usize = 4;
const UDP: u8 = 17;
const UDP_HEADER_LEN: usize = 8;

/// One UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

impl Datagram {
    /// The datagram behind an IP and a UDP header with good checksums.
    pub(crate) fn to_packet(&self) -> Vec<u8> {
        let mut ecm = Vec::new();
        encode_ecm(self.source, self.destination, &self.payload, &mut ecm).unwrap();
        ecm.split_off(ECM_HEADER_LEN)
    }

    /// Reads an IP packet; `None` when it is not UDP, or a fragment.
    pub(crate) fn from_packet(packet: &[u8]) -> Option<Self> {
        let (source, destination, udp) = match packet.first()? >> 4 {
            4 => {
                let header_len = usize::from(packet.first()? & 0x0f) * 4;
                let total_len = u16::from_be_bytes(array(packet, 2)?).into();
                let fragment = u16::from_be_bytes(array(packet, 6)?) & 0x3fff;
                if *packet.get(9)? != UDP || fragment != 0 {
                    return None;
                }
                let address = |at| Some(Ipv4Addr::from(array::<4>(packet, at)?));
                let udp = packet.get(header_len..total_len)?;
                (IpAddr::V4(address(12)?), IpAddr::V4(address(16)?), udp)
            }
            6 if *packet.get(6)? == UDP => {
                let address = |at| Some(Ipv6Addr::from(array::<16>(packet, at)?));
                let length = usize::from(u16::from_be_bytes(array(packet, 4)?));
                let udp = packet.get(40..40 + length)?;
                (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?), udp)
            }
            _ => return None,
        };
        let port = |at| Some(u16::from_be_bytes(array(udp, at)?));
        Some(Self {
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
            payload: udp.get(UDP_HEADER_LEN..)?.to_vec(),
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
