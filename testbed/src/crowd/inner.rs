//! The IP packets inside tunnels: UDP, as far as a crowd needs it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;

/// Builds an IPv6 packet with a UDP datagram.
pub(super) fn udp_v6(src: SocketAddrV6, dst: SocketAddrV6, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP_LEN + payload.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(V6_LEN + UDP_LEN + payload.len());
    out.extend([0x60, 0, 0, 0]);
    out.extend(length.to_be_bytes());
    out.extend([UDP, 64]);
    out.extend(src.ip().octets());
    out.extend(dst.ip().octets());
    out.extend(src.port().to_be_bytes());
    out.extend(dst.port().to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    let sum = checksum(&out, length);
    if let Some(field) = out.get_mut(V6_LEN + 6..V6_LEN + 8) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    out
}

/// Sender, destination and payload of an IPv6 packet with a UDP datagram.
pub(super) fn read_udp_v6(packet: &[u8]) -> Option<(SocketAddrV6, Ipv6Addr, &[u8])> {
    let (header, udp) = packet.split_at_checked(V6_LEN)?;
    if header.first()? >> 4 != 6 || *header.get(6)? != UDP {
        return None;
    }
    let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
    let (src, dst) = (address(8)?, address(24)?);
    let (ports, payload) = udp.split_at_checked(UDP_LEN)?;
    let port = u16::from_be_bytes(*ports.first_chunk()?);
    let length = usize::from(u16::from_be_bytes(*ports.get(4..)?.first_chunk()?));
    let payload = payload.get(..length.checked_sub(UDP_LEN)?)?;
    Some((SocketAddrV6::new(src, port, 0, 0), dst, payload))
}

/// Source, destination and payload of an IPv4 packet with a UDP datagram.
pub(super) fn read_udp_v4(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, &[u8])> {
    let header = packet.get(..V4_LEN)?;
    if *header.first()? != 0x45 || *header.get(9)? != UDP {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(*header.get(2..)?.first_chunk()?));
    let address = |at: usize| Some(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?));
    let payload = packet.get(V4_LEN + UDP_LEN..length)?;
    Some((address(12)?, address(16)?, payload))
}

/// Builds an IPv4 packet with a UDP datagram, which has no checksum (RFC 768).
pub(super) fn udp_v4(src: SocketAddrV4, dst: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(UDP_LEN + payload.len()).unwrap_or(u16::MAX);
    let length = udp_length.saturating_add(20);
    let mut out = Vec::with_capacity(usize::from(length));
    out.extend([0x45, 0]);
    out.extend(length.to_be_bytes());
    out.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    out.extend(src.ip().octets());
    out.extend(dst.ip().octets());
    let sum = !sum(&out);
    if let Some(field) = out.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    out.extend(src.port().to_be_bytes());
    out.extend(dst.port().to_be_bytes());
    out.extend(udp_length.to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    out
}

/// Where an IPv4 packet goes.
pub(super) fn destination_v4(packet: &[u8]) -> Option<Ipv4Addr> {
    let address = packet.get(16..)?.first_chunk::<4>()?;
    (*packet.first()? == 0x45).then(|| Ipv4Addr::from(*address))
}

/// The sum of RFC 1071, not yet complemented.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(u16::from_be_bytes([high, 0])),
        _ => 0,
    });
    let mut sum = words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Sends an IPv4 packet with a UDP datagram back to where it came from. Neither checksum changes
/// when sender and receiver change places.
pub(super) fn turn_around(packet: &mut [u8]) {
    if let Some(addresses) = packet.get_mut(12..20) {
        addresses.rotate_left(4);
    }
    if let Some(ports) = packet.get_mut(V4_LEN..V4_LEN + 4) {
        ports.rotate_left(2);
    }
}

/// The UDP checksum of an IPv6 packet whose own is zero (RFC 8200 8.1).
fn checksum(packet: &[u8], length: u16) -> u16 {
    let pseudo = [length.to_be_bytes(), [0, UDP]].concat();
    let whole = [pseudo.as_slice(), packet.get(8..).unwrap_or_default()].concat();
    match !sum(&whole) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_read_and_adds_up() {
        let [src, dst]: [SocketAddrV6; 2] =
            ["[fd00::1]:4342", "[fd00::2]:4343"].map(|address| address.parse().unwrap());
        for payload in [&b"odd"[..], b"even"] {
            let packet = udp_v6(src, dst, payload);
            assert_eq!(read_udp_v6(&packet), Some((src, *dst.ip(), payload)));
            let length = u16::try_from(UDP_LEN + payload.len()).unwrap();
            // A sum over a packet with its checksum is zero, which is sent as its complement.
            assert_eq!(checksum(&packet, length), 0xffff);
        }
    }

    #[test]
    fn an_ipv4_packet_can_be_read_and_its_header_adds_up() {
        let [src, dst] = ["10.0.0.1:9", "10.0.0.2:10"].map(|at| at.parse().unwrap());
        let packet = udp_v4(src, dst, b"odd");
        assert_eq!(
            read_udp_v4(&packet),
            Some((*src.ip(), *dst.ip(), &b"odd"[..]))
        );
        assert_eq!(destination_v4(&packet), Some(*dst.ip()));
        assert_eq!(sum(&packet[..V4_LEN]), 0xffff);
    }

    #[test]
    fn a_packet_that_is_turned_around_goes_back() {
        let mut packet = vec![0x45, 0, 0, 30, 0, 0, 0, 0, 64, UDP, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4, 0, 10, 0, 0, 7, 8]);
        turn_around(&mut packet);
        let [one, two] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from);
        assert_eq!(read_udp_v4(&packet), Some((two, one, &[7, 8][..])));
        assert_eq!(packet.get(20..24), Some(&[3, 4, 1, 2][..]));
    }
}
