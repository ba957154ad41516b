//! Which address do these bytes hold? (RFC 9301 §5.1; RFC 8060 §3)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::DecodeError;
use crate::lcaf::{LCAF_INSTANCE_ID, Lcaf};
use crate::mapping::{EidPrefix, InstanceId};
use crate::reader::Reader;

/// An address in one of the families that LISP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// AFI 0: no address.
    None,
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A 48-bit MAC address.
    Mac([u8; 6]),
    /// A distinguished name, without the zero byte that ends it (RFC 9735).
    Name(&'a [u8]),
    /// A LISP canonical address (RFC 8060).
    Lcaf(Lcaf<'a>),
}

impl<'a> Address<'a> {
    /// Reads one address behind its AFI and checks all it contains. `depth` counts the LCAFs
    /// around it.
    pub(crate) fn read(
        reader: &mut Reader<'a>,
        field: &'static str,
        depth: u8,
    ) -> Result<Self, DecodeError> {
        let address = match reader.u16(field)? {
            AFI_NONE => Self::None,
            AFI_IPV4 => Self::Ip(Ipv4Addr::from_octets(reader.array(field)?).into()),
            AFI_IPV6 => Self::Ip(Ipv6Addr::from_octets(reader.array(field)?).into()),
            AFI_MAC | AFI_MAC_OLD => Self::Mac(reader.array(field)?),
            AFI_NAME => Self::Name(reader.zero_terminated(field)?),
            AFI_LCAF => Self::Lcaf(Lcaf::read(reader, field, depth)?),
            afi => return Err(DecodeError::UnknownAfi { field, afi }),
        };
        Ok(address)
    }

    /// Reads an EID: here an unknown LCAF type is an error (RFC 9306 §3).
    pub(crate) fn read_eid(
        reader: &mut Reader<'a>,
        field: &'static str,
    ) -> Result<Self, DecodeError> {
        let address = Self::read(reader, field, 0)?;
        if let Self::Lcaf(Lcaf::Unknown { kind, .. }) = address {
            return Err(DecodeError::UnknownLcaf { field, kind });
        }
        Ok(address)
    }

    /// Returns the address if it is a plain IPv4 or IPv6 one.
    #[must_use]
    pub const fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::None | Self::Mac(_) | Self::Name(_) | Self::Lcaf(_) => None,
        }
    }

    /// Returns instance and address of an EID; `None` for a kind of EID that is not served.
    pub(crate) fn instance_and_ip(&self) -> Option<(InstanceId, IpAddr)> {
        match self {
            Self::Ip(address) => Some((InstanceId::default(), *address)),
            Self::Lcaf(Lcaf::InstanceId { iid, address, .. }) => Some((*iid, address.read().ip()?)),
            Self::None | Self::Mac(_) | Self::Name(_) | Self::Lcaf(_) => None,
        }
    }

    /// Returns the EID-prefix of this length; `None` for a kind of EID that is not served.
    pub(crate) fn eid_prefix(&self, mask_len: u8) -> Option<EidPrefix> {
        let (iid, address) = self.instance_and_ip()?;
        prefix_of(iid, address, mask_len)
    }

    /// Checks a prefix length against the address it belongs to.
    pub(crate) fn check_mask_len(
        &self,
        field: &'static str,
        mask_len: u8,
    ) -> Result<(), DecodeError> {
        let longest = match self.instance_and_ip() {
            Some((_, IpAddr::V4(_))) => 32,
            Some((_, IpAddr::V6(_))) => 128,
            None => u8::MAX,
        };
        if mask_len > longest {
            return Err(DecodeError::MaskLength { field, mask_len });
        }
        Ok(())
    }
}

/// The bytes of one address that was already checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedAddress<'a>(&'a [u8]);

impl<'a> EncodedAddress<'a> {
    /// Takes the bytes of an address that was checked already.
    pub(crate) const fn of(checked: &'a [u8]) -> Self {
        Self(checked)
    }

    /// Returns the bytes, with the AFI.
    pub(crate) const fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Reads one address, and keeps where it is.
    pub(crate) fn take(
        reader: &mut Reader<'a>,
        field: &'static str,
        depth: u8,
    ) -> Result<(Self, Address<'a>), DecodeError> {
        let start = *reader;
        let address = Address::read(reader, field, depth)?;
        Ok((Self(reader.since(&start)), address))
    }

    /// Reads one EID, and keeps where it is.
    pub(crate) fn take_eid(
        reader: &mut Reader<'a>,
        field: &'static str,
    ) -> Result<(Self, Address<'a>), DecodeError> {
        let start = *reader;
        let address = Address::read_eid(reader, field)?;
        Ok((Self(reader.since(&start)), address))
    }

    /// Returns the address.
    #[must_use]
    pub fn read(&self) -> Address<'a> {
        Address::read(&mut Reader::new(self.0), "address", 0).unwrap_or(Address::None)
    }
}

/// Reads the instance and address of an EID that begins `bytes`, and its length there, if it is one of those that
/// nearly all are: an IPv4 or IPv6 address, by itself or in an instance (RFC 8060 §4.1). Reading it as
/// [`Address`] gives the same, and takes several times as long.
pub(crate) fn read_common_eid(bytes: &[u8]) -> Option<(InstanceId, IpAddr, usize)> {
    let [0x40, 0x03, _, _, LCAF_INSTANCE_ID, _, 0, length, rest @ ..] = bytes else {
        let (address, len) = read_ip(bytes)?;
        return Some((InstanceId::default(), address, len));
    };
    let (iid, rest) = rest.split_first_chunk()?;
    let (address, len) = read_ip(rest)?;
    let iid = InstanceId(u32::from_be_bytes(*iid));
    (usize::from(*length) == 4 + len).then_some((iid, address, 12 + len))
}

fn read_ip(bytes: &[u8]) -> Option<(IpAddr, usize)> {
    match bytes {
        [0, 1, rest @ ..] => Some((Ipv4Addr::from_octets(*rest.first_chunk()?).into(), 6)),
        [0, 2, rest @ ..] => Some((Ipv6Addr::from_octets(*rest.first_chunk()?).into(), 18)),
        _ => None,
    }
}

/// Returns the prefix of this length around an address.
pub(crate) fn prefix_of(iid: InstanceId, address: IpAddr, mask_len: u8) -> Option<EidPrefix> {
    let net = ipnet::IpNet::new(address, mask_len).ok()?;
    Some(EidPrefix::new(iid, net))
}

/// Walks over addresses that follow one another, already checked.
pub(crate) fn address_list<'a>(bytes: &'a [u8]) -> impl Iterator<Item = Address<'a>> + use<'a> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || Address::read(&mut reader, "address", 0).ok())
}

pub(crate) const AFI_NONE: u16 = 0;
pub(crate) const AFI_IPV4: u16 = 1;
pub(crate) const AFI_IPV6: u16 = 2;
const AFI_MAC_OLD: u16 = 6;
pub(crate) const AFI_NAME: u16 = 17;
pub(crate) const AFI_LCAF: u16 = 0x4003;
pub(crate) const AFI_MAC: u16 = 0x4005;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn every_family_is_read() {
        assert_eq!(read("0000"), Ok(Address::None));
        assert_eq!(
            read("0001 c0000201"),
            Ok(Address::Ip([192, 0, 2, 1].into()))
        );
        let v6 = read("0002 20010db8000000000000000000000001").unwrap();
        assert_eq!(v6.ip(), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(
            read("4005 010203040506"),
            Ok(Address::Mac([1, 2, 3, 4, 5, 6]))
        );
        assert_eq!(
            read("0006 010203040506"),
            Ok(Address::Mac([1, 2, 3, 4, 5, 6]))
        );
        assert_eq!(read("0011 6162 00"), Ok(Address::Name(b"ab")));
        assert_eq!(read("0011 00"), Ok(Address::Name(b"")));
    }

    #[test]
    fn unknown_families_and_cut_addresses_are_refused() {
        let field = "address";
        let afi = 99;
        assert_eq!(read("0063"), Err(DecodeError::UnknownAfi { field, afi }));
        for cut in [
            "",
            "00",
            "0001 c00002",
            "0002 2001",
            "0011 6162",
            "4003 00000100",
        ] {
            assert!(
                matches!(read(cut), Err(DecodeError::Truncated { .. })),
                "{cut}"
            );
        }
    }

    #[test]
    fn an_eid_of_an_unknown_type_is_refused_but_not_a_locator() {
        let bytes = hex("4003 0000aa00 0002 0102");
        let error = DecodeError::UnknownLcaf {
            field: "EID",
            kind: 0xaa,
        };
        assert_eq!(
            Address::read_eid(&mut Reader::new(&bytes), "EID"),
            Err(error)
        );
        assert!(Address::read(&mut Reader::new(&bytes), "locator", 0).is_ok());
    }

    #[test]
    fn an_instance_id_makes_the_prefix_its_own() {
        let bytes = hex("4003 00000220 000a 00000007 0001 0a010203");
        let eid = Address::read(&mut Reader::new(&bytes), "EID", 0).unwrap();
        assert_eq!(eid.eid_prefix(16), Some("[7]10.1.0.0/16".parse().unwrap()));
        assert!(eid.check_mask_len("EID", 32).is_ok());
        assert!(eid.check_mask_len("EID", 33).is_err());
    }

    #[test]
    fn a_common_eid_is_read_as_any_other_is_or_not_at_all() {
        for text in [
            "0001 0a010203",
            "0002 20010db8000000000000000000000001",
            "4003 00000220 000a 00000007 0001 0a010203",
            "4003 00000200 0016 01000000 0002 20010db8000000000000000000000001",
        ] {
            let good = hex(text);
            let common = read_common_eid(&good).unwrap();
            let mut read = 0;
            for position in 0..good.len() {
                assert_eq!(read_common_eid(&good[..position]), None);
                for bit in 0..8 {
                    let mut bytes = good.clone();
                    bytes[position] ^= 1 << bit;
                    let Some((iid, address, len)) = read_common_eid(&bytes) else {
                        continue;
                    };
                    let mut reader = Reader::new(&bytes);
                    let eid = Address::read_eid(&mut reader, "EID").unwrap();
                    assert_eq!(eid.instance_and_ip(), Some((iid, address)));
                    assert_eq!(reader.rest(), &bytes[len..]);
                    read += 1;
                }
            }
            assert!(read >= 32, "the address may be another");
            let mut reader = Reader::new(&good);
            let eid = Address::read_eid(&mut reader, "EID").unwrap();
            assert_eq!(eid.instance_and_ip(), Some((common.0, common.1)));
        }
    }

    fn read(text: &str) -> Result<Address<'static>, DecodeError> {
        let bytes = hex(text).leak();
        Address::read(&mut Reader::new(bytes), "address", 0)
    }
}
