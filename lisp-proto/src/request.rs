//! Who asks for which prefixes, and where does the answer go? (RFC 9301 §5.2; RFC 9437 §4)

use std::net::IpAddr;

use crate::address::{AFI_MAC, Address, EncodedAddress, address_list};
use crate::error::{DecodeError, EncodeError};
use crate::gap::Gap;
use crate::mapping::{EidPrefix, InstanceId, Record, RequestedEid};
use crate::message::{bit, flag, read_ids};
use crate::reader::Reader;
use crate::record::{RecordView, check_counts, write_named_record};
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
    subscribes: bool,
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
        let mut subscribes = false;
        for _ in 0..eid_count {
            let requested = RequestedAddress::read(reader)?;
            // Kinds of EIDs that are not served are passed over here as well.
            subscribes |= requested.subscribe && requested.address.instance_and_ip().is_some();
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
            subscribes,
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

    /// Whether any of [`Self::eids`] is to be subscribed to.
    #[must_use]
    pub const fn subscribes(&self) -> bool {
        self.subscribes
    }

    /// Returns what is asked for, of whatever kind.
    pub fn eid_addresses(&self) -> impl Iterator<Item = RequestedAddress<'a>> + use<'a> {
        let mut reader = Reader::new(self.eids);
        std::iter::from_fn(move || RequestedAddress::read(&mut reader).ok())
    }

    /// Returns for how long nothing came to the requester when what it asks for moved, if its record
    /// says so.
    pub fn gap(&self) -> Option<Gap> {
        let mut locators = self.source_record?.locators();
        locators.find_map(|locator| match locator.address() {
            Address::Name(name) => Gap::of_name(name),
            Address::None | Address::Ip(_) | Address::Mac(_) | Address::Lcaf(_) => None,
        })
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
    /// For how long nothing came when what is asked for moved; said in the record, if there is one.
    pub gap: Option<Gap>,
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
        let has_room = record.locators.len() < usize::from(u8::MAX);
        let gap = params.gap.filter(|_| has_room).map(Gap::name);
        write_named_record(&mut writer, record, gap.as_deref())?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn a_request_for_nowhere_unsubscribes() {
        let mut bytes = Vec::new();
        encode_map_request(&RequestParams::default(), &mut bytes).unwrap();
        assert_eq!(bytes, hex("10000000 0000000000000000 0000 0000"));
        let request = read(&bytes).unwrap();
        assert_eq!(request.itr_rlocs().collect::<Vec<_>>(), [Address::None]);
        assert_eq!(request.source_eid(), None);
    }

    #[test]
    fn a_gap_is_a_name_among_the_locators_of_the_record() {
        let record = Record {
            eid: "10.0.0.0/8".parse().unwrap(),
            ttl: crate::types::Ttl::from_minutes(1),
            action: crate::mapping::Action::NoAction,
            authoritative: false,
            locators: Vec::new(),
        };
        for gap in [
            None,
            Some(Gap::Unknown),
            Some(Gap::Longest(std::time::Duration::from_micros(7))),
        ] {
            let params = RequestParams {
                source_record: Some(&record),
                gap,
                ..RequestParams::default()
            };
            let mut bytes = Vec::new();
            encode_map_request(&params, &mut bytes).unwrap();
            let request = read(&bytes).unwrap();
            assert_eq!(request.gap(), gap);
            let read = request.source_record().unwrap();
            assert_eq!(read.to_record(0), Some(record.clone()), "others see none");
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused_and_nothing_is_written() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let requested = RequestedEid {
            subscribe: false,
            eid: "10.0.0.1".parse().unwrap(),
        };
        let (rlocs, eids) = (vec![address; 33], vec![requested; 256]);
        let mut out = Vec::new();
        let mut params = RequestParams {
            itr_rlocs: &rlocs,
            eids: &eids[1..],
            ..RequestParams::default()
        };
        let error = EncodeError::TooManyItrRlocs(33);
        assert_eq!(encode_map_request(&params, &mut out), Err(error));
        params.itr_rlocs = &rlocs[1..];
        params.eids = &eids;
        let error = EncodeError::TooManyRecords(256);
        assert_eq!(encode_map_request(&params, &mut out), Err(error));
        assert!(out.is_empty());
        params.eids = &eids[1..];
        encode_map_request(&params, &mut out).unwrap();
        let request = read(&out).unwrap();
        assert_eq!(
            (request.itr_rlocs().count(), request.eids().count()),
            (32, 255)
        );
    }

    #[test]
    fn a_cut_identity_is_refused() {
        let request = hex("10100001 0000000000000001 0000 0001 c0000201 80 20 0001 0a020202");
        let ids = [7; 24];
        for end in 0..24 {
            let bytes = [&request[..], &ids[..end]].concat();
            assert!(matches!(read(&bytes), Err(DecodeError::Truncated { .. })));
        }
        let bytes = [&request[..], &ids].concat();
        let request = read(&bytes).unwrap();
        assert_eq!(request.ids, Some((XtrId([7; 16]), SiteId([7; 8]))));
        assert!(request.eids().all(|requested| requested.subscribe));
    }

    #[test]
    fn a_record_that_old_senders_append_is_ignored() {
        let bytes = hex("10000001 0000000000000001 0000 0001 c0000201 00 20 0001 0a020202 0000");
        assert_eq!(read(&bytes).unwrap().source_record(), None);
    }

    #[test]
    fn eids_that_are_not_served_are_passed_over() {
        let bytes = hex("10000002 0000000000000001 0000 0001 c0000201
             00 00 4005 010203040506
             80 20 0001 0a020202");
        let request = read(&bytes).unwrap();
        let served: Vec<_> = request.eids().map(|requested| requested.eid).collect();
        assert_eq!(served, ["10.2.2.2/32".parse().unwrap()]);
        assert_eq!(request.eid_addresses().count(), 2);
    }

    fn read(bytes: &[u8]) -> Result<MapRequest<'_>, DecodeError> {
        MapRequest::read(&mut Reader::new(bytes))
    }
}
