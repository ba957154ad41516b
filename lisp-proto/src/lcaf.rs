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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::hex::hex;

    #[test]
    fn bytes_left_over_in_a_fixed_shape_are_an_error() {
        let fixed = [
            (2, "00000001 0001 0a000001"),
            (3, "0000fde8 0001 0a000001"),
            (5, "000000000000000000000000 0001 0a000001"),
            (9, "00000001 0000 2020 0001 0a000001 0001 e0000001"),
            (11, "01000600 0001 aa 0001 0a000001"),
            (12, "0000 2020 0001 0a000001 0001 0a000002"),
        ];
        for (kind, body) in fixed {
            assert!(read(kind, body).is_ok(), "{kind}");
            let error = DecodeError::LcafLength { kind, excess: 1 };
            assert_eq!(read(kind, &format!("{body} 00")), Err(error));
            let cut = &body[..body.len() - 2];
            assert!(
                matches!(read(kind, cut), Err(DecodeError::Truncated { .. })),
                "{kind}"
            );
        }
        assert_eq!(read(0, ""), Ok(()));
        assert_eq!(
            read(0, "00"),
            Err(DecodeError::LcafLength { kind: 0, excess: 1 })
        );
    }

    #[test]
    fn lists_end_with_their_lcaf_and_may_be_empty() {
        for (kind, item) in [
            (1, "0001 0a000001"),
            (10, "0005 0001 0a000001"),
            (13, "000000 01 0001 0a000001"),
        ] {
            for count in 0..3 {
                assert_eq!(read(kind, &item.repeat(count)), Ok(()));
            }
            assert!(matches!(
                read(kind, &item[..item.len() - 2]),
                Err(DecodeError::Truncated { .. })
            ));
        }
        let nat = "0000 ca6c 0001 c0000201 0000 0000";
        for rtrs in ["", "0000", "0001 c0000202 0001 c0000203"] {
            assert_eq!(read(7, &format!("{nat} {rtrs}")), Ok(()));
        }
    }

    #[test]
    fn unknown_types_are_not_looked_into_but_vendor_specific_ones_are_refused() {
        for kind in [4, 6, 8, 14, 15, 16, 200] {
            assert_eq!(read(kind, "ff ff ff"), Ok(()));
        }
        assert_eq!(read(255, "00 123456 00"), Err(DecodeError::VendorSpecific));
        assert_eq!(
            read(1, "4003 0000ff00 0000"),
            Err(DecodeError::VendorSpecific)
        );
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(nested(MAX_NESTING).is_ok());
        assert_eq!(nested(MAX_NESTING + 1), Err(DecodeError::TooDeep));
        assert_eq!(nested(255), Err(DecodeError::TooDeep));
    }

    #[test]
    fn prefixes_inside_are_not_longer_than_their_addresses() {
        let field = "prefix";
        let error = DecodeError::MaskLength {
            field,
            mask_len: 33,
        };
        assert_eq!(
            read(12, "0000 2120 0001 0a000001 0001 0a000002"),
            Err(error)
        );
        assert_eq!(
            read(12, "0000 2021 0001 0a000001 0001 0a000002"),
            Err(error)
        );
    }

    fn read(kind: u8, body: &str) -> Result<(), DecodeError> {
        let body = hex(body);
        let bytes = [
            hex(&format!("4003 0000 {kind:02x} 00 {:04x}", body.len())),
            body,
        ]
        .concat();
        let mut reader = Reader::new(&bytes);
        Address::read(&mut reader, "address", 0)?;
        reader.end()
    }

    /// Reads an address inside `depth` lists.
    fn nested(depth: u8) -> Result<(), DecodeError> {
        let mut bytes = hex("0001 0a000001");
        for _ in 0..depth {
            let length = u16::try_from(bytes.len()).unwrap();
            bytes = [hex("4003 0000 0100"), length.to_be_bytes().into(), bytes].concat();
        }
        Address::read(&mut Reader::new(&bytes), "address", 0).map(|_| ())
    }
}
