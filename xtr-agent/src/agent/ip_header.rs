//! The little the agent needs to know of IP: version, source, destination, and how to say "unreachable".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

/// Longest part of the offending packet quoted in an ICMPv4 error (RFC 1812 4.3.2.3).
const QUOTE_V4: usize = 548;
/// Longest ICMPv6 error (RFC 4443 2.4 c), less its IPv6 and ICMPv6 headers.
const QUOTE_V6: usize = 1280 - 48;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Why a packet cannot be delivered, as the sender's ICMP error says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody serves the destination, or nobody answered.
    Host,
    /// Policy forbids it.
    Prohibited,
}

/// Source and destination of an IP packet; `None` when it is not a whole IP header.
#[must_use]
pub(super) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let src = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
            let dst = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
            Some((Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()))
        }
        6 if packet.len() >= 40 => {
            let src = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
            let dst = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
            Some((Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into()))
        }
        _ => None,
    }
}

/// Builds the ICMP error that tells the sender of `packet` that it cannot be delivered.
///
/// It comes from the packet's destination: a local source would be refused by
/// the kernel as a martian. `None` where RFC 1122 3.2.2 and RFC 4443 2.4 forbid
/// an error: for ICMP errors, later fragments, and multicast or broadcast.
#[must_use]
pub(super) fn unreachable(packet: &[u8], why: Unreachable) -> Option<Bytes> {
    match addresses(packet)? {
        (IpAddr::V4(src), IpAddr::V4(dst)) => unreachable_v4(packet, src, dst, why),
        (IpAddr::V6(src), IpAddr::V6(dst)) => unreachable_v6(packet, src, dst, why),
        _ => None,
    }
}

fn unreachable_v4(packet: &[u8], src: Ipv4Addr, dst: Ipv4Addr, why: Unreachable) -> Option<Bytes> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let fragment_offset = u16::from_be_bytes([*packet.get(6)? & 0x1f, *packet.get(7)?]);
    let unicast = |a: Ipv4Addr| !(a.is_multicast() || a.is_broadcast() || a.is_unspecified());
    if fragment_offset != 0 || !unicast(src) || !unicast(dst) {
        return None;
    }
    // Of ICMP only echo, timestamp and their like may be answered with an error.
    if *packet.get(9)? == ICMP && !matches!(*packet.get(header_len)?, 0 | 8 | 13..=18) {
        return None;
    }
    let quote = packet.get(..packet.len().min(QUOTE_V4))?;
    let code = match why {
        Unreachable::Host => 1,
        Unreachable::Prohibited => 13,
    };
    let total = u16::try_from(28 + quote.len()).ok()?;
    let mut out = Vec::with_capacity(usize::from(total));
    out.extend([0x45, 0xc0]);
    out.extend(total.to_be_bytes());
    out.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    out.extend(dst.octets());
    out.extend(src.octets());
    let header_sum = checksum(&[&out]);
    out.get_mut(10..12)?.copy_from_slice(&header_sum);
    let mut icmp = vec![3, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quote);
    let sum = checksum(&[&icmp]);
    icmp.get_mut(2..4)?.copy_from_slice(&sum);
    out.extend(icmp);
    Some(out.into())
}

fn unreachable_v6(packet: &[u8], src: Ipv6Addr, dst: Ipv6Addr, why: Unreachable) -> Option<Bytes> {
    if src.is_multicast() || src.is_unspecified() || dst.is_multicast() {
        return None;
    }
    // ICMPv6 errors are the types below 128.
    if *packet.get(6)? == ICMPV6 && *packet.get(40)? < 128 {
        return None;
    }
    let quote = packet.get(..packet.len().min(QUOTE_V6))?;
    let code = match why {
        Unreachable::Host => 3,
        Unreachable::Prohibited => 1,
    };
    let mut icmp = vec![1, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quote);
    let length = u16::try_from(icmp.len()).ok()?.to_be_bytes();
    let pseudo = [0, 0, length[0], length[1], 0, 0, 0, ICMPV6];
    let sum = checksum(&[&dst.octets(), &src.octets(), &pseudo, &icmp]);
    icmp.get_mut(2..4)?.copy_from_slice(&sum);
    let mut out = Vec::with_capacity(40 + icmp.len());
    out.extend([0x60, 0, 0, 0]);
    out.extend(length);
    out.extend([ICMPV6, 64]);
    out.extend(dst.octets());
    out.extend(src.octets());
    out.extend(icmp);
    Some(out.into())
}

/// Builds an echo request. In a message of WireGuard it takes as many bytes as no number of keepalives does.
#[must_use]
pub(super) fn echo(src: IpAddr, dst: IpAddr) -> Option<Bytes> {
    let mut out = Vec::with_capacity(48);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut icmp = vec![8; 1];
            icmp.resize(8 + 16, 0);
            let sum = checksum(&[&icmp]);
            icmp.get_mut(2..4)?.copy_from_slice(&sum);
            out.extend([0x45, 0, 0, 44, 0, 0, 0, 0, 64, ICMP, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            let sum = checksum(&[&out]);
            out.get_mut(10..12)?.copy_from_slice(&sum);
            out.extend(icmp);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut icmp = [128, 0, 0, 0, 0, 0, 0, 0];
            let pseudo = [0, 0, 0, 8, 0, 0, 0, ICMPV6];
            let sum = checksum(&[&src.octets(), &dst.octets(), &pseudo, &icmp]);
            icmp.get_mut(2..4)?.copy_from_slice(&sum);
            out.extend([0x60, 0, 0, 0, 0, 8, ICMPV6, 64]);
            out.extend(src.octets());
            out.extend(dst.octets());
            out.extend(icmp);
        }
        _ => return None,
    }
    Some(out.into())
}

/// Internet checksum (RFC 1071) over slices of which all but the last are even.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or(0);
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap_or(0);
    (!folded).to_be_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A UDP packet of the right family with `payload`; checksums are left zero.
    pub(crate) fn packet(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut out = Vec::new();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out.extend([0x45, 0]);
                out.extend((20 + length).to_be_bytes());
                out.extend([0, 0, 0, 0, 64, 17, 0, 0]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                out.extend([0x60, 0, 0, 0]);
                out.extend(length.to_be_bytes());
                out.extend([17, 64]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            _ => panic!("mixed families"),
        }
        out.extend([0x10, 0, 0x20, 0]);
        out.extend(length.to_be_bytes());
        out.extend([0, 0]);
        out.extend(payload);
        out
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let v4 = packet("10.0.0.1", "10.0.0.2", b"x");
        assert_eq!(
            addresses(&v4),
            Some(("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()))
        );
        let v6 = packet("fd00::1", "fd00::2", b"x");
        assert_eq!(
            addresses(&v6),
            Some(("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()))
        );
        assert_eq!(addresses(&v4[..19]), None);
        assert_eq!(addresses(&v6[..39]), None);
        assert_eq!(addresses(&[]), None);
    }

    #[test]
    fn an_echo_request_is_whole_and_takes_80_bytes_in_a_message_of_wireguard() {
        let ends = |src: &str, dst: &str| (src.parse().unwrap(), dst.parse().unwrap());
        for (src, dst) in [ends("10.0.0.1", "10.0.0.2"), ends("fd00::1", "fd00::2")] {
            let packet = echo(src, dst).unwrap();
            assert_eq!(addresses(&packet), Some((src, dst)));
            assert_eq!(32 + packet.len().next_multiple_of(16), 80);
            if src.is_ipv4() {
                assert_eq!(checksum(&[&packet[..20]]), [0, 0]);
                assert_eq!(checksum(&[&packet[20..]]), [0, 0]);
            } else {
                let pseudo = [0, 0, 0, 8, 0, 0, 0, ICMPV6];
                assert_eq!(checksum(&[&packet[8..40], &pseudo, &packet[40..]]), [0, 0]);
            }
        }
        let (src, dst) = ends("10.0.0.1", "fd00::2");
        assert_eq!(echo(src, dst), None);
    }

    #[test]
    fn an_error_comes_from_the_destination_and_its_checksums_fit() {
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let offending = packet(src, dst, &[7; 2000]);
            let error = unreachable(&offending, Unreachable::Host).unwrap();
            assert_eq!(
                addresses(&error),
                Some((dst.parse().unwrap(), src.parse().unwrap()))
            );
            if error[0] >> 4 == 4 {
                assert_eq!(checksum(&[&error[..20]]), [0, 0]);
                assert_eq!(checksum(&[&error[20..]]), [0, 0]);
                assert_eq!((error[20], error[21]), (3, 1));
            } else {
                let length = u16::from_be_bytes([error[4], error[5]]).to_be_bytes();
                let pseudo = [0, 0, length[0], length[1], 0, 0, 0, ICMPV6];
                assert_eq!(checksum(&[&error[8..40], &pseudo, &error[40..]]), [0, 0]);
                assert_eq!((error[40], error[41]), (1, 3));
            }
        }
    }

    #[test]
    fn errors_are_not_answered_with_errors() {
        let v4 = unreachable(&packet("10.0.0.1", "10.0.0.2", b""), Unreachable::Host).unwrap();
        assert_eq!(unreachable(&v4, Unreachable::Host), None);
        let v6 = unreachable(&packet("fd00::1", "fd00::2", b""), Unreachable::Prohibited).unwrap();
        assert_eq!(unreachable(&v6, Unreachable::Host), None);
        let multicast = packet("10.0.0.1", "224.0.0.1", b"");
        assert_eq!(unreachable(&multicast, Unreachable::Host), None);
        let mut fragment = packet("10.0.0.1", "10.0.0.2", b"");
        fragment[7] = 3;
        assert_eq!(unreachable(&fragment, Unreachable::Host), None);
    }
}
