//! Every value that can be sent.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{
    Action, Algorithm, AuthKey, EidPrefix, Gap, InstanceId, Locator, Nonce, NotifyParams,
    PublicKey, Record, RegisterFlags, RegisterParams, ReplyParams, RequestFlags, RequestParams,
    RequestedEid, Rloc, SiteId, Ttl, XtrId, encode_info_reply, encode_info_request,
    encode_map_notify, encode_map_register, encode_map_reply, encode_map_request,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// All that a Map-Request says, owned.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    flags: RequestFlags,
    nonce: Nonce,
    source_eid: Option<(InstanceId, IpAddr)>,
    itr_rlocs: Vec<IpAddr>,
    eids: Vec<RequestedEid>,
    source_record: Option<Record>,
    gap: Option<Gap>,
    ids: Option<(XtrId, SiteId)>,
}

impl Request {
    pub(crate) fn params(&self) -> RequestParams<'_> {
        RequestParams {
            flags: self.flags,
            nonce: self.nonce,
            source_eid: self.source_eid,
            itr_rlocs: &self.itr_rlocs,
            eids: &self.eids,
            source_record: self.source_record.as_ref(),
            gap: self.gap,
            ids: self.ids,
        }
    }
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    let parts = (
        request_flags(),
        nonce(),
        option::of((iid(), any::<IpAddr>())),
        vec(any::<IpAddr>(), 0..=32),
        vec(requested_eid(), 0..20),
        (option::of(record()), option::of(gap())),
        ids(),
    );
    parts.prop_map(
        |(flags, nonce, source_eid, itr_rlocs, eids, (source_record, gap), ids)| Request {
            flags,
            nonce,
            source_eid,
            itr_rlocs,
            eids,
            source_record,
            gap,
            ids,
        },
    )
}

fn gap() -> impl Strategy<Value = Gap> {
    let longest = any::<u64>().prop_map(Duration::from_micros);
    prop_oneof![Just(Gap::Unknown), longest.prop_map(Gap::Longest)]
}

/// A valid message of any type but ECM, as bytes.
pub(crate) fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let request = request().prop_map(|request| {
        let mut out = Vec::new();
        encode_map_request(&request.params(), &mut out).unwrap();
        out
    });
    let reply = (nonce(), records()).prop_map(|(nonce, records)| {
        let mut out = Vec::new();
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce,
            records: &records,
        };
        encode_map_reply(&params, &mut out).unwrap();
        out
    });
    let notify = (nonce(), records(), auth_key()).prop_map(|(nonce, records, key)| {
        let mut out = Vec::new();
        let params = NotifyParams {
            nonce,
            records: &records,
            handoff: None,
        };
        encode_map_notify(&params, &key, &mut out).unwrap();
        out
    });
    let register = register().prop_map(|(bytes, _)| bytes);
    let info = info().prop_map(|(bytes, _)| bytes);
    prop_oneof![request, reply, notify, register, info]
}

/// What an Info-Request or Info-Reply says: nonce, EID, and where the xTR is seen.
pub(crate) type InfoParts = (Nonce, EidPrefix, Option<SocketAddr>);

/// An Info-Request or Info-Reply, and its key.
pub(crate) fn info() -> impl Strategy<Value = (Vec<u8>, AuthKey)> {
    let key = auth_key().prop_filter("unsigned", |key| key.algorithm() != Algorithm::None);
    (info_parts(), key).prop_map(|((nonce, eid, seen), key)| {
        let mut out = Vec::new();
        match seen {
            Some(seen) => encode_info_reply(nonce, eid, seen, &key, &mut out),
            None => encode_info_request(nonce, eid, &key, &mut out),
        }
        (out, key)
    })
}

pub(crate) fn info_parts() -> impl Strategy<Value = InfoParts> {
    let seen = (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from);
    (nonce(), eid(), option::of(seen))
}

/// A signed Map-Register and its key.
pub(crate) fn register() -> impl Strategy<Value = (Vec<u8>, AuthKey)> {
    let key = auth_key().prop_filter("unsigned", |key| key.algorithm() != Algorithm::None);
    let parts = (register_flags(), nonce(), ids(), vec(record(), 0..4), key);
    parts.prop_map(|(flags, nonce, ids, records, key)| {
        let params = RegisterParams {
            flags,
            nonce,
            records: &records,
            ids,
        };
        let mut out = Vec::new();
        encode_map_register(&params, &key, &mut out).unwrap();
        (out, key)
    })
}

pub(crate) fn auth_key() -> impl Strategy<Value = AuthKey> {
    let algorithm = prop::sample::select(vec![
        Algorithm::None,
        Algorithm::Sha1_96,
        Algorithm::Sha256_128,
        Algorithm::Sha256_128Hkdf,
    ]);
    let secret = vec(any::<u8>(), 0..80);
    (any::<u8>(), algorithm, secret, any::<bool>()).prop_map(|(key_id, algorithm, secret, full)| {
        AuthKey::new(key_id, algorithm, &secret).with_tag_len(full)
    })
}

pub(crate) fn records() -> impl Strategy<Value = Vec<Record>> {
    vec(record(), 0..8)
}

fn record() -> impl Strategy<Value = Record> {
    let locators = vec(locator(), 0..6);
    let parts = (eid(), any::<u32>(), action(), any::<bool>(), locators);
    parts.prop_map(|(eid, minutes, action, authoritative, locators)| Record {
        eid,
        ttl: Ttl::from_minutes(minutes),
        // ACT is sent only beside no locators.
        action: if locators.is_empty() {
            action
        } else {
            Action::NoAction
        },
        authoritative,
        locators,
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![
        Action::NoAction,
        Action::NativelyForward,
        Action::SendMapRequest,
        Action::Drop,
        Action::PolicyDenied,
        Action::AuthFailure,
    ])
}

fn locator() -> impl Strategy<Value = Locator> {
    let keyed = (any::<IpAddr>(), 1..=u16::MAX, any::<[u8; 32]>());
    let keyed = keyed.prop_filter("zero key", |(_, _, key)| *key != [0; 32]);
    let rloc = prop_oneof![
        any::<IpAddr>().prop_map(Rloc::Plain),
        keyed.prop_map(|(address, port, key)| Rloc::WireGuard {
            endpoint: SocketAddr::new(address, port),
            key: PublicKey(key),
        }),
    ];
    (any::<(u8, u8, bool, bool, bool)>(), rloc).prop_map(
        |((priority, weight, local, probed, reachable), rloc)| Locator {
            priority,
            weight,
            local,
            probed,
            reachable,
            rloc,
        },
    )
}

fn requested_eid() -> impl Strategy<Value = RequestedEid> {
    (any::<bool>(), eid()).prop_map(|(subscribe, eid)| RequestedEid { subscribe, eid })
}

fn eid() -> impl Strategy<Value = EidPrefix> {
    let v4 = (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(octets, len)| (IpAddr::from(octets), len));
    let v6 = (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(octets, len)| (IpAddr::from(octets), len));
    (iid(), prop_oneof![v4, v6])
        .prop_map(|(iid, (address, len))| EidPrefix::new(iid, IpNet::new(address, len).unwrap()))
}

fn iid() -> impl Strategy<Value = InstanceId> {
    prop_oneof![Just(0), any::<u32>()].prop_map(InstanceId)
}

pub(crate) fn nonce() -> impl Strategy<Value = Nonce> {
    any::<u64>().prop_map(Nonce)
}

pub(crate) fn ids() -> impl Strategy<Value = Option<(XtrId, SiteId)>> {
    option::of(any::<([u8; 16], [u8; 8])>().prop_map(|(xtr, site)| (XtrId(xtr), SiteId(site))))
}

pub(crate) fn register_flags() -> impl Strategy<Value = RegisterFlags> {
    any::<[bool; 6]>().prop_map(
        |[
            proxy_reply,
            security,
            echo_notify,
            use_ttl,
            merge,
            want_notify,
        ]| RegisterFlags {
            proxy_reply,
            security,
            echo_notify,
            use_ttl,
            merge,
            want_notify,
        },
    )
}

fn request_flags() -> impl Strategy<Value = RequestFlags> {
    any::<[bool; 7]>().prop_map(
        |[
            authoritative,
            probe,
            smr,
            pitr,
            smr_invoked,
            local_in_rloc_set,
            no_reply,
        ]| {
            RequestFlags {
                authoritative,
                probe,
                smr,
                pitr,
                smr_invoked,
                local_in_rloc_set,
                no_reply,
            }
        },
    )
}
