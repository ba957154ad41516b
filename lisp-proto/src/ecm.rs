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
    /// Inner UDP checksum as received: right, or 0 over IPv4.
    pub checksum: u16,
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
