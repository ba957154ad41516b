//! Which prefix is reachable where, and for how long? (RFC 9301 §5.4)

use crate::address::{Address, EncodedAddress};
use crate::error::{DecodeError, EncodeError};
use crate::mapping::{Action, EidPrefix, Locator, Record, Rloc};
use crate::reader::Reader;
use crate::types::Ttl;
use crate::wireguard;
use crate::writer::Writer;

/// An EID-to-RLOC record, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    ttl: Ttl,
    locator_count: u8,
    mask_len: u8,
    flags: u16,
    map_version: u16,
    eid: EncodedAddress<'a>,
    locators: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Reads and checks one record with all its locators.
    ///
    /// ```text
    ///  |                      Record TTL (32)                      |
    ///  | Locator Count (8) | EID mask-len (8) | ACT (3) A (1) 0 (12) |
    ///  | 0 (4) Map-Version (12)      | EID AFI (16), EID-prefix ...
    ///  | Locator Count times: locator ...
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let ttl = Ttl::from_minutes(reader.u32("record TTL")?);
        let locator_count = reader.u8("locator count")?;
        let mask_len = reader.u8("EID mask-len")?;
        let flags = reader.u16("record flags")?;
        let map_version = reader.u16("map-version")? & 0x0fff;
        let (eid, address) = EncodedAddress::take_eid(reader, "EID")?;
        address.check_mask_len("EID mask-len", mask_len)?;
        let start = *reader;
        for _ in 0..locator_count {
            LocatorView::read(reader)?;
        }
        Ok(Self {
            ttl,
            locator_count,
            mask_len,
            flags,
            map_version,
            eid,
            locators: reader.since(&start),
        })
    }

    /// Returns how long the record may be used.
    #[must_use]
    pub const fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// Returns what to do with packets when there are no locators.
    #[must_use]
    pub const fn action(&self) -> Action {
        Action::from_bits(self.flags >> ACTION_SHIFT)
    }

    /// Whether the record comes from the ETR itself (A).
    #[must_use]
    pub const fn authoritative(&self) -> bool {
        self.flags & FLAG_AUTHORITATIVE != 0
    }

    /// Returns the version of the mapping (RFC 9302); 0 when the sender keeps none.
    #[must_use]
    pub const fn map_version(&self) -> u16 {
        self.map_version
    }

    /// Returns the prefix, or `None` for a kind of EID that is not served here.
    #[must_use]
    pub fn eid(&self) -> Option<EidPrefix> {
        self.eid.read().eid_prefix(self.mask_len)
    }

    /// Returns the EID of whatever kind, host bits included.
    #[must_use]
    pub fn eid_address(&self) -> Address<'a> {
        self.eid.read()
    }

    /// Returns the length of the EID-prefix in bits.
    #[must_use]
    pub const fn mask_len(&self) -> u8 {
        self.mask_len
    }

    /// Returns how many locators there are, of whatever kind.
    #[must_use]
    pub const fn locator_count(&self) -> u8 {
        self.locator_count
    }

    /// Returns the locators, of whatever kind.
    pub fn locators(&self) -> impl Iterator<Item = LocatorView<'a>> + use<'a> {
        let mut reader = Reader::new(self.locators);
        std::iter::from_fn(move || LocatorView::read(&mut reader).ok())
    }

    /// Copies the record; locators that are of no use here are left out. Returns `None` for a
    /// kind of EID that is not served. `default_port` is for WireGuard locators without a port.
    #[must_use]
    pub fn to_record(&self, default_port: u16) -> Option<Record> {
        let locators = self.locators();
        Some(Record {
            eid: self.eid()?,
            ttl: self.ttl,
            action: self.action(),
            authoritative: self.authoritative(),
            locators: locators
                .filter_map(|locator| locator.to_locator(default_port))
                .collect(),
        })
    }
}

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
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [priority, weight, multicast_priority, multicast_weight] =
            reader.array("locator priorities")?;
        let flags = reader.u16("locator flags")?;
        let (address, _) = EncodedAddress::take(reader, "locator", 0)?;
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
        wireguard::read_rloc(&self.address(), default_port)
    }

    fn to_locator(self, default_port: u16) -> Option<Locator> {
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

/// Reads and checks `count` records; returns their bytes.
pub(crate) fn take_records<'a>(
    reader: &mut Reader<'a>,
    count: u8,
) -> Result<Records<'a>, DecodeError> {
    let start = *reader;
    for _ in 0..count {
        RecordView::read(reader)?;
    }
    Ok(Records(reader.since(&start)))
}

/// The bytes of records that were already checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || RecordView::read(&mut reader).ok())
    }
}

/// Checks that the counts of all records fit their fields; returns the record count.
pub(crate) fn check_counts(records: &[Record]) -> Result<u8, EncodeError> {
    for record in records {
        locator_count(record)?;
    }
    u8::try_from(records.len()).map_err(|_| EncodeError::TooManyRecords(records.len()))
}

/// Writes one record, its locators in the order of RFC 9301 §5.4.
pub(crate) fn write_record(writer: &mut Writer<'_>, record: &Record) -> Result<(), EncodeError> {
    writer.u32(record.ttl.minutes());
    writer.u8(locator_count(record)?);
    writer.u8(record.eid.net().prefix_len());
    // ACT speaks of prefixes without locators; elsewhere it is sent as 0.
    let action = match record.locators.as_slice() {
        [] => record.action.bits() << ACTION_SHIFT,
        [_, ..] => 0,
    };
    writer.u16(action | flag(record.authoritative, FLAG_AUTHORITATIVE));
    writer.u16(0);
    writer.eid_prefix(record.eid);
    if record.locators.is_sorted_by_key(|locator| locator.rloc) {
        for locator in &record.locators {
            write_locator(writer, locator);
        }
    } else {
        let mut sorted: Vec<&Locator> = record.locators.iter().collect();
        sorted.sort_by_key(|locator| locator.rloc);
        for locator in sorted {
            write_locator(writer, locator);
        }
    }
    Ok(())
}

fn write_locator(writer: &mut Writer<'_>, locator: &Locator) {
    writer.bytes(&[locator.priority, locator.weight]);
    writer.bytes(&[MULTICAST_UNUSED, 0]);
    writer.u16(
        flag(locator.local, FLAG_LOCAL)
            | flag(locator.probed, FLAG_PROBED)
            | flag(locator.reachable, FLAG_REACHABLE),
    );
    wireguard::write_rloc(writer, &locator.rloc);
}

fn locator_count(record: &Record) -> Result<u8, EncodeError> {
    let count = record.locators.len();
    u8::try_from(count).map_err(|_| EncodeError::TooManyLocators(count))
}

const fn flag(set: bool, mask: u16) -> u16 {
    if set { mask } else { 0 }
}

const ACTION_SHIFT: u32 = 13;
const FLAG_AUTHORITATIVE: u16 = 0x1000;
const FLAG_LOCAL: u16 = 0x0004;
const FLAG_PROBED: u16 = 0x0002;
const FLAG_REACHABLE: u16 = 0x0001;

/// The multicast priority of a locator that takes no multicast.
const MULTICAST_UNUSED: u8 = 255;
