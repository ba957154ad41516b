//! Which prefix is reachable where, and for how long? (RFC 9301 §5.4)

use crate::address::{Address, EncodedAddress, prefix_of, read_common_eid};
use crate::error::{DecodeError, EncodeError};
use crate::locator::{LocatorView, write_locator, write_name};
use crate::mapping::{Action, EidPrefix, Locator, Record};
use crate::message::flag16;
use crate::reader::Reader;
use crate::types::Ttl;
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
        let map_version = reader.u16("map-version")?;
        let eid = take_eid(reader, mask_len)?;
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
        self.map_version & MAP_VERSION
    }

    /// Whether the referrals are not all there are (I, RFC 8111 §6.1); for Map-Referrals only.
    #[must_use]
    pub const fn incomplete(&self) -> bool {
        self.flags & FLAG_INCOMPLETE != 0
    }

    /// Returns how many signatures follow the record of a Map-Referral.
    pub(crate) const fn signature_count(&self) -> u16 {
        self.map_version >> SIGNATURE_COUNT_SHIFT
    }

    /// Returns the prefix, or `None` for a kind of EID that is not served here.
    #[must_use]
    pub fn eid(&self) -> Option<EidPrefix> {
        match read_common_eid(self.eid.bytes()) {
            Some((iid, address, _)) => prefix_of(iid, address, self.mask_len),
            None => self.eid.read().eid_prefix(self.mask_len),
        }
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
        self.to_record_in(default_port, Vec::with_capacity(self.locator_count.into()))
    }

    /// The same, with the memory of other locators, which are forgotten.
    #[must_use]
    pub fn to_record_in(&self, default_port: u16, mut memory: Vec<Locator>) -> Option<Record> {
        memory.clear();
        let all = self.locators();
        memory.extend(all.filter_map(|locator| locator.to_locator(default_port)));
        self.with_locators(memory)
    }

    fn with_locators(&self, locators: Vec<Locator>) -> Option<Record> {
        Some(Record {
            eid: self.eid()?,
            ttl: self.ttl,
            action: self.action(),
            authoritative: self.authoritative(),
            locators,
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

/// Takes the EID of a record, and checks that its prefix is not longer than it.
fn take_eid<'a>(reader: &mut Reader<'a>, mask_len: u8) -> Result<EncodedAddress<'a>, DecodeError> {
    const FIELD: &str = "EID mask-len";
    let Some((_, address, len)) = read_common_eid(reader.rest()) else {
        let (eid, address) = EncodedAddress::take_eid(reader, "EID")?;
        address.check_mask_len(FIELD, mask_len)?;
        return Ok(eid);
    };
    Address::Ip(address).check_mask_len(FIELD, mask_len)?;
    Ok(EncodedAddress::of(reader.bytes("EID", len)?))
}

/// Reads the prefix of the record that comes next, if it is of the commonest kind, and nothing behind it.
pub(crate) fn first_eid(reader: &mut Reader<'_>) -> Option<EidPrefix> {
    reader.u32("record TTL").ok()?;
    let [_, mask_len, ..] = reader.array::<6>("record header").ok()?;
    let (iid, address, _) = read_common_eid(reader.rest())?;
    prefix_of(iid, address, mask_len)
}

/// The bytes of records that were already checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Returns the prefix of the first record.
    pub(crate) fn first_eid(self) -> Option<EidPrefix> {
        let common = first_eid(&mut Reader::new(self.0));
        common.or_else(|| self.iter().next()?.eid())
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || RecordView::read(&mut reader).ok())
    }
}

/// Checks that the counts of all records fit their fields; returns the record count.
pub(crate) fn check_counts(records: &[Record]) -> Result<u8, EncodeError> {
    for record in records {
        locator_count(record, false)?;
    }
    u8::try_from(records.len()).map_err(|_| EncodeError::TooManyRecords(records.len()))
}

/// Writes one record, its locators in the order of RFC 9301 §5.4.
pub(crate) fn write_record(writer: &mut Writer<'_>, record: &Record) -> Result<(), EncodeError> {
    write_named_record(writer, record, None)
}

/// The same with a name after the locators.
pub(crate) fn write_named_record(
    writer: &mut Writer<'_>,
    record: &Record,
    name: Option<&str>,
) -> Result<(), EncodeError> {
    writer.u32(record.ttl.minutes());
    writer.u8(locator_count(record, name.is_some())?);
    writer.u8(record.eid.net().prefix_len());
    // ACT speaks of prefixes without locators; elsewhere it is sent as 0.
    let action = match record.locators.as_slice() {
        [] => record.action.bits() << ACTION_SHIFT,
        [_, ..] => 0,
    };
    writer.u16(action | flag16(record.authoritative, FLAG_AUTHORITATIVE));
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
    if let Some(name) = name {
        write_name(writer, name);
    }
    Ok(())
}

fn locator_count(record: &Record, is_named: bool) -> Result<u8, EncodeError> {
    let count = record.locators.len() + usize::from(is_named);
    u8::try_from(count).map_err(|_| EncodeError::TooManyLocators(count))
}

const ACTION_SHIFT: u32 = 13;
const FLAG_AUTHORITATIVE: u16 = 0x1000;
const FLAG_INCOMPLETE: u16 = 0x0800;
const MAP_VERSION: u16 = 0x0fff;
const SIGNATURE_COUNT_SHIFT: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;
    use crate::mapping::Rloc;

    #[test]
    fn host_bits_are_cleared() {
        let bytes = hex("000005a0 00 18 1000 0000 0001 0a020209");
        let record = read(&bytes).unwrap();
        assert_eq!(record.eid(), Some("10.2.2.0/24".parse().unwrap()));
        assert_eq!(record.eid_address().ip(), Some([10, 2, 2, 9].into()));
        assert!(record.authoritative());
    }

    #[test]
    fn prefixes_longer_than_their_address_are_refused() {
        let field = "EID mask-len";
        let v4 = hex("000005a0 00 21 1000 0000 0001 0a020209");
        let error = DecodeError::MaskLength {
            field,
            mask_len: 33,
        };
        assert_eq!(read(&v4), Err(error));
        let v6 = hex("000005a0 00 81 1000 0000 0002 fd000000000000000000000000000001");
        let mask_len = 129;
        assert_eq!(read(&v6), Err(DecodeError::MaskLength { field, mask_len }));
    }

    #[test]
    fn unknown_locators_are_left_out_and_the_others_kept() {
        let bytes = hex("000005a0 02 20 1000 0000 0001 0a000002
             01 64 ff 00 0005 4003 0000aa00 0002 0102
             02 32 ff 00 0007 0001 c0000201");
        let record = read(&bytes).unwrap();
        assert_eq!(record.locator_count(), 2);
        assert_eq!(record.locators().count(), 2);
        let locators = record.to_record(51820).unwrap().locators;
        assert_eq!(locators, [locator("192.0.2.1", 2, 50)]);
    }

    #[test]
    fn a_kind_of_eid_that_is_not_served_has_no_prefix() {
        for eid in [
            "0000",
            "4005 010203040506",
            "0011 6100",
            "4003 00000000 0000",
        ] {
            let bytes = hex(&format!("000005a0 00 00 1000 0000 {eid}"));
            let record = read(&bytes).unwrap();
            assert_eq!(record.eid(), None);
            assert_eq!(record.to_record(51820), None);
        }
    }

    #[test]
    fn locators_are_written_in_order_of_address() {
        let mut record = Record {
            eid: "10.0.0.2".parse().unwrap(),
            ttl: Ttl::from_minutes(1440),
            action: Action::Drop,
            authoritative: false,
            locators: vec![locator("2001:db8::1", 1, 1), locator("192.0.2.1", 2, 2)],
        };
        let bytes = write(&record);
        // ACT stays 0 beside locators.
        assert_eq!(bytes[6], 0);
        record.locators.reverse();
        assert_eq!(bytes, write(&record));
        assert_eq!(bytes[16..24], hex("02 02 ff 00 0007 0001"));
        record.locators.clear();
        assert_eq!(write(&record)[6], 3 << 5);
    }

    #[test]
    fn a_count_that_is_not_kept_is_refused() {
        let good = hex("000005a0 01 20 1000 0000 0001 0a000002 0164ff000005 0001 c0000201");
        assert!(read(&good).is_ok());
        for end in 0..good.len() {
            assert!(matches!(
                read(&good[..end]),
                Err(DecodeError::Truncated { .. })
            ));
        }
    }

    fn locator(address: &str, priority: u8, weight: u8) -> Locator {
        Locator {
            priority,
            weight,
            local: true,
            probed: true,
            reachable: true,
            rloc: Rloc::Plain(address.parse().unwrap()),
        }
    }

    fn read(bytes: &[u8]) -> Result<RecordView<'_>, DecodeError> {
        RecordView::read(&mut Reader::new(bytes))
    }

    fn write(record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        write_record(&mut Writer::new(&mut out), record).unwrap();
        out
    }
}
