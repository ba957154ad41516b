//! What a Map-Register may change, and what must not.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::server::bench::{
    Bench, Register, Sent, ack, control, eid, empty, ip, key, own_records, plain_record, record,
    socket,
};
use lisp_proto::{Algorithm, Message, SiteId, XtrId, decode};

const GEAR: &str = "192.0.2.200:4342";

#[test]
fn a_wrong_mac_changes_nothing() {
    refused(DropReason::BadAuthentication, |register| {
        register.key = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"not the key of a");
    });
}

#[test]
fn a_replayed_nonce_changes_nothing() {
    refused(DropReason::ReplayedNonce, |register| register.nonce = 1);
}

#[test]
fn a_refresh_from_elsewhere_or_for_another_time_is_stored() {
    let mut bench = Bench::new();
    let records = [
        plain_record("192.168.0.1", "192.0.2.200"),
        record("192.168.0.2", "192.0.2.200:51820"),
    ];
    for (port, use_ttl) in [(4342, false), (4343, false), (4343, true)] {
        let mut register = bench.register_of("gear", &records);
        register.use_ttl = use_ttl;
        let source = SocketAddr::new(ip("192.0.2.200"), port);
        bench.datagram(source, Via::Plain, &register.bytes());
        let registrations = |bench: &Bench| -> Vec<_> {
            let all = bench.server.state.mappings.registrations();
            all.map(|(eid, _, it)| (eid, it)).collect()
        };
        let here = registrations(&bench);
        assert!(here.len() == 2 && here.iter().all(|(_, it)| it.contact.source == source));
        assert_eq!(registrations(&bench.restart()), here, "{port} {use_ttl}");
    }
}

#[test]
fn a_foreign_prefix_changes_nothing() {
    refused(DropReason::ForeignPrefix, |register| {
        register.records = own_records("b")[..1].to_vec()
    });
}

#[test]
fn a_withdrawal_of_a_foreign_prefix_changes_nothing() {
    refused(DropReason::ForeignPrefix, |register| {
        register.records = vec![empty("10.0.0.2", 0)]
    });
}

#[test]
fn another_instance_id_changes_nothing() {
    refused(DropReason::ForeignPrefix, |register| {
        register.records = vec![empty("[1]10.0.0.1", 5)]
    });
}

#[test]
fn a_weaker_algorithm_than_configured_changes_nothing() {
    refused(DropReason::WrongKey, |register| {
        register.key = AuthKey::new(1, Algorithm::Sha1_96, b"a");
    });
    refused(DropReason::WrongKey, |register| {
        register.key = AuthKey::new(1, Algorithm::None, b"");
    });
}

#[test]
fn another_key_id_than_configured_changes_nothing() {
    refused(DropReason::WrongKey, |register| {
        register.key = AuthKey::new(2, Algorithm::Sha256_128Hkdf, b"a");
    });
}

#[test]
fn an_enrolled_agent_outside_its_tunnel_changes_nothing() {
    let mut bench = registered();
    let register = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]);
    let before = bench.server.fingerprint();
    assert_eq!(
        bench.datagram(control("a"), Via::Plain, &register.bytes()),
        []
    );
    assert_eq!(
        bench.datagram(control("b"), Via::Tunnel, &register.bytes()),
        [],
        "the key of another agent"
    );
    assert_eq!(
        bench.datagram(socket("[fd4c:1::99]:4342"), Via::Tunnel, &register.bytes()),
        []
    );
    assert_eq!(bench.server.fingerprint(), before);
    assert_eq!(bench.count(DropReason::UnknownSource), 2);
}

#[test]
fn too_many_locators_change_nothing() {
    refused(DropReason::UnusableRecord, |register| {
        let more = (0..=limits::LOCATORS_PER_RECORD)
            .map(|n| record("10.0.0.1", &format!("192.0.2.{n}:51820")));
        let locators = more.flat_map(|record| record.locators).collect();
        register.records = vec![Record {
            locators,
            ..empty("10.0.0.1", 5)
        }];
    });
}

proptest! {
    #[test]
    fn no_flipped_bit_of_a_map_register_is_overlooked(position in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bench = registered();
        let mut bytes = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]).bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= 1u8 << bit;
        let before = bench.server.fingerprint();
        prop_assert_eq!(bench.datagram(control("a"), Via::Tunnel, &bytes), []);
        prop_assert_eq!(bench.server.fingerprint(), before);
    }

    #[test]
    fn noise_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..120), via in prop::bool::ANY) {
        let mut bench = registered();
        let before = bench.server.fingerprint();
        let via = if via { Via::Tunnel } else { Via::Plain };
        bench.datagram(control("a"), via, &bytes);
        prop_assert_eq!(bench.server.fingerprint(), before);
    }
}

#[test]
fn only_accepted_records_are_confirmed() {
    let mut bench = Bench::new();
    let [own, own_v6] = own_records("a");
    let sent = bench.register(
        "a",
        &[own.clone(), own_records("b")[0].clone(), own_v6.clone()],
    );
    assert_eq!(sent[0].notify("a").1, [own, own_v6]);
    assert_eq!(bench.count(DropReason::ForeignPrefix), 1);
}

#[test]
fn a_register_that_wants_no_notify_gets_none() {
    let mut bench = Bench::new();
    let mut register = bench.register_of("a", &own_records("a"));
    register.want_notify = false;
    assert_eq!(
        bench.datagram(control("a"), Via::Tunnel, &register.bytes()),
        []
    );
    assert_eq!(
        bench.ask("b", "10.0.0.1")[0].reply_records()[0]
            .locators
            .len(),
        1
    );
}

#[test]
fn a_notify_has_the_nonce_of_the_register_and_a_tag_as_long() {
    let mut bench = Bench::new();
    let sent = register_gear(&mut bench, None, |register| register.nonce = 77);
    let Ok(Message::MapNotify(notify)) = decode(&sent[0].bytes) else {
        panic!("not a Map-Notify");
    };
    assert_eq!((notify.nonce.0, notify.auth.tag.len()), (77, 20));
    assert_eq!((sent[0].dst, sent[0].via), (socket(GEAR), Via::Plain));
    let sent = register_gear(&mut bench, None, |register| {
        register.key = key("gear").with_tag_len(false)
    });
    let Ok(Message::MapNotify(notify)) = decode(&sent[0].bytes) else {
        panic!("not a Map-Notify");
    };
    assert_eq!(notify.auth.tag.len(), 12);
}

#[test]
fn withdrawing_what_is_not_registered_is_confirmed() {
    let mut bench = Bench::new();
    let sent = bench.register("a", &[empty("10.0.0.1", 0)]);
    assert_eq!(sent[0].notify("a").1, [empty("10.0.0.1", 0)]);
}

#[test]
fn with_the_t_bit_a_registration_lasts_as_long_as_its_ttl() {
    let mut bench = Bench::new();
    let mut register = bench.register_of("a", &[empty("10.0.0.1", 10)]);
    register.use_ttl = true;
    bench.datagram(control("a"), Via::Tunnel, &register.bytes());
    bench.wait(Duration::from_secs(599));
    assert_eq!(bench.events.len(), 1);
    bench.wait(Duration::from_secs(1));
    let (xtr, eid) = ("a".into(), eid("10.0.0.1"));
    assert_eq!(bench.events.last(), Some(&Event::Withdrawn { xtr, eid }));
}

#[test]
fn each_xtr_id_has_its_own_nonces() {
    let mut bench = Bench::new();
    assert_eq!(
        register_gear(&mut bench, ids(1), |register| register.nonce = 9).len(),
        1
    );
    assert_eq!(
        register_gear(&mut bench, ids(2), |register| register.nonce = 5).len(),
        1
    );
    assert_eq!(
        register_gear(&mut bench, None, |register| register.nonce = 5).len(),
        1
    );
    assert_eq!(
        register_gear(&mut bench, ids(1), |register| register.nonce = 9).len(),
        0
    );
    assert_eq!(bench.count(DropReason::ReplayedNonce), 1);
}

#[test]
fn registrations_with_the_merge_bit_stand_side_by_side() {
    let mut bench = Bench::new();
    let at = |address: &str| vec![plain_record("192.168.1.0/24", address)];
    register_gear(&mut bench, ids(1), |register| {
        (register.records, register.merge) = (at("192.0.2.1"), true)
    });
    let sent = register_gear(&mut bench, ids(2), |register| {
        (register.records, register.merge) = (at("192.0.2.2"), true);
    });
    assert_eq!(
        sent[0].notify("gear").1[0].locators.len(),
        2,
        "the notify shows the merged set"
    );
    assert_eq!(
        bench.ask("a", "192.168.1.1")[0].reply_records()[0]
            .locators
            .len(),
        2
    );
    register_gear(&mut bench, ids(1), |register| {
        (register.records, register.merge) = (vec![empty("192.168.1.0/24", 0)], true);
    });
    let left = bench.ask("a", "192.168.1.1")[0].reply_records();
    assert_eq!(left[0].locators, at("192.0.2.2")[0].locators);
    register_gear(&mut bench, ids(3), |register| {
        register.records = at("192.0.2.3")
    });
    let left = bench.ask("a", "192.168.1.1")[0].reply_records();
    assert_eq!(
        left[0].locators,
        at("192.0.2.3")[0].locators,
        "without the bit it replaces them"
    );
}

#[test]
fn all_who_share_a_merged_mapping_are_told_how_it_reads_now() {
    let mut bench = Bench::new();
    assert_eq!(share(&mut bench, 1, "192.0.2.1").len(), 1);
    let sent = share(&mut bench, 2, "192.0.2.2");
    assert_eq!((sent[0].dst, sent[1].dst), (sharer(2), sharer(1)));
    assert_eq!(locators(&sent[0]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(locators(&sent[1]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(sent[1].via, Via::Plain);
    assert_eq!(
        bench.datagram(sharer(1), Via::Plain, &ack("gear", &sent[1])),
        []
    );
    assert_eq!(share(&mut bench, 2, "192.0.2.2").len(), 1, "no news");
    let sent = leave(&mut bench, 1);
    assert_eq!(sent.len(), 2);
    assert_eq!(
        (sent[1].dst, locators(&sent[1])),
        (sharer(2), vec!["192.0.2.2".into()])
    );
    let told = bench.wait(limits::REGISTRATION_LIFETIME);
    assert!(told.iter().all(|sent| sent.dst == sharer(2)), "1 has left");
}

#[test]
fn who_shares_a_mapping_and_wants_no_notify_is_told_nothing() {
    let mut bench = Bench::new();
    register_shared(&mut bench, 1, "192.0.2.1", |register| {
        register.want_notify = false;
    });
    assert_eq!(share(&mut bench, 2, "192.0.2.2").len(), 1);
}

#[test]
fn those_who_share_a_mapping_are_told_when_one_of_them_expires() {
    let mut bench = Bench::new();
    share(&mut bench, 1, "192.0.2.1");
    bench.wait(Duration::from_secs(100));
    let sent = share(&mut bench, 2, "192.0.2.2");
    bench.datagram(sharer(1), Via::Plain, &ack("gear", &sent[1]));
    let sent = bench.wait(Duration::from_secs(80));
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].dst, locators(&sent[0])),
        (sharer(2), vec!["192.0.2.2".into()])
    );
}

#[test]
fn those_who_share_a_mapping_are_known_after_a_restart() {
    let mut bench = Bench::new();
    share(&mut bench, 1, "192.0.2.1");
    let mut bench = bench.restart();
    assert_eq!(share(&mut bench, 2, "192.0.2.2")[1].dst, sharer(1));
}

#[test]
fn gear_that_acknowledges_nothing_is_told_a_few_times_only() {
    let mut bench = Bench::new();
    share(&mut bench, 1, "192.0.2.1");
    share(&mut bench, 2, "192.0.2.2");
    // Waits of 3, 3, 3, 6, 12 and 24 s, each up to a tenth more or less.
    for (seconds, transmissions) in [(2, 0), (2, 1), (3, 1), (3, 1), (6, 1), (12, 1), (30, 0)] {
        let again = bench.wait(Duration::from_secs(seconds));
        assert_eq!(again.len(), transmissions, "within {seconds} s more");
    }
    assert_eq!(bench.count(DropReason::NotifyGivenUp), 1);
}

#[test]
fn an_acknowledgement_in_the_plain_counts_only_from_where_it_was_sent_and_with_the_key() {
    let mut bench = Bench::new();
    share(&mut bench, 1, "192.0.2.1");
    let sent = share(&mut bench, 2, "192.0.2.2");
    let mut bytes = ack("gear", &sent[1]);
    let before = bench.server.fingerprint();
    bench.datagram(sharer(2), Via::Plain, &bytes);
    assert_eq!(bench.count(DropReason::UnexpectedAck), 1);
    let tag = 16;
    bytes[tag] ^= 1;
    bench.datagram(sharer(1), Via::Plain, &bytes);
    assert_eq!(bench.count(DropReason::BadAuthentication), 1);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn without_the_p_bit_the_server_answers_all_the_same() {
    let mut bench = Bench::new();
    register_gear(&mut bench, None, |register| register.proxy_reply = false);
    let answer = bench.ask("a", "192.168.1.1");
    assert_eq!(answer[0].reply_records()[0].locators.len(), 1);
}

#[test]
fn the_e_bit_is_between_xtrs_and_changes_nothing_here() {
    let mut bench = Bench::new();
    let sent = register_gear(&mut bench, None, |register| register.echo_notify = true);
    assert_eq!(sent.len(), 1, "the usual confirmation");
    let answer = bench.ask("a", "192.168.1.1");
    assert_eq!(answer[0].reply_records()[0].locators.len(), 1);
}

#[test]
fn what_only_xtrs_and_map_resolvers_receive_changes_nothing() {
    let mut bench = registered();
    let push = bench.ask("a", "10.0.0.2");
    let answer = bench.ack("b", &push[0]);
    let info_request = [&[0x70, 0, 0, 0][..], &[0; 24]].concat();
    let before = bench.server.fingerprint();
    for bytes in [&answer[0].bytes, &push[0].bytes, &info_request] {
        assert_eq!(bench.datagram(control("b"), Via::Tunnel, bytes), []);
        assert_eq!(bench.datagram(socket(GEAR), Via::Plain, bytes), []);
    }
    let dropped = bench.count(DropReason::UnexpectedMessage) + bench.count(DropReason::Malformed);
    assert_eq!(dropped, 6);
    assert_eq!(bench.server.fingerprint(), before);
}

/// Registers a, then checks that a Map-Register changed by `change` is dropped without effect.
#[track_caller]
fn refused(reason: DropReason, change: impl FnOnce(&mut Register)) {
    let mut bench = registered();
    let mut register = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]);
    change(&mut register);
    let (before, stored) = (bench.server.fingerprint(), bench.stored.len());
    assert_eq!(
        bench.datagram(control("a"), Via::Tunnel, &register.bytes()),
        []
    );
    assert_eq!(bench.server.fingerprint(), before);
    assert_eq!(bench.stored.len(), stored);
    assert_eq!(bench.count(reason), 1);
}

fn registered() -> Bench {
    let mut bench = Bench::new();
    bench.register_all();
    bench
}

fn register_gear(
    bench: &mut Bench,
    ids: Option<(XtrId, SiteId)>,
    change: impl FnOnce(&mut Register),
) -> Vec<Sent> {
    let mut register = bench.register_of("gear", &[plain_record("192.168.1.0/24", "192.0.2.200")]);
    // Above the nonces that tests choose.
    register.nonce += 1_000;
    register.ids = ids;
    change(&mut register);
    bench.datagram(socket(GEAR), Via::Plain, &register.bytes())
}

/// Registers 192.168.1.0/24 with the merge bit, as one of several behind the same entry.
fn share(bench: &mut Bench, number: u8, rloc: &str) -> Vec<Sent> {
    register_shared(bench, number, rloc, |_| ())
}

/// Takes one of those who share 192.168.1.0/24 out.
fn leave(bench: &mut Bench, number: u8) -> Vec<Sent> {
    register_shared(bench, number, "192.0.2.1", |register| {
        register.records = vec![empty("192.168.1.0/24", 0)];
    })
}

fn register_shared(
    bench: &mut Bench,
    number: u8,
    rloc: &str,
    change: impl FnOnce(&mut Register),
) -> Vec<Sent> {
    let mut register = bench.register_of("gear", &[plain_record("192.168.1.0/24", rloc)]);
    (register.ids, register.merge) = (ids(number), true);
    change(&mut register);
    bench.datagram(sharer(number), Via::Plain, &register.bytes())
}

/// Where one of those who share a mapping registers from.
fn sharer(number: u8) -> SocketAddr {
    socket(&format!("192.0.2.20{number}:4342"))
}

/// Returns the addresses in the first record of a Map-Notify to gear.
fn locators(sent: &Sent) -> Vec<String> {
    let (_, records) = sent.notify("gear");
    let locators = records[0].locators.iter();
    locators
        .map(|locator| locator.rloc.ip().to_string())
        .collect()
}

fn ids(number: u8) -> Option<(XtrId, SiteId)> {
    Some((XtrId([number; 16]), SiteId([0; 8])))
}
