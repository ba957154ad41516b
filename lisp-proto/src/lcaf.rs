//! What does a LISP canonical address hold? (RFC 8060 §4)
//!
//! Bodies are checked when the message is decoded, to the last byte; the views here then read
//! them in place. Nested addresses are read when asked for.

use crate::address::EncodedAddress;
use crate::error::DecodeError;
use crate::lcaf_body::{AfiList, ExplicitPath, NatTraversal, ReplicationList, SecurityKey};
use crate::mapping::InstanceId;
use crate::reader::Reader;

/// A LISP canonical address, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lcaf<'a> {
    /// Type 0: nothing.
    Null,
    /// Type 1: several addresses.
    AfiList(AfiList<'a>),
    /// Type 2: an address in one instance of the address plan.
    InstanceId {
        /// The instance.
        iid: InstanceId,
        /// Length of a range of instances; meaningful only without an address.
        iid_mask_len: u8,
        /// The address.
        address: EncodedAddress<'a>,
    },
    /// Type 3: an address and the number of its autonomous system.
    AsNumber {
        /// The autonomous system.
        asn: u32,
        /// The address.
        address: EncodedAddress<'a>,
    },
    /// Type 5: an address and where on Earth it is.
    Geo {
        /// Latitude, longitude and altitude, not interpreted.
        coordinates: [u8; 12],
        /// The address.
        address: EncodedAddress<'a>,
    },
    /// Type 7: ports and addresses behind a NAT.
    NatTraversal(NatTraversal<'a>),
    /// Type 9: a multicast source and group.
    Multicast {
        /// The instance.
        iid: InstanceId,
        /// Source and the length of its prefix.
        source: (EncodedAddress<'a>, u8),
        /// Group and the length of its prefix.
        group: (EncodedAddress<'a>, u8),
    },
    /// Type 10: the hops a packet must take.
    ExplicitPath(ExplicitPath<'a>),
    /// Type 11: public keys and the locator they belong to.
    SecurityKey(SecurityKey<'a>),
    /// Type 12: an EID made of a source and a destination prefix.
    SourceDest {
        /// Source and the length of its prefix.
        source: (EncodedAddress<'a>, u8),
        /// Destination and the length of its prefix.
        destination: (EncodedAddress<'a>, u8),
    },
    /// Type 13: replication points by level.
    ReplicationList(ReplicationList<'a>),
    /// A type that is unknown, or was never approved: not looked into.
    Unknown {
        /// The LCAF type.
        kind: u8,
        /// What it holds.
        body: &'a [u8],
    },
}

impl<'a> Lcaf<'a> {
    /// Reads what follows the AFI.
    ///
    /// ```text
    ///  |  Rsvd1 (8)  |  Flags (8)  |  Type (8)  |  Rsvd2 (8)  |
    ///  |         Length (16)       |  Length bytes of body ...
    /// ```
    pub(crate) fn read(
        reader: &mut Reader<'a>,
        field: &'static str,
        depth: u8,
    ) -> Result<Self, DecodeError> {
        if depth >= MAX_NESTING {
            return Err(DecodeError::TooDeep);
        }
        let [_, _, kind, rsvd2] = reader.array("LCAF header")?;
        let length = reader.u16("LCAF length")?;
        let mut body = Reader::new(reader.bytes("LCAF body", length.into())?);
        let lcaf = Self::read_body(&mut body, kind, rsvd2, (field, depth + 1))?;
        match body.rest().len() {
            0 => Ok(lcaf),
            excess => Err(DecodeError::LcafLength { kind, excess }),
        }
    }

    fn read_body(
        body: &mut Reader<'a>,
        kind: u8,
        rsvd2: u8,
        (field, depth): (&'static str, u8),
    ) -> Result<Self, DecodeError> {
        let address = |body: &mut Reader<'a>| {
            EncodedAddress::take(body, field, depth).map(|(encoded, _)| encoded)
        };
        let lcaf = match kind {
            0 => Self::Null,
            LCAF_AFI_LIST => Self::AfiList(AfiList::read(body, field, depth)?),
            LCAF_INSTANCE_ID => Self::InstanceId {
                iid: InstanceId(body.u32("instance-id")?),
                iid_mask_len: rsvd2,
                address: address(body)?,
            },
            3 => Self::AsNumber {
                asn: body.u32("AS number")?,
                address: address(body)?,
            },
            5 => Self::Geo {
                coordinates: body.array("geo coordinates")?,
                address: address(body)?,
            },
            LCAF_NAT_TRAVERSAL => Self::NatTraversal(NatTraversal::read(body, depth)?),
            9 => {
                let iid = InstanceId(body.u32("instance-id")?);
                let (source, group) = read_prefix_pair(body, depth)?;
                Self::Multicast { iid, source, group }
            }
            10 => Self::ExplicitPath(ExplicitPath::read(body, depth)?),
            LCAF_SECURITY_KEY => Self::SecurityKey(SecurityKey::read(body, depth)?),
            12 => {
                let (source, destination) = read_prefix_pair(body, depth)?;
                Self::SourceDest {
                    source,
                    destination,
                }
            }
            13 => Self::ReplicationList(ReplicationList::read(body, depth)?),
            255 => return Err(DecodeError::VendorSpecific),
            kind => Self::Unknown {
                kind,
                body: take_rest(body)?,
            },
        };
        Ok(lcaf)
    }
}

type Prefix<'a> = (EncodedAddress<'a>, u8);

/// Reads the shape that types 9 and 12 end with: two lengths, then two prefixes.
fn read_prefix_pair<'a>(
    body: &mut Reader<'a>,
    depth: u8,
) -> Result<(Prefix<'a>, Prefix<'a>), DecodeError> {
    let [_, _, first_len, second_len] = body.array("prefix lengths")?;
    let mut prefix = |mask_len| {
        let (encoded, address) = EncodedAddress::take(body, "prefix", depth)?;
        address.check_mask_len("prefix", mask_len)?;
        Ok((encoded, mask_len))
    };
    Ok((prefix(first_len)?, prefix(second_len)?))
}

fn take_rest<'a>(body: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    body.bytes("LCAF body", body.rest().len())
}

/// How many LCAFs may be nested in one another.
pub(crate) const MAX_NESTING: u8 = 8;

pub(crate) const LCAF_AFI_LIST: u8 = 1;
pub(crate) const LCAF_INSTANCE_ID: u8 = 2;
pub(crate) const LCAF_NAT_TRAVERSAL: u8 = 7;
pub(crate) const LCAF_SECURITY_KEY: u8 = 11;
