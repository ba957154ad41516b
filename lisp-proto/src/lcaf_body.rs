//! What do the longer LCAF bodies hold? (RFC 8060 §4)

use crate::address::{Address, EncodedAddress, address_list};
use crate::error::DecodeError;
use crate::reader::Reader;

/// LCAF type 1: addresses whose order has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfiList<'a>(&'a [u8]);

impl<'a> AfiList<'a> {
    pub(crate) fn read(
        body: &mut Reader<'a>,
        field: &'static str,
        depth: u8,
    ) -> Result<Self, DecodeError> {
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
    pub(crate) fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
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
    pub(crate) fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
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
    pub(crate) fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
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
    pub(crate) fn read(body: &mut Reader<'a>, depth: u8) -> Result<Self, DecodeError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;
    use crate::lcaf::Lcaf;

    #[test]
    fn a_path_keeps_its_hops_in_order() {
        let bytes = hex("4003 00000a00 0010 0005 0001 c0000201 0002 0001 c0000202");
        let Lcaf::ExplicitPath(path) = lcaf(&bytes) else {
            panic!("another type");
        };
        let hops: Vec<_> = path.hops().collect();
        assert_eq!(hops.len(), 2);
        assert!(hops[0].lookup && !hops[0].probe && hops[0].strict);
        assert!(!hops[1].lookup && hops[1].probe && !hops[1].strict);
        assert_eq!(hops[1].address.ip(), Some([192, 0, 2, 2].into()));
    }

    #[test]
    fn replication_points_have_levels() {
        let bytes = hex("4003 00000d00 0014 000000 01 0001 c0000201 000000 02 0001 c0000202");
        let Lcaf::ReplicationList(list) = lcaf(&bytes) else {
            panic!("another type");
        };
        let levels: Vec<u8> = list.entries().map(|(level, _)| level).collect();
        assert_eq!(levels, [1, 2]);
    }

    #[test]
    fn a_lone_empty_address_stands_for_no_rtrs() {
        let nat = "0000 ca6c 0001 c0000201 0000 0000";
        for (rtrs, count) in [("", 0), ("0000", 0), ("0001 c0000202", 1)] {
            let length = hex(nat).len() + hex(rtrs).len();
            let bytes = hex(&format!("4003 00000700 {length:04x} {nat} {rtrs}"));
            let Lcaf::NatTraversal(nat) = lcaf(&bytes) else {
                panic!("another type");
            };
            assert_eq!(nat.etr_port, 51820);
            assert_eq!(nat.rtrs().count(), count);
        }
    }

    fn lcaf(bytes: &[u8]) -> Lcaf<'_> {
        match Address::read(&mut Reader::new(bytes), "address", 0) {
            Ok(Address::Lcaf(lcaf)) => lcaf,
            other => panic!("{other:?}"),
        }
    }
}
