//! Map-Replies.

use lisp_proto::{Action, Locator, Record, ReplyParams, Ttl, encode_map_reply};

use super::{Encoded, Expected, NONCE, NONCE_TEXT, message, plain, record, wireguard};

pub(super) fn all() -> Vec<Encoded> {
    vec![ipv4(), probed(), keyless(), negative(), empty()]
}

fn ipv4() -> Encoded {
    let expected = [
        ("lisp.type", "2"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.mapping.ttl", "15"),
        ("lisp.mapping.eid.ipv4", "10.0.0.1"),
        ("lisp.mapping.eid.masklen", "32"),
        ("lisp.lcaf.type", "1;11;7"),
        ("lisp.lcaf.afi_list.ipv4", "192.0.2.7"),
        ("lisp.lcaf.natt.msport", "0"),
        ("lisp.lcaf.natt.etrport", "51821"),
        ("lisp.loc.priority", "1"),
        ("lisp.loc.weight", "100"),
        ("lisp.loc.flags", "0x0001"),
    ];
    let record = record("10.0.0.1", vec![wireguard("192.0.2.7:51821")]);
    reply("Map-Reply, WireGuard over IPv4", &expected, &[record])
}

fn probed() -> Encoded {
    let expected = [
        ("lisp.mapping.eid.ipv6", "fd00:1::1"),
        ("lisp.mapping.auth", "1"),
        ("lisp.lcaf.afi_list.ipv6", "2001:db8::7"),
        ("lisp.lcaf.natt.etrport", "51821;51821"),
        ("lisp.loc.flags", "0x0007;0x0001"),
        ("lisp.mrep.flags.probe", "1"),
        ("lisp.mrep.flags.enlr", "1"),
    ];
    let probed = Locator {
        local: true,
        probed: true,
        ..wireguard("192.0.2.7:51821")
    };
    let locators = vec![probed, wireguard("[2001:db8::7]:51821")];
    let records = [Record {
        authoritative: true,
        ..record("fd00:1::1", locators)
    }];
    let params = ReplyParams {
        probe: true,
        echo_nonce: true,
        nonce: NONCE,
        records: &records,
    };
    let name = "Map-Reply to a probe, WireGuard over IPv6";
    message(name, &expected, |out| {
        encode_map_reply(&params, out).unwrap();
    })
}

fn keyless() -> Encoded {
    let expected = [
        ("lisp.mapping.loccnt", "2"),
        ("lisp.loc.locator", "192.0.2.7;2001:db8::7"),
        ("lisp.lcaf.iid", "7"),
        ("lisp.lcaf.iid.ipv6", "fd00:1::"),
        ("lisp.mapping.eid.masklen", "48"),
    ];
    let record = record(
        "[7]fd00:1::/48",
        vec![plain("2001:db8::7"), plain("192.0.2.7")],
    );
    let name = "Map-Reply, plain locators, in an instance";
    reply(name, &expected, &[record])
}

fn negative() -> Encoded {
    let expected = [
        ("lisp.records", "6"),
        ("lisp.mapping.act", "0;1;2;3;4;5"),
        ("lisp.mapping.loccnt", "0;0;0;0;0;0"),
        ("lisp.mapping.ttl", "1;1;1;1;1;1"),
    ];
    let records = [
        ("10.0.0.0/9", Action::NoAction),
        ("10.128.0.0/10", Action::NativelyForward),
        ("fd00:1::/64", Action::SendMapRequest),
        ("0.0.0.0/0", Action::Drop),
        ("[1]::/0", Action::PolicyDenied),
        ("10.0.0.3", Action::AuthFailure),
    ]
    .map(|(eid, action)| Record {
        action,
        ttl: Ttl::from_minutes(1),
        ..record(eid, Vec::new())
    });
    reply("Map-Reply, negative, every action", &expected, &records)
}

fn empty() -> Encoded {
    reply("Map-Reply without records", &[("lisp.records", "0")], &[])
}

fn reply(name: &'static str, expected: Expected<'_>, records: &[Record]) -> Encoded {
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce: NONCE,
        records,
    };
    message(name, expected, |out| {
        encode_map_reply(&params, out).unwrap();
    })
}
