//! Which IP and UDP headers stand before the message inside an ECM (RFC 9301 §5.8), or inside a tunnel?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::{DecodeError, EncodeError};
use crate::reader::Reader;
use crate::writer::Writer;

/// Reads an IP packet with a whole UDP datagram: where it comes from, where it goes, and what it says. Bytes beyond
/// its own lengths are ignored: WireGuard pads.
///
/// # Errors
/// It is something else, a fragment, or damaged.
pub fn decode_udp(packet: &[u8]) -> Result<(SocketAddr, SocketAddr, &[u8]), DecodeError> {
    let inner = InnerPacket::read(&mut Reader::new(packet))?;
    if !inner.intact {
        return Err(bad("UDP checksum"));
    }
    Ok((inner.source, inner.destination, inner.message))
}

/// Appends an IP packet with one UDP datagram to `out`.
///
/// # Errors
/// The addresses are not of the same family, or the message is longer than a UDP datagram. Nothing is appended then.
pub fn encode_udp(
    source: SocketAddr,
    destination: SocketAddr,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut writer = Writer::new(out);
    write_headers(source, destination, message, &mut writer)?;
    writer.bytes(message);
    Ok(())
}

/// A UDP packet, its headers read.
pub(crate) struct InnerPacket<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// UDP checksum as received.
    pub(crate) checksum: u16,
    /// Whether it is right, or absent over IPv4.
    pub(crate) intact: bool,
    pub(crate) message: &'a [u8],
}

impl<'a> InnerPacket<'a> {
    /// Reads and checks one packet. Bytes beyond its own lengths are ignored.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let ip = match reader.rest().first().map(|byte| byte >> 4) {
            Some(4) => Ip::read_v4(reader)?,
            Some(6) => Ip::read_v6(reader)?,
            Some(_) => return Err(bad("IP version")),
            None => {
                return Err(DecodeError::Truncated {
                    field: "inner IP header",
                    missing: 1,
                });
            }
        };
        ip.read_udp()
    }
}

/// An IP packet, its header read.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn read_v4(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let field = "inner IPv4 header";
        let [first, _service] = reader.array(field)?;
        let total_len = usize::from(reader.u16(field)?);
        let _identification = reader.u16(field)?;
        let fragment = reader.u16(field)?;
        let [_ttl, protocol] = reader.array(field)?;
        let _checksum = reader.u16(field)?;
        let source = Ipv4Addr::from_octets(reader.array(field)?);
        let destination = Ipv4Addr::from_octets(reader.array(field)?);
        let header_len = usize::from(first & 0x0f) * 4;
        let options_len = header_len
            .checked_sub(IPV4_HEADER_LEN.into())
            .ok_or(bad("IPv4 header length"))?;
        reader.bytes("inner IPv4 options", options_len)?;
        if protocol != PROTOCOL_UDP {
            return Err(bad("IP protocol"));
        }
        if fragment & IPV4_FRAGMENT != 0 {
            return Err(bad("fragment"));
        }
        let payload_len = total_len
            .checked_sub(header_len)
            .ok_or(bad("IPv4 total length"))?;
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            payload: reader.bytes("inner IPv4 payload", payload_len)?,
        })
    }

    fn read_v6(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let field = "inner IPv6 header";
        let _version_class_flow = reader.u32(field)?;
        let payload_len = usize::from(reader.u16(field)?);
        let [next_header, _hop_limit] = reader.array(field)?;
        let source = Ipv6Addr::from_octets(reader.array(field)?);
        let destination = Ipv6Addr::from_octets(reader.array(field)?);
        if next_header != PROTOCOL_UDP {
            return Err(bad("IP protocol"));
        }
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            payload: reader.bytes("inner IPv6 payload", payload_len)?,
        })
    }

    fn read_udp(&self) -> Result<InnerPacket<'a>, DecodeError> {
        let field = "inner UDP header";
        let start = Reader::new(self.payload);
        let mut reader = start;
        let source_port = reader.u16(field)?;
        let destination_port = reader.u16(field)?;
        let length = usize::from(reader.u16(field)?);
        let checksum = reader.u16(field)?;
        let message_len = length
            .checked_sub(UDP_HEADER_LEN.into())
            .ok_or(bad("UDP length"))?;
        let message = reader.bytes("inner UDP payload", message_len)?;
        if source_port == DATA_PORT || destination_port == DATA_PORT {
            return Err(bad("UDP port"));
        }
        // Many tools send no checksum; over IPv6 there must be one.
        let unchecked = checksum == 0 && self.source.is_ipv4();
        let sum = pseudo_header_sum(self.source, self.destination, length)
            + sum_words(reader.since(&start));
        Ok(InnerPacket {
            source: SocketAddr::new(self.source, source_port),
            destination: SocketAddr::new(self.destination, destination_port),
            checksum,
            intact: unchecked || (checksum != 0 && fold(sum) == 0xffff),
            message,
        })
    }
}

const fn bad(field: &'static str) -> DecodeError {
    DecodeError::InnerPacket { field }
}

/// Writes IP and UDP headers, with their checksums, for `message`.
pub(crate) fn write_headers(
    source: SocketAddr,
    destination: SocketAddr,
    message: &[u8],
    writer: &mut Writer<'_>,
) -> Result<(), EncodeError> {
    let too_long = EncodeError::TooLong(message.len());
    let udp_len = u16::try_from(message.len())
        .ok()
        .and_then(|len| len.checked_add(UDP_HEADER_LEN))
        .ok_or(too_long)?;
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total_len = udp_len.checked_add(IPV4_HEADER_LEN).ok_or(too_long)?;
            writer.bytes(&ipv4_header(source, destination, total_len));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            writer.u32(6 << 28);
            writer.u16(udp_len);
            writer.bytes(&[PROTOCOL_UDP, HOP_LIMIT]);
            writer.bytes(&source.octets());
            writer.bytes(&destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            return Err(EncodeError::MixedFamilies);
        }
    }
    let header = [source.port(), destination.port(), udp_len];
    let sum = pseudo_header_sum(source.ip(), destination.ip(), udp_len.into())
        + header.iter().map(|word| u64::from(*word)).sum::<u64>()
        + sum_words(message);
    for word in header {
        writer.u16(word);
    }
    // A checksum of 0 would mean that there is none.
    writer.u16(match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    });
    Ok(())
}

fn ipv4_header(source: Ipv4Addr, destination: Ipv4Addr, total_len: u16) -> [u8; 20] {
    let [len_high, len_low] = total_len.to_be_bytes();
    let [s0, s1, s2, s3] = source.octets();
    let [d0, d1, d2, d3] = destination.octets();
    let header = |checksum: u16| {
        let [sum_high, sum_low] = checksum.to_be_bytes();
        #[rustfmt::skip]
        let header = [
            0x45, 0, len_high, len_low,
            0, 0, 0, 0,
            HOP_LIMIT, PROTOCOL_UDP, sum_high, sum_low,
            s0, s1, s2, s3,
            d0, d1, d2, d3,
        ];
        header
    };
    header(!fold(sum_words(&header(0))))
}

/// Adds up what a UDP checksum covers besides the UDP packet (RFC 768, RFC 8200 §8.1).
fn pseudo_header_sum(source: IpAddr, destination: IpAddr, udp_len: usize) -> u64 {
    let address = |address| match address {
        IpAddr::V4(v4) => sum_words(&v4.octets()),
        IpAddr::V6(v6) => sum_words(&v6.octets()),
    };
    address(source) + address(destination) + u64::from(PROTOCOL_UDP) + udp_len as u64
}

/// Adds up 16-bit words; an odd last byte counts as if a zero followed.
fn sum_words(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let words = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)));
    let last = last.iter().map(|byte| u64::from(*byte) << 8);
    words.chain(last).sum()
}

/// Folds a sum to 16 bits, carries added back in. A right checksum makes it 0xffff.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the loop ends once the sum fits 16 bits"
)]
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

const IPV4_HEADER_LEN: u16 = 20;
const UDP_HEADER_LEN: u16 = 8;
const PROTOCOL_UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;
/// More fragments, or a fragment offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// LISP data; never inside an ECM.
const DATA_PORT: u16 = 4341;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_checksums_are_right() {
        let source = "192.0.2.1:1024".parse().unwrap();
        let destination = "10.2.2.2:4342".parse().unwrap();
        for message in [b"".as_slice(), b"a", b"ab", b"abc"] {
            let mut packet = Vec::new();
            write_headers(source, destination, message, &mut Writer::new(&mut packet)).unwrap();
            assert_eq!(fold(sum_words(&packet[..20])), 0xffff);
            packet.extend_from_slice(message);
            let inner = InnerPacket::read(&mut Reader::new(&packet)).unwrap();
            assert_eq!(inner.message, message);
            assert_ne!(inner.checksum, 0);
        }
    }

    #[test]
    fn what_a_tunnel_carries_is_read_whole_or_not_at_all() {
        for [source, destination] in [
            ["192.0.2.1:4342", "192.0.2.2:4343"],
            ["[fd00::1]:4342", "[fd00::2]:4343"],
        ] {
            let [source, destination] = [source, destination].map(|it| it.parse().unwrap());
            let mut packet = Vec::new();
            encode_udp(source, destination, b"odd", &mut packet).unwrap();
            let whole = packet.len();
            packet.extend([0; 13]);
            let read = (source, destination, &b"odd"[..]);
            assert_eq!(decode_udp(&packet), Ok(read), "padded");
            assert!(decode_udp(&packet[..whole - 1]).is_err(), "cut");
            packet[whole - 1] ^= 1;
            assert!(decode_udp(&packet).is_err(), "damaged");
        }
        let (v4, v6) = ("192.0.2.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        let mut nothing = Vec::new();
        assert!(encode_udp(v4, v6, b"odd", &mut nothing).is_err());
        assert!(encode_udp(v4, v4, &[0; 65_600], &mut nothing).is_err());
        assert!(nothing.is_empty());
    }

    #[test]
    fn a_computed_checksum_of_zero_is_sent_as_all_ones() {
        let source = "0.0.0.0:0".parse().unwrap();
        let destination = "0.0.0.0:0".parse().unwrap();
        // Protocol 17 and the length of 10 twice leave this much to the sum of 0xffff.
        let message = (0xffff_u16 - 17 - 10 - 10).to_be_bytes();
        let mut packet = Vec::new();
        write_headers(source, destination, &message, &mut Writer::new(&mut packet)).unwrap();
        assert_eq!(packet[26..28], [0xff, 0xff]);
        packet.extend_from_slice(&message);
        assert!(InnerPacket::read(&mut Reader::new(&packet)).unwrap().intact);
    }
}
