//! How is a message carried inside another? (RFC 9301 §5.8)

use std::net::SocketAddr;

use crate::error::{DecodeError, EncodeError};
use crate::inner_packet::{InnerPacket, write_headers};
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
    /// Inner UDP checksum as received.
    pub checksum: u16,
    /// Whether that is right, or 0 over IPv4. Otherwise the message must not be acted upon.
    pub intact: bool,
    /// The message inside, not decoded; never another ECM.
    pub message: &'a [u8],
}

impl<'a> Ecm<'a> {
    /// Reads an ECM. One with LISP-SEC data (S, RFC 9303) is refused.
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
        let inner = InnerPacket::read(reader)?;
        if inner
            .message
            .first()
            .is_some_and(|byte| byte & 0xf0 == TYPE)
        {
            return Err(DecodeError::InnerPacket {
                field: "message type",
            });
        }
        Ok(Self {
            source: inner.source,
            destination: inner.destination,
            ddt: bit(first, DDT),
            to_etr: bit(first, TO_ETR),
            to_map_server: bit(first, TO_MAP_SERVER),
            checksum: inner.checksum,
            intact: inner.intact,
            message: inner.message,
        })
    }
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
    let start = out.len();
    let mut writer = Writer::new(out);
    writer.bytes(&[TYPE, 0, 0, 0]);
    if let Err(error) = write_headers(source, destination, message, &mut writer) {
        out.truncate(start);
        return Err(error);
    }
    writer.bytes(message);
    Ok(())
}

const TYPE: u8 = 0x80;
const SECURITY: u8 = 0x08;
const DDT: u8 = 0x04;
const TO_ETR: u8 = 0x02;
const TO_MAP_SERVER: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"\x10 any message";

    #[test]
    fn what_is_wrapped_comes_out_again() {
        for (source, destination) in [
            ("192.0.2.1:4342", "10.2.2.2:4342"),
            ("[2001:db8::1]:1024", "[fd00::2]:4342"),
        ] {
            let bytes = wrap(source, destination);
            let ecm = read(&bytes).unwrap();
            assert_eq!(ecm.source, source.parse().unwrap());
            assert_eq!(ecm.destination, destination.parse().unwrap());
            assert_eq!(ecm.message, MESSAGE);
            let padded = [&bytes[..], &[0; 6]].concat();
            assert_eq!(read(&padded), Ok(ecm));
            for end in 0..bytes.len() {
                assert!(matches!(
                    read(&bytes[..end]),
                    Err(DecodeError::Truncated { .. })
                ));
            }
        }
    }

    #[test]
    fn a_checksum_may_be_absent_over_ipv4_only() {
        let mut v4 = wrap("192.0.2.1:4342", "10.2.2.2:4342");
        v4[30] ^= 1;
        assert!(!read(&v4).unwrap().intact);
        v4[30..32].fill(0);
        let unchecked = read(&v4).unwrap();
        assert_eq!((unchecked.checksum, unchecked.intact), (0, true));
        let mut v6 = wrap("[2001:db8::1]:1024", "[fd00::2]:4342");
        v6[50..52].fill(0);
        assert!(!read(&v6).unwrap().intact);
    }

    #[test]
    fn inner_headers_are_checked() {
        let good = wrap("192.0.2.1:4342", "10.2.2.2:4342");
        for (offset, value, field) in [
            (4, 0x55, "IP version"),
            (4, 0x44, "IPv4 header length"),
            (10, 0x20, "fragment"),
            (11, 0x01, "fragment"),
            (13, 6, "IP protocol"),
            (7, 19, "IPv4 total length"),
            (29, 7, "UDP length"),
        ] {
            let mut bytes = good.clone();
            bytes[offset] = value;
            assert_eq!(read(&bytes), bad(field));
        }
        assert_eq!(
            read(&wrap("192.0.2.1:4341", "10.2.2.2:4342")),
            bad("UDP port")
        );
        assert_eq!(
            read(&wrap("192.0.2.1:4342", "10.2.2.2:4341")),
            bad("UDP port")
        );
        let mut secure = good.clone();
        secure[0] |= SECURITY;
        assert_eq!(read(&secure), Err(DecodeError::SecurityUnsupported));
        let mut nested = Vec::new();
        let address = "192.0.2.1:4342".parse().unwrap();
        encode_ecm(address, address, &good, &mut nested).unwrap();
        assert_eq!(read(&nested), bad("message type"));
    }

    #[test]
    fn what_cannot_be_wrapped_leaves_no_trace() {
        let (v4, v6) = ("192.0.2.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        let mut out = vec![7];
        let error = Err(EncodeError::MixedFamilies);
        assert_eq!(encode_ecm(v4, v6, MESSAGE, &mut out), error);
        let longest = 65535 - 28;
        let error = Err(EncodeError::TooLong(longest + 1));
        assert_eq!(encode_ecm(v4, v4, &vec![0; longest + 1], &mut out), error);
        assert_eq!(out, [7]);
        assert_eq!(encode_ecm(v4, v4, &vec![0; longest], &mut out), Ok(()));
    }

    fn wrap(source: &str, destination: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        encode_ecm(source, destination, MESSAGE, &mut out).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<Ecm<'_>, DecodeError> {
        Ecm::read(&mut Reader::new(bytes))
    }

    fn bad(field: &'static str) -> Result<Ecm<'static>, DecodeError> {
        Err(DecodeError::InnerPacket { field })
    }
}
