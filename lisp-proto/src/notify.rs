//! What does the map server tell an xTR, and what does the xTR acknowledge? (RFC 9301 §5.7)
//!
//! Map-Notify and Map-Notify-Ack differ in their type only.

use crate::address::Address;
use crate::auth::{AuthKey, AuthView};
use crate::error::{DecodeError, EncodeError};
use crate::handoff::Handoff;
use crate::mapping::Record;
use crate::message::{IDS_LEN, bit, read_ids};
use crate::reader::Reader;
use crate::record::{
    RecordView, Records, check_counts, take_records, write_named_record, write_record,
};
use crate::types::{Nonce, SiteId, XtrId};
use crate::writer::Writer;

/// A Map-Notify or Map-Notify-Ack, read in place. Its authentication data is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapNotify<'a> {
    /// That of the Map-Register, or of the Map-Notify acknowledged.
    pub nonce: Nonce,
    /// The authentication data.
    pub auth: AuthView<'a>,
    /// The identity some senders repeat from the Map-Register.
    pub ids: Option<(XtrId, SiteId)>,
    records: Records<'a>,
}

impl<'a> MapNotify<'a> {
    /// Reads a Map-Notify.
    ///
    /// ```text
    ///  | Type 4 or 5 |               reserved (20)             | Record Count (8) |
    ///  |                            Nonce (64)                                |
    ///  | Key ID (8) | Algorithm ID (8) |    Authentication Data Length (16)     |
    ///  | Authentication Data ... | records ...
    /// ```
    pub(crate) fn read_notify(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (notify, _) = Self::read(reader)?;
        reader.end()?;
        Ok(notify)
    }

    /// Reads a Map-Notify-Ack. Some senders leave the records in and set their count to 0: they
    /// are ignored.
    pub(crate) fn read_ack(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (notify, record_count) = Self::read(reader)?;
        if record_count > 0 {
            reader.end()?;
        }
        Ok(notify)
    }

    fn read(reader: &mut Reader<'a>) -> Result<(Self, u8), DecodeError> {
        let [first, _, _, record_count] = reader.array("Map-Notify header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let auth = AuthView::read(reader)?;
        let records = take_records(reader, record_count)?;
        // RFC 9301 has no identity here, but deployed routers send one.
        let ids = match bit(first, IDS_PRESENT) && reader.rest().len() == IDS_LEN {
            true => Some(read_ids(reader)?),
            false => None,
        };
        let notify = Self {
            nonce,
            auth,
            ids,
            records,
        };
        Ok((notify, record_count))
    }

    /// Returns the records.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        self.records.iter()
    }

    /// Returns what is said about the connections of the client that the records are of, if anything.
    #[must_use]
    pub fn handoff(&self) -> Option<Handoff> {
        let first = self.records.iter().next()?;
        first
            .locators()
            .find_map(|locator| match locator.address() {
                Address::Name(name) => Handoff::of_name(name),
                Address::None | Address::Ip(_) | Address::Mac(_) | Address::Lcaf(_) => None,
            })
    }
}

/// What a Map-Notify or Map-Notify-Ack says.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotifyParams<'a> {
    /// That of the Map-Register, or of the Map-Notify acknowledged.
    pub nonce: Nonce,
    /// The records.
    pub records: &'a [Record],
    /// What is said about the connections of the client that the records are of; without records it
    /// is not sent.
    pub handoff: Option<Handoff>,
}

/// Appends a Map-Notify, authenticated by `key`, to `out`.
///
/// # Errors
///
/// When there are too many records or locators; `out` is unchanged then.
pub fn encode_map_notify(
    params: &NotifyParams<'_>,
    key: &AuthKey,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    encode(TYPE_NOTIFY, params, key, out)
}

/// Appends a Map-Notify-Ack, authenticated by `key`, to `out`.
///
/// # Errors
///
/// When there are too many records or locators; `out` is unchanged then.
pub fn encode_map_notify_ack(
    params: &NotifyParams<'_>,
    key: &AuthKey,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    encode(TYPE_NOTIFY_ACK, params, key, out)
}

fn encode(
    kind: u8,
    params: &NotifyParams<'_>,
    key: &AuthKey,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let record_count = check_counts(params.records)?;
    let handoff = params.handoff.map(Handoff::name);
    let start = out.len();
    let mut writer = Writer::new(out);
    writer.u8(kind);
    writer.u16(0);
    writer.u8(record_count);
    writer.u64(params.nonce.0);
    key.write_header(&mut writer);
    let mut records = params.records.iter();
    if let Some(first) = records.next() {
        let has_room = first.locators.len() < usize::from(u8::MAX);
        let name = handoff.as_deref().filter(|_| has_room);
        write_named_record(&mut writer, first, name)?;
    }
    for record in records {
        write_record(&mut writer, record)?;
    }
    key.sign(out, start);
    Ok(())
}

const TYPE_NOTIFY: u8 = 0x40;
const TYPE_NOTIFY_ACK: u8 = 0x50;
/// Reserved by RFC 9301; the I bit of a NAT draft.
const IDS_PRESENT: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Algorithm;
    use crate::hex::hex;
    use crate::mapping::Action;
    use crate::types::Ttl;

    const RECORD: &str = "000005a0 00 20 0000 0000 0001 0a020202";

    #[test]
    fn an_identity_is_read_only_if_exactly_that_is_left() {
        let ids = "07".repeat(24);
        let with_bit = hex(&format!("48000001 {:016x} 00000000 {RECORD} {ids}", 1));
        let notify = MapNotify::read_notify(&mut Reader::new(&with_bit)).unwrap();
        assert_eq!(notify.ids, Some((XtrId([7; 16]), SiteId([7; 8]))));
        let cut = &with_bit[..with_bit.len() - 24];
        assert_eq!(
            MapNotify::read_notify(&mut Reader::new(cut)).unwrap().ids,
            None
        );
        let without_bit = [&[0x40], &with_bit[1..]].concat();
        let error = Err(DecodeError::TrailingBytes(24));
        assert_eq!(
            MapNotify::read_notify(&mut Reader::new(&without_bit)),
            error
        );
    }

    #[test]
    fn what_becomes_of_connections_is_a_name_in_the_first_record() {
        let key = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret");
        let records = ["10.0.0.3", "fd00:1::3"].map(|eid| Record {
            eid: eid.parse().unwrap(),
            ttl: Ttl::from_minutes(15),
            action: Action::NoAction,
            authoritative: false,
            locators: Vec::new(),
        });
        let handoff = Some(Handoff::From([10, 0, 1, 1].into()));
        for (records, handoff, read) in [
            (&records[..], handoff, handoff),
            (&records[..1], None, None),
            (&[], handoff, None),
        ] {
            let nonce = Nonce(1);
            let params = NotifyParams {
                nonce,
                records,
                handoff,
            };
            let mut bytes = Vec::new();
            encode_map_notify(&params, &key, &mut bytes).unwrap();
            let notify = MapNotify::read_notify(&mut Reader::new(&bytes)).unwrap();
            assert_eq!(notify.handoff(), read);
            let kept = notify.records().filter_map(|record| record.to_record(1));
            assert_eq!(kept.collect::<Vec<_>>(), records);
        }
    }

    #[test]
    fn an_acknowledgement_may_keep_records_it_does_not_count() {
        let bytes = hex(&format!("50000000 {:016x} 00000000 {RECORD}", 1));
        let ack = MapNotify::read_ack(&mut Reader::new(&bytes)).unwrap();
        assert_eq!((ack.nonce, ack.records().count()), (Nonce(1), 0));
        assert!(MapNotify::read_notify(&mut Reader::new(&bytes)).is_err());
        let counted = [&hex("50000001"), &bytes[4..], &[0]].concat();
        let error = Err(DecodeError::TrailingBytes(1));
        assert_eq!(MapNotify::read_ack(&mut Reader::new(&counted)), error);
    }
}
