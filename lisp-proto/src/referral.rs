//! Where in the delegation tree is the answer? (RFC 8111 §6)

use crate::error::DecodeError;
use crate::reader::Reader;
use crate::record::{RecordView, Records, take_records};
use crate::types::Nonce;

/// A Map-Referral, read in place. Nobody here takes part in the delegation tree: it is read so
/// that it can be shown, and told from a broken message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapReferral<'a> {
    /// The nonce of the request.
    pub nonce: Nonce,
    records: Records<'a>,
}

impl<'a> MapReferral<'a> {
    /// Reads a Map-Referral. One with signed records is refused.
    ///
    /// ```text
    ///  | Type 6 |               reserved (20)                  | Record Count (8) |
    ///  |                            Nonce (64)                                |
    ///  | records, where I (0x0800) follows A and SigCnt (4) stands before the Map-Version ...
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [_, _, _, record_count] = reader.array("Map-Referral header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let records = take_records(reader, record_count)?;
        // What follows a record with signatures was read as the next record, so this comes first.
        if records.iter().any(|record| record.signature_count() > 0) {
            return Err(DecodeError::SecurityUnsupported);
        }
        reader.end()?;
        Ok(Self { nonce, records })
    }

    /// Returns the records; their locators are the nodes to ask next.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        self.records.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    const RECORD: &str = "000005a0 01 10 5800 0000 0001 0a020000 00 00 ff 00 0001 0001 c0000235";

    #[test]
    fn a_referral_names_the_nodes_to_ask_next() {
        let bytes = hex(&format!("60000001 0000000000000007 {RECORD}"));
        let referral = MapReferral::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(referral.nonce, Nonce(7));
        let record = referral.records().next().unwrap();
        assert!(record.incomplete() && record.authoritative());
        assert_eq!(record.eid(), Some("10.2.0.0/16".parse().unwrap()));
        assert_eq!(record.locators().count(), 1);
    }

    #[test]
    fn signed_records_and_left_over_bytes_are_refused() {
        let good = hex(&format!("60000001 0000000000000007 {RECORD}"));
        let read = |bytes: &[u8]| MapReferral::read(&mut Reader::new(bytes)).unwrap_err();
        let longer = [&good[..], &[0]].concat();
        assert_eq!(read(&longer), DecodeError::TrailingBytes(1));
        let mut signed = good;
        signed[20] |= 0x10;
        assert_eq!(read(&signed), DecodeError::SecurityUnsupported);
    }
}
