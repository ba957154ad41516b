//! Messages with authentication data: Map-Register, Map-Notify, Map-Notify-Ack, Info-Request, Info-Reply.

use lisp_proto::{
    Action, Algorithm, AuthKey, NotifyParams, Record, RegisterFlags, RegisterParams, Ttl,
    encode_info_reply, encode_info_request, encode_map_notify, encode_map_notify_ack,
    encode_map_register,
};

use super::{
    Encoded, IDS, NONCE, NONCE_TEXT, SITE_ID_TEXT, XTR_ID_TEXT, message, plain, record, wireguard,
};

pub(super) fn all() -> Vec<Encoded> {
    let mut all = vec![with_ids(), all_flags(), withdrawal()];
    all.extend(algorithms());
    all.extend(notifies());
    all.extend(publications());
    all.extend(infos());
    all
}

fn with_ids() -> Encoded {
    let expected = [
        ("lisp.type", "3"),
        ("lisp.records", "2"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.keyid", "0x0103"),
        ("lisp.authlen", "16"),
        ("lisp.mreg.flags.pmr", "1"),
        ("lisp.mreg.flags.sec", "0"),
        ("lisp.mreg.flags.xtrid", "1"),
        ("lisp.mreg.flags.wmn", "1"),
        ("lisp.mreg.res", "0x000000"),
        ("lisp.mapping.eid.ipv4", "10.0.0.1"),
        ("lisp.mapping.eid.ipv6", "fd00:1::1"),
        ("lisp.xtrid", XTR_ID_TEXT),
        ("lisp.siteid", SITE_ID_TEXT),
    ];
    let params = RegisterParams {
        flags: usual_flags(),
        nonce: NONCE,
        records: &[
            record("10.0.0.1", vec![wireguard("192.0.2.7:51821")]),
            record("fd00:1::1", vec![wireguard("192.0.2.7:51821")]),
        ],
        ids: Some(IDS),
    };
    message("Map-Register with IDs, two records", &expected, |out| {
        encode_map_register(&params, &hkdf_key(), out).unwrap();
    })
}

fn all_flags() -> Encoded {
    // E, T and a are the third, fourth and fifth bit before M; tshark calls them reserved.
    let expected = [("lisp.mreg.flags.sec", "1"), ("lisp.mreg.res", "0x00000e")];
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: true,
            security: true,
            echo_notify: true,
            use_ttl: true,
            merge: true,
            want_notify: true,
        },
        nonce: NONCE,
        records: &[record("10.0.0.1", vec![plain("192.0.2.7")])],
        ids: None,
    };
    message("Map-Register, all flags", &expected, |out| {
        encode_map_register(&params, &hkdf_key(), out).unwrap();
    })
}

fn withdrawal() -> Encoded {
    let expected = [
        ("lisp.mapping.ttl", "0"),
        ("lisp.mapping.loccnt", "0"),
        ("lisp.xtrid", XTR_ID_TEXT),
    ];
    let params = RegisterParams {
        flags: usual_flags(),
        nonce: NONCE,
        records: &[Record {
            ttl: Ttl::WITHDRAW,
            ..record("10.0.0.1", Vec::new())
        }],
        ids: Some(IDS),
    };
    message("Map-Register that withdraws", &expected, |out| {
        encode_map_register(&params, &hkdf_key(), out).unwrap();
    })
}

fn algorithms() -> [Encoded; 6] {
    let none = Algorithm::None;
    let sha1 = Algorithm::Sha1_96;
    let sha256 = Algorithm::Sha256_128;
    let hkdf = Algorithm::Sha256_128Hkdf;
    [
        (
            "Map-Register, not authenticated",
            none,
            false,
            "0x0000",
            "0",
        ),
        ("Map-Register, SHA-1, 12 bytes", sha1, false, "0x0001", "12"),
        ("Map-Register, SHA-1, 20 bytes", sha1, true, "0x0001", "20"),
        (
            "Map-Register, SHA-256, 16 bytes",
            sha256,
            false,
            "0x0002",
            "16",
        ),
        (
            "Map-Register, SHA-256, 32 bytes",
            sha256,
            true,
            "0x0002",
            "32",
        ),
        ("Map-Register, HKDF, 16 bytes", hkdf, false, "0x0003", "16"),
    ]
    .map(|(name, algorithm, full, id, length)| {
        let key = AuthKey::new(0, algorithm, b"password").with_tag_len(full);
        let params = RegisterParams {
            flags: RegisterFlags::default(),
            nonce: NONCE,
            records: &[record("10.0.0.1", vec![plain("192.0.2.7")])],
            ids: None,
        };
        let expected = [("lisp.keyid", id), ("lisp.authlen", length)];
        message(name, &expected, |out| {
            encode_map_register(&params, &key, out).unwrap();
        })
    })
}

fn notifies() -> [Encoded; 2] {
    let records = [
        record("10.0.0.1", vec![wireguard("192.0.2.7:51821")]),
        record("10.0.0.3", vec![plain("192.0.2.8")]),
    ];
    let params = NotifyParams {
        nonce: NONCE,
        records: &records,
        handoff: None,
    };
    let expected = [
        ("lisp.type", "4"),
        ("lisp.records", "2"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.keyid", "0x0103"),
        ("lisp.mapping.eid.ipv4", "10.0.0.1;10.0.0.3"),
        ("lisp.lcaf.natt.etrport", "51821"),
    ];
    let key = hkdf_key();
    let notify = message("Map-Notify", &expected, |out| {
        encode_map_notify(&params, &key, out).unwrap();
    });
    let ack = message("Map-Notify-Ack", &expected, |out| {
        encode_map_notify_ack(&params, &key, out).unwrap();
    });
    [notify, ack]
}

/// PubSub (RFC 9437 §5 and §6): what a subscriber is told that is no mapping.
fn publications() -> [Encoded; 3] {
    let gone = |ttl| Record {
        ttl,
        ..record("10.0.0.2", Vec::new())
    };
    let hole = Record {
        action: Action::Drop,
        ..gone(Ttl::from_minutes(15))
    };
    let refusal = Record {
        action: Action::AuthFailure,
        ..gone(Ttl::from_minutes(1))
    };
    [
        (
            "Map-Notify that withdraws, or ends a subscription",
            gone(Ttl::WITHDRAW),
            "0",
            "0",
        ),
        ("Map-Notify of a hole", hole, "15", "3"),
        ("Map-Notify that drops a subscriber", refusal, "1", "5"),
    ]
    .map(|(name, record, ttl, action)| {
        let params = NotifyParams {
            nonce: NONCE,
            records: &[record],
            handoff: None,
        };
        let expected = [
            ("lisp.type", "4"),
            ("lisp.nonce", NONCE_TEXT),
            ("lisp.mapping.eid.ipv4", "10.0.0.2"),
            ("lisp.mapping.loccnt", "0"),
            ("lisp.mapping.ttl", ttl),
            ("lisp.mapping.act", action),
        ];
        message(name, &expected, |out| {
            encode_map_notify(&params, &hkdf_key(), out).unwrap();
        })
    })
}

/// Is there a NAT? (RFC 8060 §4.4)
fn infos() -> [Encoded; 3] {
    let (key, eid) = (hkdf_key(), "10.0.0.1".parse().unwrap());
    let common = [
        ("lisp.type", "7"),
        ("lisp.nonce", NONCE_TEXT),
        ("lisp.keyid", "0x0103"),
        ("lisp.authlen", "16"),
    ];
    let request = message("Info-Request", &common, |out| {
        encode_info_request(NONCE, eid, &key, out);
    });
    let reply = |name, seen: &str, port| {
        let seen = seen.parse().unwrap();
        let told = [("lisp.lcaf.natt.etrport", port)];
        message(name, &[&common[..], &told].concat(), |out| {
            encode_info_reply(NONCE, eid, seen, &key, out);
        })
    };
    [
        request,
        reply("Info-Reply", "192.0.2.7:51821", "51821"),
        reply("Info-Reply, no port yet", "[2001:db8::7]:0", "0"),
    ]
}

fn hkdf_key() -> AuthKey {
    AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret")
}

fn usual_flags() -> RegisterFlags {
    RegisterFlags {
        proxy_reply: true,
        want_notify: true,
        ..RegisterFlags::default()
    }
}
