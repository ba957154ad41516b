//! Compact facts read back, and nothing else does.

use std::ops::Range;

use proptest::prelude::*;

use super::*;

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(IpAddr::V4),
        any::<std::net::Ipv6Addr>().prop_map(IpAddr::V6),
    ]
}

fn eids() -> impl Strategy<Value = EidPrefix> {
    (any::<u32>(), addresses(), 0_u8..=128).prop_map(|(iid, address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let net = IpNet::new(address, length.min(most)).unwrap();
        EidPrefix::new(InstanceId(iid % 3), net)
    })
}

fn locators() -> impl Strategy<Value = Locator> {
    let key = prop::option::of((any::<u16>(), any::<[u8; 32]>()));
    let numbers = any::<(u8, u8, bool, bool, bool)>();
    (addresses(), key, numbers).prop_map(|(address, key, numbers)| {
        let (priority, weight, local, probed, reachable) = numbers;
        let rloc = match key {
            None => Rloc::Plain(address),
            Some((port, key)) => Rloc::WireGuard {
                endpoint: SocketAddr::new(address, port),
                key: PublicKey(key),
            },
        };
        Locator {
            priority,
            weight,
            local,
            probed,
            reachable,
            rloc,
        }
    })
}

fn registrants() -> impl Strategy<Value = (String, Option<XtrIds>)> {
    let ids = any::<([u8; 16], [u8; 8])>();
    let ids = ids.prop_map(|(xtr, site)| (XtrId(xtr), SiteId(site)));
    (any::<String>(), prop::option::of(ids))
}

fn facts() -> impl Strategy<Value = StoreEvent> {
    let actions = prop::sample::select(vec![
        Action::NoAction,
        Action::NativelyForward,
        Action::SendMapRequest,
        Action::Drop,
        Action::PolicyDenied,
        Action::AuthFailure,
    ]);
    let locators = prop::collection::vec(locators(), 0..3);
    let records = (eids(), any::<u32>(), actions, any::<bool>(), locators);
    let records = records.prop_map(|(eid, ttl, action, authoritative, locators)| Record {
        eid,
        ttl: Ttl::from_minutes(ttl),
        action,
        authoritative,
        locators,
    });
    let flags = any::<(bool, bool, bool)>();
    let times = any::<(Duration, u16)>();
    let registered = (registrants(), records, flags, times, addresses()).prop_map(
        |((xtr, ids), record, (merge, want_notify, full_tag), (lifetime, port), source)| {
            StoreEvent::Registered {
                xtr: xtr.into(),
                ids,
                record,
                merge,
                want_notify,
                lifetime,
                source: SocketAddr::new(source, port),
                full_tag,
            }
        },
    );
    let nonce = (registrants(), any::<u8>(), any::<u64>());
    let nonce = nonce.prop_map(|((xtr, ids), key_id, nonce)| StoreEvent::Nonce {
        xtr: xtr.into(),
        ids,
        key_id,
        nonce: Nonce(nonce),
    });
    let withdrawn = (registrants(), eids());
    let withdrawn = withdrawn.prop_map(|((xtr, ids), eid)| StoreEvent::Withdrawn {
        xtr: xtr.into(),
        ids,
        eid,
    });
    prop_oneof![registered, nonce, withdrawn]
}

proptest! {
    #[test]
    fn a_fact_reads_back_and_is_one_line(event in facts(), at_ms in any::<u64>()) {
        let mut written = vec![7];
        write_fact(&mut written, at_ms, &event).unwrap();
        prop_assert!(!written[1..].contains(&LINE_END));
        prop_assert_eq!(read_fact(&written[1..]), Some((at_ms, event)));
        for cut in 1..written.len() {
            prop_assert_eq!(read_fact(&written[1..cut]), None);
        }
    }

    #[test]
    fn a_fact_is_written_in_one_way_only(event in facts(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        write_fact(&mut bytes, 5, &event).unwrap();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        if let Some((at_ms, event)) = read_fact(&bytes) {
            let mut written = Vec::new();
            write_fact(&mut written, at_ms, &event).unwrap();
            if written != bytes {
                // Only bits of a prefix that are behind its length are not kept.
                let (written, bytes) = (unescape(&written).unwrap(), unescape(&bytes).unwrap());
                prop_assert_eq!(written.len(), bytes.len());
                let eid = eid_at(&event);
                let differs = |at: &usize| written[*at] != bytes[*at];
                prop_assert!((0..bytes.len()).filter(differs).all(|at| eid.contains(&at)));
            }
        }
    }
}

/// Returns where the address of the prefix is in the bytes of a fact that are not escaped.
fn eid_at(event: &StoreEvent) -> Range<usize> {
    let (xtr, ids, eid, before) = if let StoreEvent::Registered {
        xtr,
        ids,
        record,
        source,
        ..
    } = event
    {
        let address = if source.is_ipv4() { 4 } else { 16 };
        // Flags, lifetime, and port, family and address of the source.
        (xtr, ids, record.eid, 1 + 12 + 3 + address)
    } else if let StoreEvent::Withdrawn { xtr, ids, eid } = event {
        (xtr, ids, *eid, 0)
    } else {
        return 0..0;
    };
    // Kind, time, length of the name, whether there are ids; instance-id, prefix length and family.
    let registrant = 1 + 8 + 2 + xtr.len() + 1 + if ids.is_some() { 24 } else { 0 };
    let start = registrant + before + 4 + 1 + 1;
    start..start + usize::from(eid.net().max_prefix_len()) / 8
}

#[test]
fn what_is_escaped_reads_back() {
    for plain in [
        &b""[..],
        b"\n",
        b"a\n\x1bn\x1b\x1b",
        b"\x1be",
        b"\n\n..\x1b...\n..",
    ] {
        let mut out = b"\n".to_vec();
        out.extend_from_slice(plain);
        escape(&mut out, 1);
        assert_eq!(out[0], LINE_END, "what was there before stays");
        assert!(!out[1..].contains(&LINE_END));
        assert_eq!(unescape(&out[1..]).as_deref(), Some(plain));
    }
    for bad in [&b"\x1b"[..], b"\x1bx", b"\n"] {
        assert_eq!(unescape(bad), None);
    }
}

#[test]
fn an_address_of_one_link_is_left_to_others() {
    let source = "[fe80::1%3]:4342".parse().unwrap();
    let event = StoreEvent::Registered {
        xtr: "a".into(),
        ids: None,
        record: Record {
            eid: "10.0.0.1".parse().unwrap(),
            ttl: Ttl::from_minutes(1),
            action: Action::NoAction,
            authoritative: false,
            locators: Vec::new(),
        },
        merge: false,
        want_notify: false,
        lifetime: Duration::from_secs(1),
        source,
        full_tag: false,
    };
    assert_eq!(write_fact(&mut Vec::new(), 1, &event), None);
}
