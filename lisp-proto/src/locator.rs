//! Where is a prefix reachable, and how well? (RFC 9301 §5.4)

use crate::address::{AFI_NAME, Address, EncodedAddress};
use crate::error::DecodeError;
use crate::form_a::read_form_a;
use crate::mapping::{Locator, Rloc};
use crate::message::flag16;
use crate::reader::Reader;
use crate::wireguard;
use crate::writer::Writer;

/// One locator of a record, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorView<'a> {
    /// Lower is better; 255 must not be used.
    pub priority: u8,
    /// Share of the traffic among locators of equal priority.
    pub weight: u8,
    /// The same for multicast; 255 is not for multicast.
    pub multicast_priority: u8,
    /// Share of the multicast traffic.
    pub multicast_weight: u8,
    /// The locator belongs to the sender (L).
    pub local: bool,
    /// The locator is the one that was probed (p).
    pub probed: bool,
    /// The sender has a route to the locator (R).
    pub reachable: bool,
    address: EncodedAddress<'a>,
}

impl<'a> LocatorView<'a> {
    /// Reads and checks one locator.
    ///
    /// ```text
    ///  | Priority (8) | Weight (8) | M Priority (8) | M Weight (8) |
    ///  | unused (13) L p R         | Loc-AFI (16), locator ...
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [priority, weight, multicast_priority, multicast_weight] =
            reader.array("locator priorities")?;
        let flags = reader.u16("locator flags")?;
        let address = match read_form_a(reader.rest()) {
            Some((_, len)) => EncodedAddress::of(reader.bytes("locator", len)?),
            None => EncodedAddress::take(reader, "locator", 0)?.0,
        };
        Ok(Self {
            priority,
            weight,
            multicast_priority,
            multicast_weight,
            local: flags & FLAG_LOCAL != 0,
            probed: flags & FLAG_PROBED != 0,
            reachable: flags & FLAG_REACHABLE != 0,
            address,
        })
    }

    /// Returns the address, of whatever kind.
    #[must_use]
    pub fn address(&self) -> Address<'a> {
        self.address.read()
    }

    /// Returns where packets can be sent, or `None` when the locator is of a kind that is not
    /// served, carries no usable key or port, or contradicts itself. `default_port` is for
    /// WireGuard locators without a port.
    #[must_use]
    pub fn rloc(&self, default_port: u16) -> Option<Rloc> {
        wireguard::read_rloc(&self.address, default_port)
    }

    pub(crate) fn to_locator(self, default_port: u16) -> Option<Locator> {
        Some(Locator {
            priority: self.priority,
            weight: self.weight,
            local: self.local,
            probed: self.probed,
            reachable: self.reachable,
            rloc: self.rloc(default_port)?,
        })
    }
}

/// Writes one locator.
pub(crate) fn write_locator(writer: &mut Writer<'_>, locator: &Locator) {
    writer.bytes(&[locator.priority, locator.weight]);
    writer.bytes(&[MULTICAST_UNUSED, 0]);
    writer.u16(
        flag16(locator.local, FLAG_LOCAL)
            | flag16(locator.probed, FLAG_PROBED)
            | flag16(locator.reachable, FLAG_REACHABLE),
    );
    wireguard::write_rloc(writer, &locator.rloc);
}

/// Writes a name in the place of a locator (RFC 9735): nobody sends packets there.
pub(crate) fn write_name(writer: &mut Writer<'_>, name: &str) {
    writer.bytes(&[NOT_TO_BE_USED, 0, MULTICAST_UNUSED, 0]);
    writer.u16(0);
    writer.u16(AFI_NAME);
    writer.bytes(name.as_bytes());
    writer.u8(0);
}

const FLAG_LOCAL: u16 = 0x0004;
const FLAG_PROBED: u16 = 0x0002;
const FLAG_REACHABLE: u16 = 0x0001;

/// The priority of what must not be used.
const NOT_TO_BE_USED: u8 = 255;
/// The multicast priority of a locator that takes no multicast.
const MULTICAST_UNUSED: u8 = 255;
