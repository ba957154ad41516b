//! Which prefixes does an xTR serve, and where? (RFC 9301 §5.6)

use crate::auth::{AuthKey, AuthView};
use crate::error::{DecodeError, EncodeError};
use crate::mapping::{EidPrefix, Record};
use crate::message::{bit, flag, read_ids};
use crate::reader::Reader;
use crate::record::{RecordView, Records, check_counts, first_eid, take_records, write_record};
use crate::types::{Nonce, SiteId, XtrId};
use crate::writer::Writer;

/// The flags of a Map-Register. I follows from the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterFlags {
    /// The server answers requests in the xTR's place (P).
    pub proxy_reply: bool,
    /// The xTR speaks LISP-SEC (S).
    pub security: bool,
    /// EID-notify (E).
    pub echo_notify: bool,
    /// The registration lasts as long as the record's TTL, not 3 minutes (T).
    pub use_ttl: bool,
    /// The locators of several xTRs are merged (a).
    pub merge: bool,
    /// Wants a Map-Notify as acknowledgement (M).
    pub want_notify: bool,
}

/// A Map-Register, read in place. Its authentication data is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRegister<'a> {
    /// The flags.
    pub flags: RegisterFlags,
    /// Grows with every Map-Register of an xTR.
    pub nonce: Nonce,
    /// The authentication data.
    pub auth: AuthView<'a>,
    /// Who registers (I).
    pub ids: Option<(XtrId, SiteId)>,
    records: Records<'a>,
}

impl<'a> MapRegister<'a> {
    /// Reads a Map-Register.
    ///
    /// ```text
    ///  | Type 3 P S I 0 | reserved (8) | 0 (3) E T a 0 M | Record Count (8) |
    ///  |                            Nonce (64)                           |
    ///  | Key ID (8) | Algorithm ID (8) | Authentication Data Length (16)   |
    ///  | Authentication Data ... | records ... | if I: xTR-ID (128), Site-ID (64)
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [first, _, third, record_count] = reader.array("Map-Register header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let auth = AuthView::read(reader)?;
        let records = take_records(reader, record_count)?;
        let ids = match bit(first, IDS_PRESENT) {
            true => Some(read_ids(reader)?),
            false => None,
        };
        reader.end()?;
        Ok(Self {
            flags: RegisterFlags {
                proxy_reply: bit(first, PROXY_REPLY),
                security: bit(first, SECURITY),
                echo_notify: bit(third, ECHO_NOTIFY),
                use_ttl: bit(third, USE_TTL),
                merge: bit(third, MERGE),
                want_notify: bit(third, WANT_NOTIFY),
            },
            nonce,
            auth,
            ids,
            records,
        })
    }

    /// Returns the prefix of the first record, if there is one and it is of a kind that is served.
    #[must_use]
    pub fn first_eid(&self) -> Option<EidPrefix> {
        self.records.first_eid()
    }

    /// Returns the records.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        self.records.iter()
    }
}

/// Returns the prefix of the first record of a Map-Register without a look at anything behind it, where a moment can be
/// saved by knowing it: what is believed is decided by [`decode`](crate::decode) and [`verify`](crate::verify). `None`
/// for other messages, and for EIDs that are written in an unusual way.
#[must_use]
pub fn first_registered(datagram: &[u8]) -> Option<EidPrefix> {
    let mut reader = Reader::new(datagram);
    let [first, ..] = reader.array::<4>("Map-Register header").ok()?;
    reader.u64("nonce").ok()?;
    AuthView::read(&mut reader).ok()?;
    (first & TYPE_BITS == TYPE).then(|| first_eid(&mut reader))?
}

/// What a Map-Register says.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegisterParams<'a> {
    /// The flags.
    pub flags: RegisterFlags,
    /// Greater than that of every Map-Register before.
    pub nonce: Nonce,
    /// The records.
    pub records: &'a [Record],
    /// Who registers.
    pub ids: Option<(XtrId, SiteId)>,
}

/// Appends a Map-Register, authenticated by `key`, to `out`.
///
/// # Errors
///
/// When there are too many records or locators; `out` is unchanged then.
pub fn encode_map_register(
    params: &RegisterParams<'_>,
    key: &AuthKey,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let record_count = check_counts(params.records)?;
    let flags = params.flags;
    let start = out.len();
    let mut writer = Writer::new(out);
    writer.u8(TYPE
        | flag(flags.proxy_reply, PROXY_REPLY)
        | flag(flags.security, SECURITY)
        | flag(params.ids.is_some(), IDS_PRESENT));
    writer.u8(0);
    writer.u8(flag(flags.echo_notify, ECHO_NOTIFY)
        | flag(flags.use_ttl, USE_TTL)
        | flag(flags.merge, MERGE)
        | flag(flags.want_notify, WANT_NOTIFY));
    writer.u8(record_count);
    writer.u64(params.nonce.0);
    key.write_header(&mut writer);
    for record in params.records {
        write_record(&mut writer, record)?;
    }
    writer.ids(params.ids);
    key.sign(out, start);
    Ok(())
}

const TYPE: u8 = 0x30;
const TYPE_BITS: u8 = 0xf0;
// First byte.
const PROXY_REPLY: u8 = 0x08;
const SECURITY: u8 = 0x04;
const IDS_PRESENT: u8 = 0x02;
// Third byte.
const ECHO_NOTIFY: u8 = 0x10;
const USE_TTL: u8 = 0x08;
const MERGE: u8 = 0x04;
const WANT_NOTIFY: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Algorithm;
    use crate::hex::hex;
    use crate::mapping::{Action, Locator, Rloc};
    use crate::types::Ttl;

    #[test]
    fn the_first_prefix_is_found_without_the_rest() {
        let key = AuthKey::new(1, Algorithm::Sha256_128, b"secret");
        let locator = Locator {
            priority: 1,
            weight: 1,
            local: true,
            probed: false,
            reachable: true,
            rloc: Rloc::Plain([192, 0, 2, 1].into()),
        };
        for eid in ["10.0.0.0/8", "[7]fd00::1"] {
            let eid = eid.parse().unwrap();
            let record = Record {
                eid,
                ttl: Ttl::from_minutes(1),
                action: Action::NoAction,
                authoritative: true,
                locators: vec![locator],
            };
            let params = RegisterParams {
                records: &[record],
                ..RegisterParams::default()
            };
            let mut bytes = Vec::new();
            encode_map_register(&params, &key, &mut bytes).unwrap();
            let read = MapRegister::read(&mut Reader::new(&bytes)).unwrap();
            assert_eq!(read.first_eid(), Some(eid));
            assert_eq!(first_registered(&bytes), Some(eid));
            assert_eq!(first_registered(&bytes[..bytes.len() - 1]), Some(eid));
            let header = bytes.len() - 12 - 6;
            assert_eq!(first_registered(&bytes[..header - 12]), None);
            bytes[0] = 0x40;
            assert_eq!(first_registered(&bytes), None);
        }
    }

    #[test]
    fn what_follows_no_record_is_no_prefix() {
        let ids = "000005a0 00 18 1000 0000 0001 0a010203 0000000000000000";
        let bytes = hex(&format!("32000000 {:016x} 00000000 {ids}", 1));
        let read = MapRegister::read(&mut Reader::new(&bytes)).unwrap();
        assert!(read.ids.is_some());
        assert_eq!(read.first_eid(), None);
    }
}
