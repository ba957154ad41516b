//! What is the answer to a Map-Request? (RFC 9301 §5.4)

use crate::error::{DecodeError, EncodeError};
use crate::mapping::Record;
use crate::message::{bit, flag};
use crate::reader::Reader;
use crate::record::{RecordView, Records, check_counts, take_records, write_record};
use crate::types::Nonce;
use crate::writer::Writer;

/// A Map-Reply, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapReply<'a> {
    /// Answers a probe (P).
    pub probe: bool,
    /// The sender can echo nonces in the data plane (E).
    pub echo_nonce: bool,
    /// LISP-SEC data follows the records (S, RFC 9303); it is not read.
    pub security: bool,
    /// The nonce of the request.
    pub nonce: Nonce,
    records: Records<'a>,
}

impl<'a> MapReply<'a> {
    /// Reads a Map-Reply.
    ///
    /// ```text
    ///  | Type 2 P E S 0 |            reserved (16)            | Record Count (8) |
    ///  |                            Nonce (64)                                |
    ///  | records ... | if S: LISP-SEC data ...
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [first, _, _, record_count] = reader.array("Map-Reply header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let records = take_records(reader, record_count)?;
        let security = bit(first, SECURITY);
        if !security {
            reader.end()?;
        }
        Ok(Self {
            probe: bit(first, PROBE),
            echo_nonce: bit(first, ECHO_NONCE),
            security,
            nonce,
            records,
        })
    }

    /// Returns the records.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        self.records.iter()
    }
}

/// What a Map-Reply says; a negative one has records without locators.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplyParams<'a> {
    /// Answers a probe.
    pub probe: bool,
    /// The sender can echo nonces in the data plane.
    pub echo_nonce: bool,
    /// The nonce of the request.
    pub nonce: Nonce,
    /// The records.
    pub records: &'a [Record],
}

/// Appends a Map-Reply to `out`.
///
/// # Errors
///
/// When there are too many records or locators; `out` is unchanged then.
pub fn encode_map_reply(params: &ReplyParams<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let record_count = check_counts(params.records)?;
    let mut writer = Writer::new(out);
    writer.u8(TYPE | flag(params.probe, PROBE) | flag(params.echo_nonce, ECHO_NONCE));
    writer.u16(0);
    writer.u8(record_count);
    writer.u64(params.nonce.0);
    for record in params.records {
        write_record(&mut writer, record)?;
    }
    Ok(())
}

const TYPE: u8 = 0x20;
const PROBE: u8 = 0x08;
const ECHO_NONCE: u8 = 0x04;
const SECURITY: u8 = 0x02;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn security_data_may_follow_the_records_only_if_announced() {
        let bytes = hex("22000000 0000000000000001 01020304");
        let reply = MapReply::read(&mut Reader::new(&bytes)).unwrap();
        assert!(reply.security && !reply.probe && !reply.echo_nonce);
        let unannounced = [&hex("2c000000"), &bytes[4..]].concat();
        let error = Err(DecodeError::TrailingBytes(4));
        assert_eq!(MapReply::read(&mut Reader::new(&unannounced)), error);
        let reply = MapReply::read(&mut Reader::new(&unannounced[..12])).unwrap();
        assert!(!reply.security && reply.probe && reply.echo_nonce);
    }
}
