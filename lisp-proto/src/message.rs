//! Which message is this? (RFC 9301 §5.1)

use crate::ecm::Ecm;
use crate::error::DecodeError;
use crate::info::Info;
use crate::notify::MapNotify;
use crate::reader::Reader;
use crate::referral::MapReferral;
use crate::register::MapRegister;
use crate::reply::MapReply;
use crate::request::MapRequest;
use crate::types::{SiteId, XtrId};

/// A LISP control message, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Type 1: asks for a mapping.
    MapRequest(MapRequest<'a>),
    /// Type 2: answers a Map-Request.
    MapReply(MapReply<'a>),
    /// Type 3: stores a mapping.
    MapRegister(MapRegister<'a>),
    /// Type 4: acknowledges a Map-Register, or tells about a mapping.
    MapNotify(MapNotify<'a>),
    /// Type 5: acknowledges a Map-Notify.
    MapNotifyAck(MapNotify<'a>),
    /// Type 6: names the nodes of the delegation tree to ask next.
    MapReferral(MapReferral<'a>),
    /// Type 7: looks for a NAT, or answers such a request.
    InfoRequest(Info<'a>),
    /// Type 8: carries another message.
    Ecm(Ecm<'a>),
}

/// Reads one UDP payload of port 4342.
///
/// The whole message is checked, down to the addresses nested in it; nothing is copied. Only the
/// message inside an Encapsulated Control Message is left alone: it is decoded by itself.
///
/// # Errors
///
/// Names the first field that is wrong. The message must then be dropped.
pub fn decode(datagram: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(datagram);
    let first = Reader::new(datagram).u8("message type")?;
    let reader = &mut reader;
    let message = match first >> 4 {
        1 => Message::MapRequest(MapRequest::read(reader)?),
        2 => Message::MapReply(MapReply::read(reader)?),
        3 => Message::MapRegister(MapRegister::read(reader)?),
        4 => Message::MapNotify(MapNotify::read_notify(reader)?),
        5 => Message::MapNotifyAck(MapNotify::read_ack(reader)?),
        6 => Message::MapReferral(MapReferral::read(reader)?),
        7 => Message::InfoRequest(Info::read(reader)?),
        8 => Message::Ecm(Ecm::read(reader)?),
        kind => return Err(DecodeError::UnsupportedType(kind)),
    };
    Ok(message)
}

/// Reads the identity that ends a Map-Register or a subscription.
pub(crate) fn read_ids(reader: &mut Reader<'_>) -> Result<(XtrId, SiteId), DecodeError> {
    let xtr = XtrId(reader.array("xTR-ID")?);
    let site = SiteId(reader.array("Site-ID")?);
    Ok((xtr, site))
}

/// Whether a flag is set in its byte.
pub(crate) const fn bit(byte: u8, mask: u8) -> bool {
    byte & mask != 0
}

/// Returns the mask of a flag that is set, 0 otherwise.
pub(crate) const fn flag(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

/// Returns the mask of a flag that is set in a 16-bit field, 0 otherwise.
pub(crate) const fn flag16(set: bool, mask: u16) -> u16 {
    if set { mask } else { 0 }
}

/// Bytes of an xTR-ID and a Site-ID.
pub(crate) const IDS_LEN: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_types_are_refused() {
        for kind in [0, 9, 10, 11, 12, 13, 14, 15] {
            let error = DecodeError::UnsupportedType(kind);
            assert_eq!(decode(&[kind << 4, 0, 0, 0]), Err(error));
        }
        assert!(matches!(decode(&[]), Err(DecodeError::Truncated { .. })));
    }
}
