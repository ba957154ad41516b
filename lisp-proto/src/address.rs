//! Which address do these bytes hold? (RFC 9301 §5.1; RFC 8060 §3)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::DecodeError;
use crate::lcaf::Lcaf;
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
        let net = ipnet::IpNet::new(address, mask_len).ok()?;
        Some(EidPrefix::new(iid, net))
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

/// Walks over addresses that follow one another, already checked.
pub(crate) fn address_list<'a>(bytes: &'a [u8]) -> impl Iterator<Item = Address<'a>> + use<'a> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || Address::read(&mut reader, "address", 0).ok())
}

pub(crate) const AFI_NONE: u16 = 0;
pub(crate) const AFI_IPV4: u16 = 1;
pub(crate) const AFI_IPV6: u16 = 2;
const AFI_MAC_OLD: u16 = 6;
const AFI_NAME: u16 = 17;
pub(crate) const AFI_LCAF: u16 = 0x4003;
pub(crate) const AFI_MAC: u16 = 0x4005;
