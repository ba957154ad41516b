//! How is a message carried inside another? (RFC 9301 §5.8)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::{DecodeError, EncodeError};
use crate::message::bit;
use crate::reader::Reader;
use crate::writer::Writer;

/// An Encapsulated Control Message, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecm<'a> {
    /// Inner source address and port.
    pub source: SocketAddr,
    /// Inner destination address and port; the address is the EID asked for.
    pub destination: SocketAddr,
    /// Comes from a node of the delegation tree (D, RFC 8111).
    pub ddt: bool,
    /// Goes to an ETR (E).
    pub to_etr: bool,
    /// Goes to a Map-Server (M).
    pub to_map_server: bool,
    /// Inner UDP checksum as received: right, or 0 over IPv4.
    pub checksum: u16,
    /// The message inside, not decoded; never another ECM.
    pub message: &'a [u8],
}

impl<'a> Ecm<'a> {
    /// Reads an ECM.
    ///
    /// ```text
    ///  | Type 8 S D E M |             reserved (24)              |
    ///  | inner IPv4 or IPv6 header | inner UDP header | message ...
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [first, _, _, _] = reader.array("ECM header")?;
        if bit(first, SECURITY) {
            return Err(DecodeError::SecurityUnsupported);
        }
        let (source, destination, datagram) = read_ip(reader)?;
        let udp = read_udp(datagram, source, destination)?;
        if udp.message.first().is_some_and(|byte| byte & 0xf0 == TYPE) {
            return Err(bad("message type"));
        }
        Ok(Self {
            source: SocketAddr::new(source, udp.source_port),
            destination: SocketAddr::new(destination, udp.destination_port),
            ddt: bit(first, DDT),
            to_etr: bit(first, TO_ETR),
            to_map_server: bit(first, TO_MAP_SERVER),
            checksum: udp.checksum,
            message: udp.message,
        })
    }
}

/// Reads the inner IP header; returns source, destination and payload.
fn read_ip<'a>(reader: &mut Reader<'a>) -> Result<(IpAddr, IpAddr, &'a [u8]), DecodeError> {
    match reader.rest().first().map(|byte| byte >> 4) {
        Some(4) => read_ipv4(reader),
        Some(6) => read_ipv6(reader),
        Some(_) => Err(bad("IP version")),
        None => Err(DecodeError::Truncated {
            field: "inner IP header",
            missing: 1,
        }),
    }
}

fn read_ipv4<'a>(reader: &mut Reader<'a>) -> Result<(IpAddr, IpAddr, &'a [u8]), DecodeError> {
    let field = "inner IPv4 header";
    let [first, _] = reader.array(field)?;
    let total_len = usize::from(reader.u16(field)?);
    let _identification = reader.u16(field)?;
    let fragment = reader.u16(field)?;
    let [_ttl, protocol] = reader.array(field)?;
    let _checksum = reader.u16(field)?;
    let source = Ipv4Addr::from_octets(reader.array(field)?);
    let destination = Ipv4Addr::from_octets(reader.array(field)?);
    let header_len = usize::from(first & 0x0f) * 4;
    let options_len = header_len
        .checked_sub(IPV4_HEADER_LEN)
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
    let payload = reader.bytes("inner IPv4 payload", payload_len)?;
    Ok((source.into(), destination.into(), payload))
}

fn read_ipv6<'a>(reader: &mut Reader<'a>) -> Result<(IpAddr, IpAddr, &'a [u8]), DecodeError> {
    let field = "inner IPv6 header";
    reader.bytes(field, 4)?;
    let payload_len = usize::from(reader.u16(field)?);
    let [next_header, _hop_limit] = reader.array(field)?;
    let source = Ipv6Addr::from_octets(reader.array(field)?);
    let destination = Ipv6Addr::from_octets(reader.array(field)?);
    if next_header != PROTOCOL_UDP {
        return Err(bad("IP protocol"));
    }
    let payload = reader.bytes("inner IPv6 payload", payload_len)?;
    Ok((source.into(), destination.into(), payload))
}

struct Udp<'a> {
    source_port: u16,
    destination_port: u16,
    checksum: u16,
    message: &'a [u8],
}

/// Reads the inner UDP header. Bytes beyond its length are ignored.
fn read_udp(datagram: &[u8], source: IpAddr, destination: IpAddr) -> Result<Udp<'_>, DecodeError> {
    let field = "inner UDP header";
    let mut reader = Reader::new(datagram);
    let start = reader;
    let source_port = reader.u16(field)?;
    let destination_port = reader.u16(field)?;
    let length = usize::from(reader.u16(field)?);
    let checksum = reader.u16(field)?;
    let message_len = length
        .checked_sub(UDP_HEADER_LEN)
        .ok_or(bad("UDP length"))?;
    let message = reader.bytes("inner UDP payload", message_len)?;
    if source_port == DATA_PORT || destination_port == DATA_PORT {
        return Err(bad("UDP port"));
    }
    // Many tools send no checksum; IPv6 forbids that.
    let unchecked = checksum == 0 && source.is_ipv4();
    if !unchecked && udp_checksum(source, destination, reader.since(&start)) != 0 {
        return Err(bad("UDP checksum"));
    }
    Ok(Udp {
        source_port,
        destination_port,
        checksum,
        message,
    })
}

const fn bad(field: &'static str) -> DecodeError {
    DecodeError::InnerPacket { field }
}

/// Appends an ECM to `out` that carries `message` from `source` to `destination`.
///
/// # Errors
///
/// When the addresses are of different families, or the message does not fit an IP packet;
/// `out` is unchanged then.
pub fn encode_ecm(
    source: SocketAddr,
    destination: SocketAddr,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let too_long = EncodeError::TooLong(message.len());
    let udp_len = u16::try_from(UDP_HEADER_LEN + message.len()).map_err(|_| too_long)?;
    let mut writer = Writer::new(out);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total_len = udp_len.checked_add(IPV4_HEADER_LEN_U16).ok_or(too_long)?;
            writer.bytes(&[TYPE, 0, 0, 0]);
            writer.bytes(&ipv4_header(source, destination, total_len));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            writer.bytes(&[TYPE, 0, 0, 0]);
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
    let start = out.len();
    let mut writer = Writer::new(out);
    writer.u16(source.port());
    writer.u16(destination.port());
    writer.u16(udp_len);
    writer.u16(0);
    writer.bytes(message);
    let datagram = out.get_mut(start..).unwrap_or_default();
    let checksum = match udp_checksum(source.ip(), destination.ip(), datagram) {
        // 0 would mean that there is none.
        0 => 0xffff,
        checksum => checksum,
    };
    if let Some(field) = datagram.get_mut(6..8) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
    Ok(())
}

fn ipv4_header(source: Ipv4Addr, destination: Ipv4Addr, total_len: u16) -> [u8; IPV4_HEADER_LEN] {
    let [len_high, len_low] = total_len.to_be_bytes();
    let [s0, s1, s2, s3] = source.octets();
    let [d0, d1, d2, d3] = destination.octets();
    let header = |[sum_high, sum_low]: [u8; 2]| {
        [
            0x45,
            0,
            len_high,
            len_low,
            0,
            0,
            0,
            0, // version, lengths, no fragment
            HOP_LIMIT,
            PROTOCOL_UDP,
            sum_high,
            sum_low, // checksum
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ]
    };
    let checksum = !fold(sum_words(&header([0, 0])));
    header(checksum.to_be_bytes())
}

/// Computes the UDP checksum of `datagram` (RFC 768, RFC 8200 §8.1); over a datagram that holds
/// its right checksum the result is 0.
fn udp_checksum(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> u16 {
    let addresses = sum_address(source) + sum_address(destination);
    let pseudo_header = addresses + u64::from(PROTOCOL_UDP) + datagram.len() as u64;
    !fold(pseudo_header + sum_words(datagram))
}

fn sum_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => sum_words(&v4.octets()),
        IpAddr::V6(v6) => sum_words(&v6.octets()),
    }
}

/// Adds up 16-bit words; an odd last byte counts as if a zero followed.
fn sum_words(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let words: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    let last: u64 = last.iter().map(|byte| u64::from(*byte) << 8).sum();
    words + last
}

/// Folds a sum to 16 bits, carries added back in.
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

const TYPE: u8 = 0x80;
const SECURITY: u8 = 0x08;
const DDT: u8 = 0x04;
const TO_ETR: u8 = 0x02;
const TO_MAP_SERVER: u8 = 0x01;

const IPV4_HEADER_LEN: usize = 20;
const IPV4_HEADER_LEN_U16: u16 = 20;
const UDP_HEADER_LEN: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;
/// More fragments, or a fragment offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// LISP data; never inside an ECM.
const DATA_PORT: u16 = 4341;
