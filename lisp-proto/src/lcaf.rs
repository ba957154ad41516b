//! What does a LISP canonical address hold? (RFC 8060 §4)
//!
//! Bodies are checked when the message is decoded, to the last byte; the views here then read
//! them in place. Nested addresses are read when asked for.

use crate::address::{Address, EncodedAddress, address_list};
use crate::error::DecodeError;
use crate::reader::Reader;
use crate::types::InstanceId;

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

/// LCAF type 1: addresses whose order has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfiList<'a>(&'a [u8]);

impl<'a> AfiList<'a> {
    fn read(body: &mut Reader<'a>, field: &'static str, depth: u8) -> Result<Self, DecodeError> {
        let start = *body;
        while !body.rest().is_empty() {
            Address::read(body, field, depth)?;
        }
        Ok(Self(body.since(&start)))
    }

    /// Returns the addresses.
    pub fn items(&self) -> impl Iterator<Item = Address<'a>> + use<'a> {
        address_list(self.0)
    }
}

/// LCAF type 7: what a NAT makes of an xTR's address (RFC 8060 §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatTraversal<'a> {
    /// UDP port of the Map-Server.
    pub ms_port: u16,
    /// UDP port of the ETR as seen from outside.
    pub etr_port: u16,
    /// Address of the ETR as seen from outside.
    pub global_etr: EncodedAddress<'a>,
    /// Address of the Map-Server.
    pub ms: EncodedAddress<'a>,
    /// Address of the ETR behind the NAT.
    pub private_etr: EncodedAddress<'a>,
    rtrs: &'a [u8],
}

impl<'a> NatTraversal<'a> {
    fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
        let ms_port = body.u16("MS port")?;
        let etr_port = body.u16("ETR port")?;
        let (global_etr, _) = EncodedAddress::take(body, "Global ETR RLOC", depth)?;
        let (ms, _) = EncodedAddress::take(body, "MS RLOC", depth)?;
        let (private_etr, _) = EncodedAddress::take(body, "Private ETR RLOC", depth)?;
        let start = *body;
        while !body.rest().is_empty() {
            Address::read(body, "RTR RLOC", depth)?;
        }
        Ok(Self {
            ms_port,
            etr_port,
            global_etr,
            ms,
            private_etr,
            rtrs: body.since(&start),
        })
    }

    /// Returns the addresses of the re-encapsulating tunnel routers.
    pub fn rtrs(&self) -> impl Iterator<Item = Address<'a>> + use<'a> {
        address_list(self.rtrs).filter(|address| *address != Address::None)
    }
}

/// LCAF type 10: hops in the order a packet takes them (RFC 8060 §4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplicitPath<'a>(&'a [u8]);

/// One hop of an explicit path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop<'a> {
    /// The address is an EID to look up (L).
    pub lookup: bool,
    /// The hop may be probed (P).
    pub probe: bool,
    /// The hop must not be skipped (S).
    pub strict: bool,
    /// Where the hop is.
    pub address: Address<'a>,
}

impl<'a> ExplicitPath<'a> {
    fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
        let start = *body;
        while !body.rest().is_empty() {
            Self::read_hop(body, depth)?;
        }
        Ok(Self(body.since(&start)))
    }

    fn read_hop(body: &mut Reader<'a>, depth: u8) -> Result<Hop<'a>, DecodeError> {
        let flags = body.u16("hop flags")?;
        Ok(Hop {
            lookup: flags & 0x0004 != 0,
            probe: flags & 0x0002 != 0,
            strict: flags & 0x0001 != 0,
            address: Address::read(body, "hop", depth)?,
        })
    }

    /// Returns the hops.
    pub fn hops(&self) -> impl Iterator<Item = Hop<'a>> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || Self::read_hop(&mut reader, 0).ok())
    }
}

/// LCAF type 11: public keys and the locator they belong to (RFC 8060 §4.7, RFC 8061 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityKey<'a> {
    /// How many keys there are.
    pub key_count: u8,
    /// The cipher suite (RFC 8061 §6).
    pub algorithm: u8,
    /// The keys are revoked (R).
    pub revoked: bool,
    /// The locator that owns the keys.
    pub locator: EncodedAddress<'a>,
    keys: &'a [u8],
}

impl<'a> SecurityKey<'a> {
    fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
        let [key_count, _, algorithm, flags] = body.array("security key header")?;
        let start = *body;
        for _ in 0..key_count {
            Self::read_key(body)?;
        }
        let keys = body.since(&start);
        let (locator, _) = EncodedAddress::take(body, "key locator", depth)?;
        Ok(Self {
            key_count,
            algorithm,
            revoked: flags & 0x01 != 0,
            locator,
            keys,
        })
    }

    fn read_key(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
        let length = reader.u16("key length")?;
        reader.bytes("key material", length.into())
    }

    /// Returns the keys, each as its raw bytes.
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.keys);
        std::iter::from_fn(move || Self::read_key(&mut reader).ok())
    }
}

/// LCAF type 13: replication points by level (RFC 8060 §4.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicationList<'a>(&'a [u8]);

impl<'a> ReplicationList<'a> {
    fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
        let start = *body;
        while !body.rest().is_empty() {
            Self::read_entry(body, depth)?;
        }
        Ok(Self(body.since(&start)))
    }

    fn read_entry(body: &mut Reader<'a>, depth: u8) -> Result<(u8, Address<'a>), DecodeError> {
        let [_, _, _, level] = body.array("replication level")?;
        Ok((level, Address::read(body, "replication point", depth)?))
    }

    /// Returns level and address of each point.
    pub fn entries(&self) -> impl Iterator<Item = (u8, Address<'a>)> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || Self::read_entry(&mut reader, 0).ok())
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
