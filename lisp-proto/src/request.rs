//! Who asks for which prefixes, and where does the answer go? (RFC 9301 §5.2; RFC 9437 §4)

use std::net::IpAddr;

use crate::address::{AFI_MAC, Address, EncodedAddress, address_list};
use crate::error::{DecodeError, EncodeError};
use crate::mapping::{EidPrefix, InstanceId, Record, RequestedEid};
use crate::message::{bit, flag, read_ids};
use crate::reader::Reader;
use crate::record::{RecordView, check_counts, write_record};
use crate::types::{Nonce, SiteId, XtrId};
use crate::writer::Writer;

/// The flags of a Map-Request. M and I follow from the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestFlags {
    /// Asks the site, not the mapping system (A).
    pub authoritative: bool,
    /// Probes a locator (P).
    pub probe: bool,
    /// Solicits a Map-Request (S).
    pub smr: bool,
    /// Comes from a proxy ITR (p).
    pub pitr: bool,
    /// Was sent because of a solicitation (s).
    pub smr_invoked: bool,
    /// The sender is itself in the set of locators (L).
    pub local_in_rloc_set: bool,
    /// Wants no reply (D).
    pub no_reply: bool,
}

/// A Map-Request, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest<'a> {
    /// The flags.
    pub flags: RequestFlags,
    /// Echoed in the reply.
    pub nonce: Nonce,
    /// Who subscribes (RFC 9437 §4).
    pub ids: Option<(XtrId, SiteId)>,
    source: EncodedAddress<'a>,
    itr_rlocs: &'a [u8],
    eids: &'a [u8],
    source_record: Option<RecordView<'a>>,
}

impl<'a> MapRequest<'a> {
    /// Reads a Map-Request.
    ///
    /// ```text
    ///  | Type 1 A M P S | p s R I rsvd (4) | rsvd L D IRC (5) | Record Count (8) |
    ///  |                            Nonce (64)                               |
    ///  | Source EID | IRC + 1 ITR-RLOCs | Record Count times N, mask-len, EID ...
    ///  | if M: a record for the source EID | if I: xTR-ID (128), Site-ID (64)
    /// ```
    ///
    /// Bytes after that are ignored: old senders append a record without setting M.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [first, second, third, eid_count] = reader.array("Map-Request header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let (source, _) = EncodedAddress::take_eid(reader, "source EID")?;

        let start = *reader;
        for _ in 0..=third & ITR_RLOC_COUNT {
            // No answer can be sent to a MAC address.
            if let Address::Mac(_) = Address::read(reader, "ITR-RLOC", 0)? {
                return Err(DecodeError::UnknownAfi {
                    field: "ITR-RLOC",
                    afi: AFI_MAC,
                });
            }
        }
        let itr_rlocs = reader.since(&start);

        let start = *reader;
        for _ in 0..eid_count {
            RequestedAddress::read(reader)?;
        }
        let eids = reader.since(&start);

        let source_record = match bit(first, MAP_DATA) {
            true => Some(RecordView::read(reader)?),
            false => None,
        };
        let ids = match bit(second, IDS_PRESENT) {
            true => Some(read_ids(reader)?),
            false => None,
        };
        Ok(Self {
            flags: RequestFlags {
                authoritative: bit(first, AUTHORITATIVE),
                probe: bit(first, PROBE),
                smr: bit(first, SMR),
                pitr: bit(second, PITR),
                smr_invoked: bit(second, SMR_INVOKED),
                local_in_rloc_set: bit(third, LOCAL_IN_RLOC_SET),
                no_reply: bit(third, NO_REPLY),
            },
            nonce,
            ids,
            source,
            itr_rlocs,
            eids,
            source_record,
        })
    }

    /// Returns the EID whose packet caused the request, unless there is none or it is of a kind
    /// that is not served. Nobody vouches for it.
    #[must_use]
    pub fn source_eid(&self) -> Option<(InstanceId, IpAddr)> {
        self.source.read().instance_and_ip()
    }

    /// Returns the source EID of whatever kind.
    #[must_use]
    pub fn source_address(&self) -> Address<'a> {
        self.source.read()
    }

    /// Returns the addresses the answer may go to, at least one, of whatever kind.
    pub fn itr_rlocs(&self) -> impl Iterator<Item = Address<'a>> + use<'a> {
        address_list(self.itr_rlocs)
    }

    /// Returns the prefixes asked for; kinds of EIDs that are not served are passed over.
    pub fn eids(&self) -> impl Iterator<Item = RequestedEid> + use<'a> {
        self.eid_addresses().filter_map(|requested| {
            Some(RequestedEid {
                subscribe: requested.subscribe,
                eid: requested.address.eid_prefix(requested.mask_len)?,
            })
        })
    }

    /// Returns what is asked for, of whatever kind.
    pub fn eid_addresses(&self) -> impl Iterator<Item = RequestedAddress<'a>> + use<'a> {
        let mut reader = Reader::new(self.eids);
        std::iter::from_fn(move || RequestedAddress::read(&mut reader).ok())
    }

    /// Returns the requester's own record (M). Nobody vouches for it.
    #[must_use]
    pub const fn source_record(&self) -> Option<RecordView<'a>> {
        self.source_record
    }
}

/// One EID of a Map-Request, of whatever kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedAddress<'a> {
    /// The requester wants to be told about changes (N, RFC 9437 §4).
    pub subscribe: bool,
    /// The length of the prefix in bits.
    pub mask_len: u8,
    /// The prefix.
    pub address: Address<'a>,
}

impl<'a> RequestedAddress<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [flags, mask_len] = reader.array("requested EID header")?;
        let address = Address::read_eid(reader, "requested EID")?;
        address.check_mask_len("requested EID mask-len", mask_len)?;
        Ok(Self {
            subscribe: bit(flags, SUBSCRIBE),
            mask_len,
            address,
        })
    }
}

/// What a Map-Request says.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestParams<'a> {
    /// The flags.
    pub flags: RequestFlags,
    /// Random; the reply repeats it.
    pub nonce: Nonce,
    /// The EID whose packet causes the request; `None` for a refresh.
    pub source_eid: Option<(InstanceId, IpAddr)>,
    /// Where the answer may go; empty to unsubscribe (RFC 9437 §6).
    pub itr_rlocs: &'a [IpAddr],
    /// The prefixes asked for.
    pub eids: &'a [RequestedEid],
    /// The sender's own record.
    pub source_record: Option<&'a Record>,
    /// Who subscribes.
    pub ids: Option<(XtrId, SiteId)>,
}

/// Appends a Map-Request to `out`.
///
/// # Errors
///
/// When a count does not fit its field; `out` is unchanged then.
pub fn encode_map_request(
    params: &RequestParams<'_>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let eid_count = u8::try_from(params.eids.len())
        .map_err(|_| EncodeError::TooManyRecords(params.eids.len()))?;
    let extra_rlocs = u8::try_from(params.itr_rlocs.len().saturating_sub(1))
        .ok()
        .filter(|count| *count <= ITR_RLOC_COUNT)
        .ok_or(EncodeError::TooManyItrRlocs(params.itr_rlocs.len()))?;
    check_counts(params.source_record.map_or(&[], std::slice::from_ref))?;

    let flags = params.flags;
    let mut writer = Writer::new(out);
    writer.u8(TYPE
        | flag(flags.authoritative, AUTHORITATIVE)
        | flag(params.source_record.is_some(), MAP_DATA)
        | flag(flags.probe, PROBE)
        | flag(flags.smr, SMR));
    writer.u8(flag(flags.pitr, PITR)
        | flag(flags.smr_invoked, SMR_INVOKED)
        | flag(params.ids.is_some(), IDS_PRESENT));
    writer.u8(flag(flags.local_in_rloc_set, LOCAL_IN_RLOC_SET)
        | flag(flags.no_reply, NO_REPLY)
        | extra_rlocs);
    writer.u8(eid_count);
    writer.u64(params.nonce.0);
    match params.source_eid {
        Some((iid, address)) => writer.eid(iid, address),
        None => writer.no_address(),
    }
    for address in params.itr_rlocs {
        writer.address(*address);
    }
    if params.itr_rlocs.is_empty() {
        writer.no_address();
    }
    for requested in params.eids {
        write_requested(&mut writer, requested.subscribe, requested.eid);
    }
    if let Some(record) = params.source_record {
        write_record(&mut writer, record)?;
    }
    writer.ids(params.ids);
    Ok(())
}

fn write_requested(writer: &mut Writer<'_>, subscribe: bool, eid: EidPrefix) {
    writer.u8(flag(subscribe, SUBSCRIBE));
    writer.u8(eid.net().prefix_len());
    writer.eid_prefix(eid);
}

const TYPE: u8 = 0x10;
// First byte.
const AUTHORITATIVE: u8 = 0x08;
const MAP_DATA: u8 = 0x04;
const PROBE: u8 = 0x02;
const SMR: u8 = 0x01;
// Second byte.
const PITR: u8 = 0x80;
const SMR_INVOKED: u8 = 0x40;
const IDS_PRESENT: u8 = 0x10;
// Third byte.
const LOCAL_IN_RLOC_SET: u8 = 0x40;
const NO_REPLY: u8 = 0x20;
const ITR_RLOC_COUNT: u8 = 0x1f;
// Of each requested EID.
const SUBSCRIBE: u8 = 0x80;
