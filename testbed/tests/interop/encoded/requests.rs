//! Map-Requests, bare and encapsulated.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use lisp_proto::{
    InstanceId, RequestFlags, RequestParams, RequestedEid, encode_ecm, encode_map_request,
};

use super::{Encoded, Expected, IDS, NONCE, NONCE_TEXT, ip, message, record, wireguard};

pub(super) fn all() -> Vec<Encoded> {
    vec![
        ipv4(),
        ipv6(),
        without_source(),
        several_eids(),
        all_flags(),
        with_own_record(),
        subscription("Map-Request that subscribes", ITR_RLOCS, "192.0.2.7"),
        // That is how tshark shows an address of AFI 0.
        subscription("Map-Request that unsubscribes", &[], "0.0.0.0"),
        encapsulated("ECM, IPv4", "10.0.0.1:4342", "10.0.0.2:4342"),
        encapsulated("ECM, IPv6", "[fd00:1::1]:40000", "[fd00:1::2]:4342"),
    ]
}

fn ipv4() -> Encoded {
    let expected = [
        ("lisp.type", "1"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.irc", "0"),
        ("lisp.records", "1"),
        ("lisp.mreq.flags", "0x000000"),
        ("lisp.mreq.srceid.ipv4", "10.0.0.1"),
        ("lisp.mreq.itr_rloc_ipv4", "192.0.2.7"),
        ("lisp.mreq.record.prefix.length", "32"),
        ("lisp.mreq.record.prefix.ipv4", "10.0.0.2"),
    ];
    request("Map-Request, IPv4", &expected, |params| params)
}

fn ipv6() -> Encoded {
    let expected = [
        ("lisp.irc", "1"),
        ("lisp.mreq.srceid_ipv6", "fd00:1::1"),
        ("lisp.mreq.itr_rloc_ipv4", "192.0.2.7"),
        ("lisp.mreq.itr_rloc_ipv6", "2001:db8::7"),
        ("lisp.mreq.record.prefix.ipv6", "fd00:1::2"),
    ];
    let rlocs = [ip("192.0.2.7"), ip("2001:db8::7")];
    let eids = [asked("fd00:1::2")];
    let name = "Map-Request, IPv6, two ITR-RLOCs";
    request(name, &expected, |params| RequestParams {
        source_eid: Some((InstanceId(0), ip("fd00:1::1"))),
        itr_rlocs: &rlocs,
        eids: &eids,
        ..params
    })
}

fn without_source() -> Encoded {
    let expected = [("lisp.mreq.record.prefix.ipv4", "10.0.0.2")];
    let name = "Map-Request without source EID";
    request(name, &expected, |params| RequestParams {
        source_eid: None,
        ..params
    })
}

fn several_eids() -> Encoded {
    let expected = [
        ("lisp.records", "3"),
        ("lisp.mreq.record.prefix.length", "32;48;16"),
        ("lisp.lcaf.iid", "7;7"),
        ("lisp.lcaf.iid.ipv4", "10.1.0.1;10.1.0.0"),
    ];
    let eids = [
        asked("10.0.0.2"),
        asked("fd00:1::/48"),
        asked("[7]10.1.0.0/16"),
    ];
    let name = "Map-Request for three EIDs, from an instance";
    request(name, &expected, |params| RequestParams {
        source_eid: Some((InstanceId(7), ip("10.1.0.1"))),
        eids: &eids,
        ..params
    })
}

fn all_flags() -> Encoded {
    // All but M; L and D are the lowest of the bits that tshark calls reserved.
    let expected = [
        ("lisp.mreq.flags", "0x00002f"),
        ("lisp.mreq.res", "0x000003"),
    ];
    let flags = RequestFlags {
        authoritative: true,
        probe: true,
        smr: true,
        pitr: true,
        smr_invoked: true,
        local_in_rloc_set: true,
        no_reply: true,
    };
    let name = "Map-Request, all flags";
    request(name, &expected, |params| RequestParams { flags, ..params })
}

fn with_own_record() -> Encoded {
    let expected = [
        ("lisp.mreq.flags", "0x000010"),
        ("lisp.mapping.eid.ipv4", "10.0.0.1"),
        ("lisp.lcaf.natt.etrport", "51821"),
    ];
    let own = record("10.0.0.1", vec![wireguard("192.0.2.7:51821")]);
    let name = "Map-Request with the sender's record";
    request(name, &expected, |params| RequestParams {
        source_record: Some(&own),
        ..params
    })
}

/// PubSub (RFC 9437 §4). Without ITR-RLOCs it unsubscribes, which is written as an address of AFI 0.
fn subscription(name: &'static str, itr_rlocs: &[IpAddr], itr_rloc: &'static str) -> Encoded {
    let expected = [
        ("lisp.type", "1"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.irc", "0"),
        // I is among the bits that tshark calls reserved.
        ("lisp.mreq.res", "0x000080"),
        ("lisp.mreq.itr_rloc_ipv4", itr_rloc),
        ("lisp.mreq.record.prefix.length", "32"),
        ("lisp.mreq.record.prefix.ipv4", "10.0.0.2"),
    ];
    let eids = [RequestedEid {
        subscribe: true,
        ..asked("10.0.0.2")
    }];
    request(name, &expected, |params| RequestParams {
        itr_rlocs,
        eids: &eids,
        ids: Some(IDS),
        ..params
    })
}

fn encapsulated(name: &'static str, source: &str, destination: &str) -> Encoded {
    let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (source, destination) = (socket(source), socket(destination));
    let eids = [asked(&destination.ip().to_string())];
    let inner = request(name, &[], |params| RequestParams {
        source_eid: Some((InstanceId(0), source.ip())),
        eids: &eids,
        ..params
    });
    let expected = [("lisp.type", "8;1"), ("lisp.nonce", NONCE_TEXT)];
    message(name, &expected, |out| {
        encode_ecm(source, destination, &inner.bytes, out).unwrap();
    })
}

/// Where the answer goes, usually.
const ITR_RLOCS: &[IpAddr] = &[IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))];
/// What is asked for, usually.
static EIDS: LazyLock<[RequestedEid; 1]> = LazyLock::new(|| [asked("10.0.0.2")]);

/// A Map-Request that differs from the usual one as `change` says.
fn request<'a>(
    name: &'static str,
    expected: Expected<'_>,
    change: impl FnOnce(RequestParams<'static>) -> RequestParams<'a>,
) -> Encoded {
    let usual = RequestParams {
        flags: RequestFlags::default(),
        nonce: NONCE,
        source_eid: Some((InstanceId(0), ip("10.0.0.1"))),
        itr_rlocs: ITR_RLOCS,
        eids: &*EIDS,
        source_record: None,
        gap: None,
        ids: None,
    };
    let params = change(usual);
    message(name, expected, |out| {
        encode_map_request(&params, out).unwrap();
    })
}

fn asked(eid: &str) -> RequestedEid {
    RequestedEid {
        subscribe: false,
        eid: eid.parse().unwrap(),
    }
}
